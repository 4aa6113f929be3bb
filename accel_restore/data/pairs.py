"""Find and match images on disk: folders or files (pairs share the stem), patterns (they share what {} stands for)."""

import hashlib
import importlib.util
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from glob import escape
from itertools import islice
from pathlib import Path, PurePath

from accel_restore.data.decode import Cell
from accel_restore.errors import UserError
from accel_restore.utils.glob import matches

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
_MOST_READINGS = 10_000  # of one name by one pattern: {}*{}*{}.png reads a name of 200 letters in 60 million ways
PATTERNS = 'such as gt: "shots/{}_mean.png" with input: "shots/{}_real.png", where {} stands for what both share'


@dataclass(frozen=True)
class Pair:
    """A clean image and, unless it is to be made from it, the degraded one."""

    name: str
    gt: Path | Cell
    input: Path | Cell | None = None


@dataclass(frozen=True)
class _File:
    path: Path
    gt_name: str
    variant: str = ""  # what * stands for: which of the inputs of one gt

    @property
    def name(self) -> str:
        return f"{self.gt_name}/{self.variant}" if self.variant else self.gt_name


Files = tuple[list[_File], list[str]]  # with the problems found


def find_pairs(
    gt: str | list[str], input: str | list[str] | None, key: str, recursive: bool = False
) -> tuple[list[Pair], list[str]]:
    """The pairs in order of their names, and the problems found (one sentence each); `key` is the source's dotted key.

    A folder's images are named by their stems (`recursive`: sub-folders too, "scene/0001"). In a pattern each `{}`
    names the image, `*` stands for anything and `**` for folders of any depth; where an input pattern holds `*`, every
    input makes a pair with its one gt. Lists of folders or patterns pair element by element ("0/0001").

    Raises: UserError where a package that is named is not installed, or links make folders without end.
    """
    try:
        return _find_all(gt, input, key, recursive)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return [], [f"{key}: cannot be searched: {error.strerror}: {error.filename!s:.200}"]


def _find_all(
    gt: str | list[str], input: str | list[str] | None, key: str, recursive: bool
) -> tuple[list[Pair], list[str]]:
    gts, problems = _elements(gt, f"{key}.gt")
    inputs, more = _elements(input, f"{key}.input") if input is not None else ([None] * len(gts), [])
    problems += more
    if not problems and len(gts) != len(inputs):
        problems.append(
            f"{key}: gt names {len(gts)} and input {len(inputs)} folders or patterns; they pair element by element, "
            "so give equally many"
        )
    if problems:
        return [], problems
    numbered = gts is gt or inputs is input
    pairs: list[Pair] = []
    for number, (one_gt, one_input) in enumerate(zip(gts, inputs, strict=True)):
        place, before = (f".{number}", f"{number}/") if numbered else ("", "")
        found, more = _find(one_gt, one_input, key, place, recursive)
        pairs += [Pair(before + pair.name, pair.gt, pair.input) for pair in found]
        problems += more
    return sorted(pairs, key=lambda pair: pair.name), problems


def held_out(pairs: list[Pair], fraction: float) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: the `fraction` (at least one) whose names hash lowest is held out.

    It depends on names alone, so that runs of another seed or with a few more images are scored on the same ones.
    Pairs of one gt stay together, lest a run be scored on images that it learned.
    """
    scenes: dict[Path | Cell, str] = {}  # gt: the name of its first pair
    for pair in pairs:
        scenes.setdefault(pair.gt, pair.name)
    count = max(1, round(fraction * len(scenes)))
    ranked = sorted(scenes, key=lambda gt: hashlib.sha256(scenes[gt].encode()).digest())
    chosen = set(ranked[:count])
    return [p for p in pairs if p.gt not in chosen], [p for p in pairs if p.gt in chosen]


def _elements(source: str | list[str], key: str) -> tuple[list, list[str]]:
    """What pairs with the other side's elements: the folders and patterns of a list, or one list of files."""
    if isinstance(source, str):
        return [source], []
    places = [place for place in source if _is_pattern(place) or _locate(place).is_dir()]
    if not places:
        return [source], []
    files = [place for place in source if _locate(place).is_file()]
    if files:
        return [], [f"{key}: {files[0]} is a file, {places[0]} is not; list either files, or folders and patterns"]
    return source, []


