"""Find files below a folder by patterns with `*` and `**`, and record what is left out.

Symbolic links are followed, without loops. Names are compared in one Unicode form (NFC): `Ü` may be one code point or
two, depending on the system that wrote the name.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from glob import has_magic
from pathlib import Path

_OF_THE_SYSTEM = {".DS_Store", ".localized"}  # hidden files that a file manager writes


@dataclass
class LeftOut:
    """What a search has left out: paths relative to its root."""

    hidden: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # in the place of files
    broken: list[str] = field(default_factory=list)  # links that lead nowhere
    special: list[str] = field(default_factory=list)  # pipes, sockets, devices
    unreadable: dict[str, str] = field(default_factory=dict)  # folders, with the reason
    searched: set[str] = field(default_factory=set)  # folders that were read, or in which a name was looked up


def nfc(text: str) -> str:
    """Return the text in the Unicode form in which names are compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def in_any_form(path: Path) -> Path:
    """Return the path or, if it does not exist, an existing one that differs only in its Unicode form."""
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if not os.path.lexists(found / part):
            part = next((name for name in _names(found) if nfc(name) == nfc(part)), part)
        found /= part
    return found if os.path.lexists(found) else path


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def matches(pattern: str, root: Path, left_out: LeftOut | None = None) -> Iterator[str]:
    """Yield the files below `root` that match a pattern of `glob`, in which `**/` stands for folders of any depth.

    Hidden files and folders are left out unless the pattern names them. Links to folders are followed, but `**/` enters
    each folder once, however many links lead to it.
    """
    yield from _walk(root, "", pattern.split("/"), left_out or LeftOut())


def _walk(root: Path, folder: str, parts: list[str], left_out: LeftOut, is_deep: bool = False) -> Iterator[str]:
    """Yield the files below `root`/`folder` that match the parts of a pattern; `is_deep`: an earlier part was `**`."""
    first, *rest = parts
    if first == "**" and rest:
        for inside in _folders(root, folder, left_out):
            yield from _walk(root, inside, rest, left_out, is_deep=True)
        return
    for entry in _entries(root, folder, first, left_out):
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") and not first.startswith("."):
            if entry.name not in _OF_THE_SYSTEM:
                left_out.hidden.append(path)
        elif rest and _is(entry.is_dir):
            yield from _walk(root, path, rest, left_out, is_deep)
        elif rest and entry.is_symlink():  # to no folder, so far
            left_out.searched.add(path)
        elif not rest and _is(entry.is_file):
            yield path
        elif not rest and not (is_deep and _is(entry.is_dir)):
            _kind(entry, left_out).append(path)


def _kind(entry: os.DirEntry | Path, left_out: LeftOut) -> list[str]:
    """Return the list of `left_out` that an entry belongs to if it is not a file."""
    if _is(entry.is_dir):
        return left_out.folders
    return left_out.broken if entry.is_symlink() and not _is(Path(entry).exists) else left_out.special


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a loop of links, or a target in a folder that may not be entered
        return False


def _entries(root: Path, folder: str, part: str, left_out: LeftOut) -> Sequence[os.DirEntry | Path]:
    """Return what one part of a pattern matches in a folder, by name; record the folder, and if it cannot be read."""
    left_out.searched.add(folder)
    if not has_magic(part) and os.path.lexists(root / folder / part):
        return [root / folder / part]  # without reading the folder
    fits = re.compile(translate(nfc(os.path.normcase(part)))).match
    try:
        with os.scandir(root / folder) as entries:
            found = [entry for entry in entries if part == "*" or fits(nfc(os.path.normcase(entry.name)))]
    except FileNotFoundError:  # removed since its name was read
        return []
    except OSError as error:
        left_out.unreadable[folder] = error.strerror or str(error)
        return []
    return sorted(found, key=lambda entry: entry.name)


def _folders(root: Path, top: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the folders at and below `top`, relative to `root`."""
    visited: set[tuple[int, int]] = set()

    def relative(path: str) -> str:
        found = Path(os.path.relpath(path, root)).as_posix()
        return "" if found == "." else found

    def fail(error: OSError) -> None:
        left_out.unreadable[relative(error.filename)] = error.strerror or str(error)

    for name, inside, _ in os.walk(root / top, onerror=fail, followlinks=True):
        left_out.searched.add(relative(name))
        try:
            status = Path(name).stat()
        except FileNotFoundError:  # removed since its name was read
            continue
        except OSError as error:  # its folder may be listed, but not entered
            fail(error)
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            inside.clear()
            continue
        visited.add(identity)
        yield relative(name)
        # In a fixed order, and folders before links to them, so that a file is found under the same path everywhere.
        visible = (each for each in inside if not each.startswith("."))
        inside[:] = sorted(visible, key=lambda each: (_is(Path(name, each).is_symlink), each))
