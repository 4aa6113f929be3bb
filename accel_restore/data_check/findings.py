"""What is wrong with a set of pairs, in sentences: the facts of `examine`, each compared with the rest of its set."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from accel_restore.data_check.measure import REACH, PairFacts
from accel_restore.data_check.near_duplicates import near_duplicates

_LEVEL = 1 / 255
_EVEN = 0.05 * _LEVEL  # the deviation of an image of one level; 16-bit pictures taken in the dark have little more
_TELLING = np.array(
    [1.0, 0.1, 0.3, 0.3, 0.3, 0.5, 0.2]
)  # the least median of each of `Traits` that tells input from gt
_COMPARED = 5000  # images of a set among which near duplicates are looked for: the time grows with the square


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Kinds are unrelated, swapped, shifted, outlier, constant, equal, duplicate and leak. Without files it concerns the
    whole set; of a pair, they are the input and the gt.
    """

    kind: str
    text: str
    files: tuple[str, ...] = ()


class _Pair(NamedTuple):
    facts: PairFacts
    gt: str
    input: str

    def finding(self, kind: str, text: str) -> Finding:
        return Finding(kind, text, (self.input, self.gt))


def find_in_set(facts: Sequence[PairFacts], gts: Sequence[str], inputs: Sequence[str] | None = None) -> list[Finding]:
    """The findings of a set whose files are `gts` and `inputs`, in the order of `facts`: the gravest kinds first."""
    if inputs is None:
        return [*_constant(facts, gts, []), *_duplicates(facts, gts, None)]
    pairs = [_Pair(*entry) for entry in zip(facts, gts, inputs, strict=True) if _varies(entry[0])]
    unequal = [pair for pair in pairs if not np.isinf(pair.facts.psnr)]
    found: dict[str, list[Finding]] = {}
    for report in (_unrelated, _swapped, _shifted, _outliers):
        for finding in report(unequal):  # a pair that is swapped or shifted needs no word about its PSNR
            found.setdefault(finding.files[0] if finding.files else finding.text, finding)
    return [*found.values(), *_constant(facts, gts, inputs), *_equal(pairs), *_duplicates(facts, gts, inputs)]


def find_leaks(
    train: Sequence[PairFacts], train_gts: Sequence[str], val: Sequence[PairFacts], val_gts: Sequence[str]
) -> list[Finding]:
    """One finding for each validation image that training holds too, exactly or nearly."""
    same = {fact.gt_hash: name for fact, name in zip(train, train_gts, strict=True)}
    near: dict[int, tuple[int, float]] = {}
    for one, other, similarity in near_duplicates([f.thumbnail for f in train], [f.thumbnail for f in val]):
        near.setdefault(other, (one, similarity))
    found = []
    for index, (fact, name) in enumerate(zip(val, val_gts, strict=True)):
        if fact.gt_hash in same and fact.gt_std >= _EVEN:
            twin, how = same[fact.gt_hash], "the same pixels as"
        elif index in near:
            twin, how = train_gts[near[index][0]], f"nearly the same picture (similarity {near[index][1]:.2f}) as"
        else:
            continue
        text = f"{name}: {how} the training image {twin}: remove one, or scores will be too good"
        found.append(Finding("leak", text, (name, twin)))
    return found


def outliers(psnr: Sequence[float]) -> list[int]:
    """The places of finite values far from the rest; none where there are less than 8.

    Far is five robust deviations, and at least 6 dB, four times the error: sets of one noise level hardly deviate.
    """
    values = np.asarray(psnr, float)
    finite = np.isfinite(values)
    if finite.sum() < 8:
        return []
    middle, deviation = _middle(values[finite])
    return np.flatnonzero(finite & (np.abs(values - middle) > max(6.0, 5 * deviation))).tolist()


