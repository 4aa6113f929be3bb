"""Match the images of folders, patterns and lists to pairs: by their stems, or by the part that {} matches."""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from accel_restore.data.file_search import NamedFile, Searched, find_files, is_pattern, locate
from accel_restore.utils.utf8 import printable, problem_of_name

_EXAMPLE = 'such as gt: "shots/{}_mean.png" with input: "shots/{}_real.png", where {} matches the common part'


class Match(NamedTuple):
    """The name of a pair, and the paths of its images."""

    name: str
    gt: str
    input: str | None = None


def match_files(
    gt: str | list[str], input: str | list[str] | None, key: str, recursive: bool, searched: Searched
) -> tuple[list[Match], list[str]]:
    """Return the pairs in order of their names, and the problems found; see `find_pairs`. Raises: OSError."""
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
    pairs: list[Match] = []
    for number, (one_gt, one_input) in enumerate(zip(gts, inputs, strict=True)):
        place, before = (f".{number}", f"{number}/") if numbered else ("", "")
        found, more = _match(one_gt, one_input, key, place, recursive, searched)
        pairs += [Match(before + pair.name, pair.gt, pair.input) for pair in found] if numbered else found
        problems += more
    return sorted(pairs, key=attrgetter("name")), problems


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


def _match(
    gt: str | list[str], input: str | list[str] | None, key: str, place: str, recursive: bool, searched: Searched
) -> tuple[list[Match], list[str]]:
    """The pairs of one folder, pattern or list of files; `place` follows `gt` and `input` in dotted keys."""
    if isinstance(gt, str) and isinstance(input, str) and is_pattern(gt) and is_pattern(input):
        numbers = [pattern.count("{}") for pattern in (gt, input)]
        if numbers[0] != numbers[1] and all(numbers):
            return [], [
                f"{key}: gt{place} has {{}} {numbers[0]} times, input{place} {numbers[1]} times ('{gt}', '{input}'); "
                "use the same number, one for each part that both share"
            ]
    found, problems = find_files(gt, f"{key}.gt{place}", recursive, (), searched)
    gts = {name: file.path for name, file in _by_name([file._replace(variant="") for file in found], problems).items()}
    if input is None:
        return [Match(name, path) for name, path in gts.items()], problems
    found, more = find_files(input, f"{key}.input{place}", recursive, gts, searched)
    problems += more
    inputs = _by_name(found, problems)
    problems += _without_partner(gts, inputs, key, (f"gt{place}", gt), (f"input{place}", input))
    pairs = [Match(name, gts[file.gt_name], file.path) for name, file in inputs.items() if file.gt_name in gts]
    same = [pair.gt for pair in pairs if pair.gt == pair.input]
    if same:
        problems.append(
            f"{key}: input and gt are the same file for {len(same)} of {len(pairs)} pairs ({same[0]}); name two "
            f"folders, or patterns {_EXAMPLE}"
        )
    return pairs, problems


def _without_partner(
    gts: dict[str, str],
    inputs: dict[str, NamedFile],
    key: str,
    gt: tuple[str, str | list[str]],
    input: tuple[str, str | list[str]],
) -> list[str]:
    """One problem for each image without a partner; `gt` and `input` are each a key and its value."""
    served = {file.gt_name for file in inputs.values()}
    if not gts or not inputs or served == gts.keys():  # already reported, or complete
        return []
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
    for name, _, file in sorted((file.name, file.path.split("/"), file) for file in files):
        if problem := problem_of_name(file.path):
            problems.append(f"{printable(file.path)}: {problem}")
        elif name in named:
            other, base = named[name].path, file.path.rpartition("/")[2]
            twin = other if other.rpartition("/")[2] == base else other.rpartition("/")[2]  # the path in another folder
            problems.append(f"{file.path}: has the same name '{name}' as {twin}; rename one")
        else:
            named[name] = file
    return named