def _find(
    gt: str | list[str], input: str | list[str] | None, key: str, place: str, recursive: bool
) -> tuple[list[Pair], list[str]]:
    """The pairs of one folder, pattern or list of files; `place` follows `gt` and `input` in dotted keys."""
    if isinstance(gt, str) and isinstance(input, str) and _is_pattern(gt) and _is_pattern(input):
        numbers = [pattern.count("{}") for pattern in (gt, input)]
        if numbers[0] != numbers[1] and all(numbers):
            return [], [
                f"{key}: gt{place} holds {{}} {numbers[0]} times, input{place} {numbers[1]} times ('{gt}', '{input}'); "
                "write it equally often, for the parts that both share"
            ]
    found, problems = _files(gt, f"{key}.gt{place}", recursive)
    gts = {name: file.path for name, file in _by_name([_File(f.path, f.gt_name) for f in found], problems).items()}
    if input is None:
        return [Pair(name, path) for name, path in gts.items()], problems
    found, more = _files(input, f"{key}.input{place}", recursive, gts)
    problems += more
    inputs = _by_name(found, problems)
    problems += _without_partner(gts, inputs, key, place, gt, input)
    pairs = [Pair(name, gts[file.gt_name], file.path) for name, file in inputs.items() if file.gt_name in gts]
    same = [pair.gt for pair in pairs if pair.gt == pair.input]
    if same:
        problems.append(
            f"{key}: input and gt are the same file for {len(same)} of {len(pairs)} pairs ({same[0]}); name two "
            f"folders, or patterns {PATTERNS}"
        )
    return pairs, problems


def _without_partner(
    gts: dict[str, Path], inputs: dict[str, _File], key: str, place: str, gt: str | list[str], input: str | list[str]
) -> list[str]:
    if not gts or not inputs:  # said already
        return []
    served = {file.gt_name for file in inputs.values()}
    if served.isdisjoint(gts):
        one_gt, one_input = next(iter(gts)), next(iter(inputs.values())).gt_name
        return [
            f"{key}: none of the {len(gts)} names of gt{place} (such as '{one_gt}') is among the {len(inputs)} of "
            f"input{place} (such as '{one_input}'); rename the files, or pair them by patterns {PATTERNS}"
        ]
    lonely = [(file.path, file.gt_name, f"gt{place} ({gt})") for file in inputs.values() if file.gt_name not in gts]
    lonely += [(path, name, f"input{place} ({input})") for name, path in gts.items() if name not in served]
    return [f"{path}: has no partner '{name}' among {key}.{others}" for path, name, others in lonely]


def _by_name(files: list[_File], problems: list[str]) -> dict[str, _File]:
    """The files by name, in order; adds a problem for each that has the name of another, or one that is no text."""
    named: dict[str, _File] = {}
    for file in sorted(files, key=lambda file: (file.name, file.path)):
        if not _is_text(str(file.path)):
            problems.append(f"{str(file.path)!r}: is no name in UTF-8; rename it")
        elif file.name in named:
            twin = named[file.name].path
            twin = twin if twin.name == file.path.name else twin.name  # of another folder
            problems.append(f"{file.path}: has the same name '{file.name}' as {twin}; rename one")
        else:
            named[file.name] = file
    return named


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(source: str | list[str], key: str, recursive: bool, gt_names: Container[str] = ()) -> Files:
    if isinstance(source, str):
        return _matching(source, key, gt_names) if _is_pattern(source) else _in_folder(_locate(source), key, recursive)
    paths = [_locate(name) for name in source]
    problems = [f"{key}: no such file: {path}" for path in paths if not path.is_file()]
    return [_File(path, path.stem) for path in paths if path.is_file()], problems