def swapped(traits: Sequence[Sequence[float]]) -> list[int]:
    """The places of pairs whose input and gt differ the other way round than in the rest of the set.

    Judged by the traits that have one sign in at least four pairs of five; none where there are less than 6 pairs, or
    where no trait is that steady.
    """
    values = np.array(traits, float)
    if len(values) < 6:
        return []
    middle, deviation = _middle(values)
    shares = values / np.where(middle == 0, 1, middle)  # 1: as the rest, -1: the opposite
    steady = (np.abs(middle) >= _TELLING) & ((shares >= 0.3).mean(0) >= 0.8)
    if not steady.any():
        return []
    shares, middle = np.clip(shares[:, steady], -1.5, 1.5), np.abs(middle[steady])
    deviation = np.maximum(deviation[steady], _TELLING[steady] / 4)
    far = ((1 - shares) * middle > 3 * deviation) & (shares < -0.4)
    mean = np.average(shares, axis=1, weights=np.minimum(middle / deviation, 10))
    return np.flatnonzero((mean <= -0.4) & far.any(1)).tolist()


def _unrelated(pairs: list[_Pair]) -> list[Finding]:
    """Pairs that show two pictures, judged by their coarse structure: it survives all but extreme damage."""
    pairs = [pair for pair in pairs if not np.isnan(pair.facts.likeness) and pair.facts.shift == (0, 0)]
    if len(pairs) < 4:
        return []
    likeness = np.array([pair.facts.likeness for pair in pairs])
    middle, deviation = _middle(likeness)
    if middle < 0.3:  # of other pictures it is below 0.25
        least = pairs[likeness.argmin()]
        text = f"most inputs do not look like their gt, as {least.input} and {least.gt}: are the right files paired?"
        return [Finding("unrelated", text)]
    found = []
    for place in np.flatnonzero((likeness < 0.4) & (middle - likeness > max(0.3, 6 * deviation))):
        pair = pairs[place]
        how = "mirrored or turned" if pair.facts.turned else f"another picture, or shifted by more than {REACH} pixels"
        text = f"{pair.input}: does not match {pair.gt} ({how}): pair the right files or remove it"
        found.append(pair.finding("unrelated", text))
    return found


def _swapped(pairs: list[_Pair]) -> list[Finding]:
    pairs = [pair for pair in pairs if pair.facts.traits is not None]
    noisier = [pair for pair in pairs if pair.facts.gt_noisier]
    if len(pairs) >= 4 and len(noisier) > len(pairs) / 2:
        text = (
            f"gt is noisier than the input in {len(noisier)} of {len(pairs)} pairs, as {noisier[0].gt} than "
            f"{noisier[0].input}: input and gt of the whole set seem to be exchanged"
        )
        return [Finding("swapped", text)]
    how = "they differ the other way round than in the other pairs: exchange them"
    return [
        pair.finding("swapped", f"{pair.input}: seems to be exchanged with its gt {pair.gt}: {how}")
        for pair in (pairs[place] for place in swapped([pair.facts.traits for pair in pairs]))
    ]


def _shifted(pairs: list[_Pair]) -> list[Finding]:
    """A finding for the shift that most pairs share, and one for each pair that is shifted differently."""
    common = _common_shift(pairs)
    found = []
    if common.any():
        down, right = (round(2 * float(step)) / 2 for step in common)
        text = (
            f"most inputs, as {pairs[0].input}: shifted by about ({down:g}, {right:g}) pixels of gt (down, right) "
            "against their gt: cut, or scale down, both sides by the same rule"
        )
        found.append(Finding("shifted", text))
    for pair in pairs:
        facts = pair.facts
        if facts.shift == (0, 0) or (common.any() and np.abs(facts.offset - common).max() <= 1):
            continue
        text = (
            f"{pair.input}: shifted by {facts.shift} pixels (down, right) against {pair.gt}; aligned it would gain "
            f"{facts.gain:.1f} dB: align or remove it"
        )
        found.append(pair.finding("shifted", text))
    return found


def _common_shift(pairs: list[_Pair]) -> np.ndarray:
    """The shift, with fractions, of at least three pairs of four; 0 where there is none or less than a third pixel.

    Images made by cameras and networks are off by up to a quarter; half a pixel is the usual mistake of scaling.
    """
    offsets = np.array([pair.facts.offset for pair in pairs if not np.isnan(pair.facts.offset[0])])
    if len(offsets) < 4:
        return np.zeros(2)
    middle = np.median(offsets, axis=0)
    shared = (np.abs(offsets - middle) <= 0.5).all(1).mean() >= 0.75
    return middle if shared and np.abs(middle).max() >= 1 / 3 else np.zeros(2)


