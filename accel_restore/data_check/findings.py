"""Findings about a set of pairs: the measurements of each pair are compared with those of the whole set."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from accel_restore.data_check.measure import REACH, PairFacts
from accel_restore.data_check.near_duplicates import near_duplicates
from accel_restore.data_check.overlaps import overlaps

_LEVEL = 1 / 255
_CONSTANT = 0.05 * _LEVEL  # largest standard deviation of a constant image; dark 16-bit photographs have little more
_MIN_TRAITS = np.array([1.0, 0.1, 0.3, 0.3, 0.3, 0.5, 0.2])  # smaller medians do not distinguish input from gt
GRAY = 0.5 * _LEVEL  # largest mean distance of the channels of a gray image; 2 levels in the palest photographs


@dataclass(frozen=True)
class Finding:
    """One problem of a set.

    `kind` is unrelated, swapped, shifted, outlier, constant, equal, duplicate or leak. `files` of a pair are its input
    and gt; without files, the finding concerns the whole set.
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
    """Return the findings of a set, the most serious kinds first; `gts` and `inputs` are the files of `facts`."""
    if inputs is None:
        return [*_constant(facts, gts, []), *_gray_among_colour(facts, gts), *_duplicates(facts, gts)]
    pairs = [_Pair(*entry) for entry in zip(facts, gts, inputs, strict=True) if _varies(entry[0])]
    unequal = [pair for pair in pairs if not np.isinf(pair.facts.psnr)]
    found: dict[str, Finding] = {}
    for find in (_unrelated, _swapped, _shifted, _outliers):
        for finding in find(unequal):  # the first finding of a pair explains the later ones
            found.setdefault(finding.files[0] if finding.files else finding.text, finding)
    found |= {finding.text: finding for finding in (*_constant(facts, gts, inputs), *_gray_among_colour(facts, gts))}
    return [*found.values(), *_equal(pairs), *_duplicates(facts, gts, inputs)]


def find_leaks(
    train: Sequence[PairFacts], train_gts: Sequence[str], val: Sequence[PairFacts], val_gts: Sequence[str]
) -> list[Finding]:
    """Return one finding for each validation image that is also a training image, exactly, nearly or in part."""
    same = {fact.gt_hash: name for fact, name in zip(train, train_gts, strict=True)}
    near: dict[int, tuple[int, float]] = {}
    for one, other, similarity in near_duplicates([f.thumbnail for f in train], [f.thumbnail for f in val]):
        near.setdefault(other, (one, similarity))
    shared = overlaps([f.corners for f in train], [f.corners for f in val])
    found = []
    for index, (fact, name) in enumerate(zip(val, val_gts, strict=True)):
        if fact.gt_hash in same and fact.gt_std >= _CONSTANT:
            twin, how = same[fact.gt_hash], "the same pixels as"
        elif index in near:
            twin, how = train_gts[near[index][0]], f"nearly the same picture (similarity {near[index][1]:.2f}) as"
        elif index in shared:
            one, (down, right) = shared[index]
            twin, how = train_gts[one], f"overlaps, {down} pixels down and {right} right in it,"
        else:
            continue
        text = f"{name}: {how} the training image {twin}; remove one of them, or scores will be too high"
        found.append(Finding("leak", text, (name, twin)))
    return found


def outliers(psnr: Sequence[float] | np.ndarray) -> list[int]:
    """Return the places of finite values far from the median; none for fewer than 8 values.

    Far is more than five robust standard deviations and more than 6 dB, since a set of one noise level hardly varies.
    """
    values = np.asarray(psnr, float)
    finite = np.isfinite(values)
    if finite.sum() < 8:
        return []
    middle, deviation = _middle(values[finite])
    return np.flatnonzero(finite & (np.abs(values - middle) > max(6.0, 5 * deviation))).tolist()


def swapped(traits: Sequence[Sequence[float]]) -> list[int]:
    """Return the places of pairs whose input and gt differ in the opposite direction to the rest of the set.

    Only traits with the same sign in at least 80 % of the pairs count. None are found among fewer than 6 pairs, or
    without such a trait.
    """
    values = np.array(traits, float)
    if len(values) < 6:
        return []
    middle, deviation = _middle(values)
    shares = values / np.where(middle == 0, 1, middle)  # 1: like the set, -1: the opposite
    steady = (np.abs(middle) >= _MIN_TRAITS) & ((shares >= 0.3).mean(0) >= 0.8)
    if not steady.any():
        return []
    shares, middle = np.clip(shares[:, steady], -1.5, 1.5), np.abs(middle[steady])
    deviation = np.maximum(deviation[steady], _MIN_TRAITS[steady] / 4)
    far = ((1 - shares) * middle > 3 * deviation) & (shares < -0.4)
    mean = np.average(shares, axis=1, weights=np.minimum(middle / deviation, 10))
    return np.flatnonzero((mean <= -0.4) & far.any(1)).tolist()


