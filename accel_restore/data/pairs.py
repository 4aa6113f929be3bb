"""Match images on disk to pairs: folders and files by their stems, patterns by the part that {} matches."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_restore.data.decode import Cell
from accel_restore.data.file_search import NamedFile, find_files, is_pattern, locate
from accel_restore.utils.utf8 import printable, problem_of_name

_EXAMPLE = 'such as gt: "shots/{}_mean.png" with input: "shots/{}_real.png", where {} matches the common part'


@dataclass(frozen=True)
class Pair:
    """A clean image and its degraded image; without the latter, the input is synthetic."""

    name: str
    gt: Path | Cell
    input: Path | Cell | None = None


def find_pairs(
    gt: str | list[str],
    input: str | list[str] | None,
    key: str,
    recursive: bool = False,
    notes: list[str] | None = None,
) -> tuple[list[Pair], list[str]]:
    """Return the pairs in order of their names, and the problems found; `key` is the dotted key of the source.

    What is left out of folders is added to `notes`.

    A folder's images are named by their stems (with `recursive`, sub-folders too: "scene/0001"). In a pattern, each
    `{}` names the image, `*` matches anything and `**` folders of any depth. If an input pattern has `*`, each input
    forms a pair with its one gt. Lists of folders or patterns pair element by element ("0/0001").

    Raises: UserError if a named package is not installed, or links make endless folders.
    """
    try:
        pairs, problems = _find_all(gt, input, key, recursive, notes if notes is not None else [])
    except OSError as error:  # a name that is too long, a folder without permission
        return [], [f"{key}: cannot be searched: {error.strerror}: {error.filename!s:.200}"]
    return pairs, list(dict.fromkeys(problems))  # a file may be found as gt and as input


def held_out(pairs: list[Pair], fraction: float) -> tuple[list[Pair], list[Pair]]:
    """Return training and validation pairs: the `fraction` (at least one) with the lowest hashes of names is held out.

    The choice depends only on names, so runs with another seed or a few more images are scored on the same images.
    Pairs of one gt stay together, so that no run is scored on images that it was trained on.
    """
    scenes: dict[Path | Cell, str] = {}  # gt: the name of its first pair
    for pair in pairs:
        scenes.setdefault(pair.gt, pair.name)
    count = max(1, round(fraction * len(scenes)))
    ranked = sorted(scenes, key=lambda gt: hashlib.sha256(scenes[gt].encode()).digest())
    chosen = set(ranked[:count])
    return [p for p in pairs if p.gt not in chosen], [p for p in pairs if p.gt in chosen]


def _find_all(
    gt: str | list[str], input: str | list[str] | None, key: str, recursive: bool, notes: list[str]
) -> tuple[list[Pair], list[str]]:
    gts, problems = _elements(gt, f"{key}.gt")
    inputs, more = _elements(input, f"{key}.input") if input is not None else ([None] * len(gts), [])
    problems += more
    if not problems and len(gts) != len(inputs):
        problems.append(
            f"{key}: gt names {len(gts)} and input {len(inputs)} folders or patterns; they pair element by element, "
            "so give the same number of each"
        )
    if problems:
        return [], problems
    numbered = gts is gt or inputs is input
    pairs: list[Pair] = []
    for number, (one_gt, one_input) in enumerate(zip(gts, inputs, strict=True)):
        place, before = (f".{number}", f"{number}/") if numbered else ("", "")
        found, more = _find(one_gt, one_input, key, place, recursive, notes)
        pairs += [Pair(before + pair.name, pair.gt, pair.input) for pair in found]
        problems += more
    return sorted(pairs, key=lambda pair: pair.name), problems


def _elements(source: str | list[str], key: str) -> tuple[Sequence, list[str]]:
    """The elements that pair with those of the other side: the folders and patterns of a list, or one list of files."""
    if isinstance(source, str):
        return [source], []
    places = [place for place in source if is_pattern(place) or locate(place).is_dir()]
    if not places:
        return [source], []
    files = [place for place in source if locate(place).is_file()]
    if files:
        return [], [f"{key}: {files[0]} is a file, {places[0]} is not; list either files, or folders and patterns"]
    return source, []


def _find(
    gt: str | list[str], input: str | list[str] | None, key: str, place: str, recursive: bool, notes: list[str]
) -> tuple[list[Pair], list[str]]:
    """The pairs of one folder, pattern or list of files; `place` follows `gt` and `input` in dotted keys."""
    if isinstance(gt, str) and isinstance(input, str) and is_pattern(gt) and is_pattern(input):
        numbers = [pattern.count("{}") for pattern in (gt, input)]
        if numbers[0] != numbers[1] and all(numbers):
            return [], [
                f"{key}: gt{place} has {{}} {numbers[0]} times, input{place} {numbers[1]} times ('{gt}', '{input}'); "
                "use the same number, one for each part that both share"
            ]
    found, problems = find_files(gt, f"{key}.gt{place}", recursive, notes=notes)
    gts = {name: file.path for name, file in _by_name([NamedFile(f.path, f.gt_name) for f in found], problems).items()}
    if input is None:
        return [Pair(name, path) for name, path in gts.items()], problems
    found, more = find_files(input, f"{key}.input{place}", recursive, gts, notes)
    problems += more
    inputs = _by_name(found, problems)
    problems += _without_partner(gts, inputs, key, (f"gt{place}", gt), (f"input{place}", input))
    pairs = [Pair(name, gts[file.gt_name], file.path) for name, file in inputs.items() if file.gt_name in gts]
    same = [pair.gt for pair in pairs if pair.gt == pair.input]
    if same:
        problems.append(
            f"{key}: input and gt are the same file for {len(same)} of {len(pairs)} pairs ({same[0]}); name two "
            f"folders, or patterns {_EXAMPLE}"
        )
    return pairs, problems


def _without_partner(
    gts: dict[str, Path],
    inputs: dict[str, NamedFile],
    key: str,
    gt: tuple[str, str | list[str]],
    input: tuple[str, str | list[str]],
) -> list[str]:
    """One problem for each image without a partner; `gt` and `input` are each a key and its value."""
    if not gts or not inputs:  # already reported
        return []
    served = {file.gt_name for file in inputs.values()}
    similar_gts = {_folded(name): name for name in gts}
    similar_inputs = {_folded(file.gt_name): file.path for file in inputs.values()}
    if served.isdisjoint(gts):
        near = [(similar_gts[_folded(name)], name) for name in served if _folded(name) in similar_gts]
        one_gt, one_input = min(near, default=(next(iter(gts)), next(iter(inputs.values())).gt_name))
        differ = ", which differ only in case or blanks" if near else ""
        return [
            f"{key}: none of the {len(gts)} names of {gt[0]} (such as '{one_gt}') is among the {len(inputs)} of "
            f"{input[0]} (such as '{one_input}'){differ}; rename the files, or pair them by patterns {_EXAMPLE}"
        ]
    lonely = [
        (file.path, file.gt_name, gt, gts.get(similar_gts.get(_folded(file.gt_name), "")))
        for file in inputs.values()
        if file.gt_name not in gts
    ]
    named = {near for _, _, _, near in lonely}
    lonely += [
        (path, name, input, similar_inputs.get(_folded(name)))
        for name, path in gts.items()
        if name not in served and path not in named
    ]
    return [
        f"{path}: has no partner '{name}' in {key}.{side} ({place})"
        + (f"; {near} differs only in case or blanks, so rename one" if near is not None else "")
        for path, name, (side, place), near in lonely
    ]


def _folded(name: str) -> str:
    """Return the name without case and blanks."""
    return "".join(name.split()).casefold()


def _by_name(files: list[NamedFile], problems: list[str]) -> dict[str, NamedFile]:
    """The files by name, in order; adds a problem for each name that occurs twice or is not valid UTF-8."""
    named: dict[str, NamedFile] = {}
    for file in sorted(files, key=lambda file: (file.name, file.path)):
        if problem := problem_of_name(file.path):
            problems.append(f"{printable(str(file.path))}: {problem}")
        elif file.name in named:
            other = named[file.name].path
            twin = other if other.name == file.path.name else other.name  # the path if it is in another folder
            problems.append(f"{file.path}: has the same name '{file.name}' as {twin}; rename one")
        else:
            named[file.name] = file
    return named
