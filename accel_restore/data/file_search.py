"""Find image files in folders, by patterns and in lists, and name each file."""

import importlib.util
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import islice
from pathlib import Path, PurePath

from accel_restore.errors import UserError
from accel_restore.utils.glob import matches

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
_MAX_READINGS = 10_000  # per name: {}*{}*{}.png can match a name of 200 letters in 60 million ways


@dataclass(frozen=True)
class NamedFile:
    """An image file, with the name of the gt that it belongs to."""

    path: Path
    gt_name: str
    variant: str = ""  # the part matched by *: distinguishes the inputs of one gt

    @property
    def name(self) -> str:
        """The name of the pair."""
        return f"{self.gt_name}/{self.variant}" if self.variant else self.gt_name


Files = tuple[list[NamedFile], list[str]]  # with the problems found


def find_files(source: str | list[str], key: str, recursive: bool, gt_names: Container[str] = ()) -> Files:
    """Return the images of a folder, a pattern or a list of files, and the problems found.

    If a name can be divided between {} and * in several ways, the longest part that is in `gt_names` is chosen for {}.
    """
    if isinstance(source, str):
        return _matching(source, key, gt_names) if is_pattern(source) else _in_folder(locate(source), key, recursive)
    paths = [locate(name) for name in source]
    problems = [f"{key}: no such file: {path}" for path in paths if not path.is_file()]
    return [NamedFile(path, path.stem) for path in paths if path.is_file()], problems


def is_pattern(place: str) -> bool:
    """Whether a configured place is a pattern and not the name of an existing file or folder."""
    return ("{}" in place or "*" in place) and not locate(place).exists()


def locate(name: str) -> Path:
    """Return the path of a configured place; `package:skimage/data/x.png` is inside an installed package.

    Raises: UserError if the package is not installed.
    """
    scheme, _, rest = name.partition(":")
    if scheme != "package":
        return Path(name).expanduser()
    package, _, inside = rest.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: the package '{package}' is not installed; pip install it")
    return Path(next(iter(spec.submodule_search_locations))) / inside


def _in_folder(folder: Path, key: str, recursive: bool) -> Files:
    if not folder.is_dir():
        what = "is a file; give a list [file, ...]" if folder.exists() else f"does not exist (looked in {Path.cwd()})"
        return [], [f"{key}: {folder} {what}"]
    found = [
        NamedFile(folder / name, PurePath(name).with_suffix("").as_posix())
        for name in matches("**/*" if recursive else "*", folder)  # without hidden files
        if PurePath(name).suffix.lower() in EXTENSIONS and (folder / name).is_file()
    ]
    if found:
        return found, []
    inside, hint = sum(path.is_dir() for path in folder.iterdir()), ""
    if inside and not recursive:
        hint = f"; it has {inside} folders: set recursive: true, name one of them, or a pattern {folder}/{{}}/NAME.png"
    return [], [f"{key}: no images in {folder} (looked for {' '.join(sorted(EXTENSIONS))}){hint}"]


def _matching(pattern: str, key: str, gt_names: Container[str]) -> Files:
    if "{}" not in pattern:
        return [], [
            f"{key}: the pattern '{pattern}' has * but no {{}}, so it does not say which images form a pair; "
            "write {} in place of the * that names the image"
        ]
    located = locate(pattern)
    root = Path()
    for part in located.parts:  # an existing folder is not a pattern, even if its name contains {} or *
        if "{}" in part or not (root / part).exists():
            break
        root /= part
    inside = located.relative_to(root).as_posix()
    tokens = re.split(r"(\{\}|(?<![^/])\*\*/|\*)", inside)
    found = [
        NamedFile(root / name, *reading)
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
    """The parts of `text` matched by {} and by *: the longest {} that names a gt, or the first match."""
    kinds = [token for token in tokens if token in ("{}", "*")]
    first = best = None
    for parts in islice(_divisions(tokens, text), _MAX_READINGS):
        named = list(zip(kinds, parts, strict=True))
        name, variant = ("/".join(part for kind, part in named if kind == k and part) for k in ("{}", "*"))
        first = first or (name, variant)
        if name in gt_names and (best is None or len(name) > len(best[0])):
            best = name, variant
    return best or first


def _divisions(tokens: list[str], text: str) -> Iterator[tuple[str, ...]]:
    """Every way to match `text` with wildcards and the literal text between them: the part matched by each {} and *."""
    token, *rest = tokens
    if token in ("{}", "*"):
        ends: Sequence[int] = range(int(token == "{}"), len(text.partition("/")[0]) + 1)
        if len(rest) == 1:  # the last wildcard: the literal end of the pattern fixes its end
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