def _unrelated(pairs: list[_Pair]) -> list[Finding]:
    """Pairs whose images show different pictures, judged by coarse structure, which survives most degradations."""
    pairs = [pair for pair in pairs if not np.isnan(pair.facts.similarity) and pair.facts.shift == (0, 0)]
    if len(pairs) < 4:
        return []
    similarity = np.array([pair.facts.similarity for pair in pairs])
    middle, deviation = _middle(similarity)
    if middle < 0.3:  # different pictures have less than 0.25
        least = pairs[similarity.argmin()]
        example = f"for example {least.input} and {least.gt}"
        text = f"most inputs do not look like their gt, {example}; check how the files are paired"
        return [Finding("unrelated", text)]
    found = []
    for place in np.flatnonzero((similarity < 0.4) & (middle - similarity > max(0.3, 6 * deviation))):
        pair = pairs[place]
        how = "mirrored or rotated" if pair.facts.turned else f"another picture, or shifted by more than {REACH} pixels"
        text = f"{pair.input}: does not match {pair.gt} ({how}); pair the right files or remove it"
        found.append(pair.finding("unrelated", text))
    return found


def _swapped(pairs: list[_Pair]) -> list[Finding]:
    pairs = [pair for pair in pairs if pair.facts.traits is not None]
    degraded = [
        pair for pair in pairs if pair.facts.direction > 0 or (pair.facts.gt_noisier and not pair.facts.direction)
    ]
    opposed = sum(pair.facts.direction < 0 for pair in pairs)
    if len(degraded) >= max(4, len(pairs) / 4, 4 * opposed):
        text = (
            f"gt is a blurred, noisy or compressed version of the input in {len(degraded)} of {len(pairs)} pairs (the "
            f"reverse in {opposed}), for example {degraded[0].gt} of {degraded[0].input}; input and gt of the whole "
            "set seem to be swapped; compare them in --picture FILE"
        )
        return [Finding("swapped", text)]
    traits = [pair.facts.traits for pair in pairs if pair.facts.traits is not None]
    how = "they differ in the opposite direction to the other pairs; swap them"
    return [
        pair.finding("swapped", f"{pair.input}: seems to be swapped with its gt {pair.gt}: {how}")
        for pair in (pairs[place] for place in swapped(traits))
    ]


def _shifted(pairs: list[_Pair]) -> list[Finding]:
    """A finding for the shift that most pairs share, and one for each pair with another shift."""
    common = _common_shift(pairs)
    found = []
    if common.any():
        down, right = (round(2 * float(step)) / 2 for step in common)
        text = (
            f"most inputs, for example {pairs[0].input}: shifted by about ({down:g}, {right:g}) pixels of gt "
            "(down, right) against their gt; crop or downscale both sides in the same way"
        )
        found.append(Finding("shifted", text))
    for pair in pairs:
        facts = pair.facts
        if facts.shift == (0, 0) or (common.any() and np.abs(facts.offset - common).max() <= 1):
            continue
        text = (
            f"{pair.input}: shifted by {facts.shift} pixels (down, right) against {pair.gt}; alignment would gain "
            f"{facts.gain:.1f} dB; align or remove it"
        )
        found.append(pair.finding("shifted", text))
    return found


def _common_shift(pairs: list[_Pair]) -> np.ndarray:
    """Return the sub-pixel shift that at least 75 % of the pairs share; 0 if there is none or it is below 1/3 pixel.

    Images from cameras and networks are off by up to 1/4 pixel; the usual mistake in downscaling shifts by 1/2 pixel.
    """
    offsets = np.array([pair.facts.offset for pair in pairs if not np.isnan(pair.facts.offset[0])])
    if len(offsets) < 4:
        return np.zeros(2)
    middle = np.median(offsets, axis=0)
    shared = (np.abs(offsets - middle) <= 0.5).all(1).mean() >= 0.75
    return middle if shared and np.abs(middle).max() >= 1 / 3 else np.zeros(2)


