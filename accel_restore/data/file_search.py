"""Find image files in folders, by patterns and in lists, and name each file."""

import importlib.util
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from glob import escape
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

from accel_restore.errors import UserError
from accel_restore.utils.glob import LeftOut, in_any_form, matches, nfc

# Of the formats that are decoded. A test compares them with Pillow's, and with .npy and .exr.
EXTENSIONS = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif",
    ".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs",
    ".npy", ".exr",
}  # fmt: skip
# Of raw files of cameras, which often are in a folder with developed ones.
RAW_EXTENSIONS = {
    ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raw", ".rwl", ".raf",
    ".pef", ".srw", ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr", ".mef", ".mos", ".mrw", ".x3f", ".gpr",
}  # fmt: skip
_OF_THE_SYSTEM = {"Thumbs.db", "desktop.ini"}  # that Windows' file manager writes
_MAX_READINGS = 10_000  # per name: {}*{}*{}.png can match a name of 200 letters in 60 million ways


class NamedFile(NamedTuple):
    """An image file, with the name of the gt that it belongs to."""

    path: str  # as text: a million objects of pathlib take seconds
    gt_name: str  # in NFC, like all names
    variant: str = ""  # the part matched by *: distinguishes the inputs of one gt

    @property
    def name(self) -> str:
        """The name of the pair."""
        return f"{self.gt_name}/{self.variant}" if self.variant else self.gt_name


Files = tuple[list[NamedFile], list[str]]  # with the problems found


@dataclass
class Searched:
    """Where a search has looked. As long as these folders do not change, it finds the same files."""

    notes: list[str] = field(default_factory=list)  # on what was left out of folders
    folders: set[str] = field(default_factory=set)
    has_broken_links: bool = False  # which may lead somewhere later, though no folder changes

    def add(self, root: Path, left_out: LeftOut) -> None:
        """Add the folders of a search below `root`."""
        self.folders.update(str(root / folder) for folder in left_out.searched)
        self.has_broken_links |= bool(left_out.broken)


@dataclass(frozen=True)
class ImageSearch:
    """The images that a search has found, and what it has left out."""

    names: list[str]  # relative to the root; also links that lead nowhere, so that reading them reports it
    problems: list[str]  # one for each folder that cannot be read
    left_out: str  # in words, the number of other entries by kind; empty if there are none
    entries: LeftOut  # the same, by their names


def search_images(pattern: str, root: Path, hint: str = "") -> ImageSearch:
    """Find the images below `root` that match a pattern of `glob`; `hint` says how to search sub-folders too.

    Raw files are left out if there are other images.
    """
    left_out, names, raws, others = LeftOut(), list[str](), list[str](), Counter[str]()
    for name in [*matches(pattern, root, left_out), *left_out.broken]:
        suffix = f".{name.rpartition('.')[2].lower()}"  # many times faster than pathlib
        if suffix in EXTENSIONS:
            names.append(name)
        elif suffix in RAW_EXTENSIONS:
            raws.append(name)
        elif PurePath(name).name not in _OF_THE_SYSTEM:
            kind = PurePath(name).suffix.lower() or "without a suffix"
            others["broken (links that lead nowhere)" if name in left_out.broken else kind] += 1
    if names:
        others.update(PurePath(name).suffix.lower() for name in raws)
    others.update({"hidden": len(left_out.hidden), "special (pipes, devices)": len(left_out.special)})
    counted = [f"{count} {kind}" for kind, count in sorted(others.items()) if count]
    if folders := len(left_out.folders):
        counted.append(f"{folders} folder{'s' * (folders > 1)}{hint}")
    return ImageSearch(sorted(names or raws), unreadable_folders(root, left_out), ", ".join(counted), left_out)


def unreadable_folders(root: Path, left_out: LeftOut) -> list[str]:
    """Return a problem for each folder that a search could not read."""
    return [
        f"{root / name}: cannot be read ({reason}); change its permissions, or move it elsewhere"
        for name, reason in left_out.unreadable.items()
    ]