def _outliers(pairs: list[_Pair]) -> list[Finding]:
    """Pairs of unusual PSNR; a high one may be due to a plain picture, in which there is little to lose."""
    values = np.array([pair.facts.psnr for pair in pairs])
    contrast = 20 * np.log10([pair.facts.gt_std for pair in pairs])
    plain = set(range(len(pairs))) - set(outliers(values + contrast))
    found = []
    for place in outliers(values):
        pair = pairs[place]
        if values[place] > np.median(values) and place in plain:
            continue
        text = (
            f"{pair.input}: PSNR {values[place]:.1f} dB against {pair.gt}, the median of the set is "
            f"{np.median(values):.1f} dB: look whether it belongs there"
        )
        found.append(pair.finding("outlier", text))
    return found


def _varies(facts: PairFacts) -> bool:
    """Whether no image of a pair is of one even level."""
    return not min(facts.gt_std, facts.input_std) < _EVEN  # without an input, its deviation is nan


def _constant(facts: Sequence[PairFacts], gts: Sequence[str], inputs: Sequence[str]) -> list[Finding]:
    images = [(name, fact.gt_mean, fact.gt_std) for name, fact in zip(gts, facts, strict=True)]
    images += [(name, fact.input_mean, fact.input_std) for name, fact in zip(inputs, facts, strict=False)]
    return [
        Finding(
            "constant", f"{name}: has the level {mean / _LEVEL:.0f} of 255 everywhere: replace or remove it", (name,)
        )
        for name, mean, deviation in images
        if deviation < _EVEN
    ]


def _equal(pairs: list[_Pair]) -> list[Finding]:
    equal = [pair for pair in pairs if np.isinf(pair.facts.psnr)]
    if len(equal) == len(pairs) > 1:
        text = f"all {len(equal)} inputs equal their gt, as {equal[0].input} does {equal[0].gt}: nothing can be learned"
        return [Finding("equal", text)]
    return [
        pair.finding("equal", f"{pair.input}: equals its gt {pair.gt}: replace the input or remove the pair")
        for pair in equal
    ]


def _duplicates(facts: Sequence[PairFacts], gts: Sequence[str], inputs: Sequence[str] | None) -> list[Finding]:
    """Exact copies of whole pairs, inputs with two different gts, and groups of nearly the same gt.

    Several inputs of one gt are in order: many sets are made that way.
    """
    copies: dict[tuple, list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        if _varies(fact):
            copies[fact.input_hash, fact.gt_hash].append(index)
    rivals: dict[bytes, list[int]] = defaultdict(list)
    for (input_hash, _), places in copies.items():
        rivals[input_hash].append(places[0])
    what = "picture" if inputs is None else "pair"
    groups = [(gts, places, f"the same {what}: keep one") for places in copies.values()]
    if inputs is not None:
        groups += [(inputs, places, "the same input, but another gt: keep one") for places in rivals.values()]
    singles = list({facts[places[0]].gt_hash: places[0] for places in copies.values()}.values())
    if len(singles) <= _COMPARED:
        how = "nearly the same picture: keep one, or all on one side of train and val"
        near = _groups(near_duplicates([facts[index].thumbnail for index in singles]), len(singles))
        groups += [(gts, [singles[place] for place in places], how) for places in near]
    found = []
    for names, places, how in groups:
        if len(places) > 1:
            files = tuple(names[index] for index in places)
            more = f" and {len(files) - 4} more" if len(files) > 4 else ""
            found.append(Finding("duplicate", f"{', '.join(files[:4])}{more}: {how}", files))
    return found


def _groups(matches: list[tuple[int, int, float]], count: int) -> list[list[int]]:
    """The places below `count` that matches connect, group by group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.array([match[:2] for match in matches], int).reshape(-1, 2).T
    links = coo_array((np.ones(len(one)), (one, other)), shape=(count, count))
    members: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(connected_components(links, directed=False)[1]):
        members[group].append(place)
    return [places for places in members.values() if len(places) > 1]


def _middle(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median and the robust standard deviation, over the first axis."""
    middle = np.median(values, axis=0)
    return middle, 1.4826 * np.median(np.abs(values - middle), axis=0)