def _in_folder(folder: Path, key: str, recursive: bool) -> Files:
    if not folder.is_dir():
        what = "is a file; give a list [file, ...]" if folder.exists() else f"does not exist (looked in {Path.cwd()})"
        return [], [f"{key}: {folder} {what}"]
    found = [
        _File(folder / name, PurePath(name).with_suffix("").as_posix())
        for name in matches("**/*" if recursive else "*", folder)  # hidden ones are left out
        if PurePath(name).suffix.lower() in EXTENSIONS and (folder / name).is_file()
    ]
    if found:
        return found, []
    inside, hint = sum(path.is_dir() for path in folder.iterdir()), ""
    if inside and not recursive:
        hint = f"; it has {inside} folders: set recursive: true, name one of them, or a pattern {folder}/{{}}/NAME.png"
    return [], [f"{key}: no images in {folder} (looked for {' '.join(sorted(EXTENSIONS))}){hint}"]


def _is_pattern(place: str) -> bool:
    return ("{}" in place or "*" in place) and not _locate(place).exists()


def _matching(pattern: str, key: str, gt_names: Container[str]) -> Files:
    if "{}" not in pattern:
        return [], [
            f"{key}: the pattern '{pattern}' holds * but no {{}}, so nothing says which images belong together; "
            "write {} in place of the * that names the image"
        ]
    located = _locate(pattern)
    root = Path()
    for part in located.parts:  # what exists as it is written is no pattern, whatever its name holds
        if "{}" in part or not (root / part).exists():
            break
        root /= part
    inside = located.relative_to(root).as_posix()
    tokens = re.split(r"(\{\}|(?<![^/])\*\*/|\*)", inside)
    found = [
        _File(root / name, *reading)
        for name in set(matches(_as_glob(inside), root))
        if (root / name).is_file() and (reading := _reading(tokens, PurePath(name).as_posix(), gt_names))
    ]
    first = root / inside.partition("/")[0]
    hint = f"; {first} does not exist" if not re.search(r"\{\}|\*", first.name) else ""
    return found, [] if found else [f"{key}: no file matches {located}{hint}"]


def _as_glob(pattern: str) -> str:
    parts = pattern.split("/")
    return "/".join(p if p == "**" else "*".join(map(escape, re.split(r"(?:\{\}|\*)+", p))) for p in parts)


def _reading(tokens: list[str], text: str, gt_names: Container[str]) -> tuple[str, str] | None:
    """What stands for {} and for * in `text`: the longest {} that names a gt, else the first to be found."""
    kinds = [token for token in tokens if token in ("{}", "*")]
    first = best = None
    for parts in islice(_divisions(tokens, text), _MOST_READINGS):
        named = list(zip(kinds, parts, strict=True))
        name, variant = ("/".join(part for kind, part in named if kind == k and part) for k in ("{}", "*"))
        first = first or (name, variant)
        if name in gt_names and (best is None or len(name) > len(best[0])):
            best = name, variant
    return best or first


def _divisions(tokens: list[str], text: str) -> Iterator[tuple[str, ...]]:
    """Every way in which wildcards and the literal text between them make up `text`: what stands for each {} and *."""
    token, *rest = tokens
    if token in ("{}", "*"):
        ends = range(int(token == "{}"), len(text.partition("/")[0]) + 1)
        if len(rest) == 1:  # the last wildcard: all but the end of the text
            ends = [end for end in (len(text) - len(rest[0]),) if end in ends]
        for end in reversed(ends):
            for others in _divisions(rest, text[end:]):
                yield text[:end], *others
    elif token == "**/":
        for start in (0, *(slash.end() for slash in re.finditer("/", text))):
            yield from _divisions(rest, text[start:])
    elif rest and text.startswith(token):
        yield from _divisions(rest, text[len(token) :])
    elif text == token:
        yield ()


def _locate(name: str) -> Path:
    """The path that a configuration names; `package:skimage/data/x.png` lies inside an installed package."""
    scheme, _, rest = name.partition(":")
    if scheme != "package":
        return Path(name).expanduser()
    package, _, inside = rest.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: the package '{package}' is not installed; pip install it")
    return Path(next(iter(spec.submodule_search_locations))) / inside