def find_files(
    source: str | list[str], key: str, recursive: bool, gt_names: Container[str], searched: Searched
) -> Files:
    """Return the images of a folder, a pattern or a list of files, and the problems found.

    If a name can be divided between {} and * in several ways, the longest part that is in `gt_names` is chosen for {}.
    Where it has looked, and what is left out of a folder, is added to `searched`.
    """
    if isinstance(source, str):
        if is_pattern(source):
            return _matching(source, key, gt_names, searched)
        return _in_folder(locate(source), key, recursive, searched)
    paths = [locate(name) for name in source]
    searched.folders.update(str(path.parent) for path in paths)
    problems = [f"{key}: no such file: {path}" for path in paths if not (path.is_file() or path.is_symlink())]
    return [NamedFile(str(path), nfc(path.stem)) for path in paths if path.is_file() or path.is_symlink()], problems


def is_pattern(place: str) -> bool:
    """Whether a configured place is a pattern and not the name of an existing file or folder."""
    return ("{}" in place or "*" in place) and not locate(place).exists()


def locate(name: str) -> Path:
    """Return the path of a configured place; `package:skimage/data/x.png` is inside an installed package.

    Raises: UserError if the package is not installed.
    """
    scheme, _, rest = name.partition(":")
    if scheme != "package":
        return in_any_form(Path(name).expanduser())
    package, _, inside = rest.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: the package '{package}' is not installed; pip install it")
    return Path(next(iter(spec.submodule_search_locations))) / inside


def _in_folder(folder: Path, key: str, recursive: bool, searched: Searched) -> Files:
    if not folder.is_dir():
        what = "is a file; give a list [file, ...]" if folder.exists() else f"does not exist (looked in {Path.cwd()})"
        return [], [f"{key}: {folder} {what}"]
    search = search_images("**/*" if recursive else "*", folder, " (recursive: true searches them)")
    searched.add(folder, search.entries)
    problems = [f"{key}: {problem}" for problem in search.problems]
    if search.names or problems:
        searched.notes += [f"{key}: left out of {folder}: {search.left_out}"] if search.left_out else []
        before = str(folder / "x")[:-1]  # with a slash, unless it is empty
        return [NamedFile(before + name, nfc(name.rpartition(".")[0])) for name in search.names], problems
    has = f"; it holds {search.left_out}" if search.left_out else ""
    if (folders := len(search.entries.folders)) and not recursive:
        pattern = f"{folder}/{{}}/NAME.png"
        has = f"; it has {folders} folders: set recursive: true, name one of them, or a pattern {pattern}"
    return [], [f"{key}: no images in {folder} (looked for {' '.join(sorted(EXTENSIONS))}){has}"]


def _matching(pattern: str, key: str, gt_names: Container[str], searched: Searched) -> Files:
    if "{}" not in pattern:
        return [], [
            f"{key}: the pattern '{pattern}' has * but no {{}}, so it does not say which images form a pair; "
            "write {} in place of the * that names the image"
        ]
    located = locate(pattern)
    root = root_of(located)
    inside = located.relative_to(root).as_posix()
    tokens = re.split(r"(\{\}|(?<![^/])\*\*/|\*)", nfc(inside))
    left_out = LeftOut()
    names = {*matches(_as_glob(inside), root, left_out), *left_out.broken}
    searched.add(root, left_out)
    before = str(root / "x")[:-1]  # with a slash, unless it is empty
    found = [NamedFile(before + name, *parts) for name in names if (parts := _reading(tokens, nfc(name), gt_names))]
    if left_out.unreadable:
        return found, [f"{key}: {problem}" for problem in unreadable_folders(root, left_out)]
    first = root / inside.partition("/")[0]
    hint = f"; {first} does not exist" if not re.search(r"\{\}|\*", first.name) else ""
    return found, [] if found else [f"{key}: no file matches {located}{hint}"]


def root_of(pattern: Path) -> Path:
    """Return the folder that a pattern is searched in: its first parts that exist."""
    root = Path()
    for part in pattern.parts:  # an existing folder is not a pattern, even if its name contains {} or *
        if "{}" in part or not (root / part).exists():
            break
        root /= part
    return root


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