def _outliers(pairs: list[_Pair]) -> list[Finding]:
    """Pairs of unusual PSNR, unless it is high because gt has little contrast."""
    values = np.array([pair.facts.psnr for pair in pairs])
    contrast = 20 * np.log10([pair.facts.gt_std for pair in pairs])
    plain = set(range(len(pairs))) - set(outliers(values + contrast))
    found = []
    for place in outliers(values):
        pair = pairs[place]
        if values[place] > np.median(values) and place in plain:
            continue
        text = (
            f"{pair.input}: PSNR {values[place]:.1f} dB against {pair.gt}, but the median of the set is "
            f"{np.median(values):.1f} dB; check whether it belongs to this set"
        )
        found.append(pair.finding("outlier", text))
    return found


def _varies(facts: PairFacts) -> bool:
    """Whether neither image of a pair is constant."""
    return not min(facts.gt_std, facts.input_std) < _CONSTANT  # input_std is NaN without an input


def _constant(facts: Sequence[PairFacts], gts: Sequence[str], inputs: Sequence[str]) -> list[Finding]:
    images = [(name, fact.gt_mean, fact.gt_std) for name, fact in zip(gts, facts, strict=True)]
    images += [(name, fact.input_mean, fact.input_std) for name, fact in zip(inputs, facts, strict=False)]
    return [
        Finding("constant", f"{name}: every pixel has level {mean / _LEVEL:.0f} of 255; replace or remove it", (name,))
        for name, mean, deviation in images
        if deviation < _CONSTANT
    ]


def _gray_among_colour(facts: Sequence[PairFacts], gts: Sequence[str]) -> list[Finding]:
    """A finding if some gts are gray and others in colour; it names the fewer ones."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    for name, fact in zip(gts, facts, strict=True):
        if fact.gt_std >= _CONSTANT:
            sides[fact.gt_colour < GRAY].append(name)
    if not (sides[True] and sides[False]):
        return []
    gray = len(sides[True]) <= len(sides[False])
    names, what, others = sides[gray], *(("gray", "in colour") if gray else ("in colour", "gray"))
    text = (
        f"{len(names)} of {sum(map(len, sides.values()))} gts are {what}, the others {others}: {_listed(names)}; "
        "remove them, or train on gray values (data.channels=1)"
    )
    return [Finding("gray", text, tuple(names))]


def _equal(pairs: list[_Pair]) -> list[Finding]:
    equal = [pair for pair in pairs if np.isinf(pair.facts.psnr)]
    if len(equal) == len(pairs) > 1:
        example = f"for example {equal[0].input} and {equal[0].gt}"
        text = f"all {len(equal)} inputs equal their gt, {example}; nothing can be learned"
        return [Finding("equal", text)]
    return [
        pair.finding("equal", f"{pair.input}: equals its gt {pair.gt}; replace the input or remove the pair")
        for pair in equal
    ]


def _duplicates(facts: Sequence[PairFacts], gts: Sequence[str], inputs: Sequence[str] | None = None) -> list[Finding]:
    """Exact copies of whole pairs, equal inputs with different gts, and groups of nearly equal gts.

    Several inputs of one gt are no finding: many sets are made that way.
    """
    copies: dict[tuple, list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        if _varies(fact):
            copies[fact.input_hash, fact.gt_hash].append(index)
    how = f"the same {'picture' if inputs is None else 'pair'}; keep one"
    groups = [(gts, places, how) for places in copies.values()]
    if inputs is not None:
        rivals: dict[bytes, list[int]] = defaultdict(list)
        for (input_hash, _), places in copies.items():
            rivals[input_hash].append(places[0])
        groups += [(inputs, places, "the same input with different gts; keep one") for places in rivals.values()]
    singles = list({facts[places[0]].gt_hash: places[0] for places in copies.values()}.values())
    how = "nearly the same picture; keep one, or keep all of them in either train or val"
    near = _groups(near_duplicates([facts[index].thumbnail for index in singles]), len(singles))
    groups += [(gts, [singles[place] for place in places], how) for places in near]
    return [_duplicate([names[index] for index in places], how) for names, places, how in groups if len(places) > 1]


def _duplicate(files: list[str], how: str) -> Finding:
    return Finding("duplicate", f"{_listed(files)}: {how}", tuple(files))


def _listed(files: list[str]) -> str:
    return ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")


def _groups(matches: list[tuple[int, int, float]], count: int) -> list[list[int]]:
    """Return the groups of places below `count` that are connected by matches."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.array([match[:2] for match in matches], int).reshape(-1, 2).T
    links = coo_array((np.ones(len(one)), (one, other)), shape=(count, count))
    members: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(connected_components(links, directed=False)[1]):
        members[group].append(place)
    return [places for places in members.values() if len(places) > 1]


def _middle(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the median and a robust standard deviation over the first axis."""
    middle = np.median(values, axis=0)
    return middle, 1.4826 * np.median(np.abs(values - middle), axis=0)
