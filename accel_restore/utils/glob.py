"""Find files below a folder by patterns with `*` and `**`, whatever symbolic links there make of it."""

import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from accel_restore.errors import UserError

_MOST_LINKED = 10_000  # folders that are reached through links; a dozen that link to each other make millions


def matches(pattern: str, root: Path) -> Iterator[str]:
    """The paths below `root` that match a pattern of `glob`, in which `**/` stands for folders of any depth.

    Hidden files and folders are left out, unless the pattern names them. Links to folders are followed, but no folder
    is entered again within itself, where `glob` goes forty times round a loop, and through two for ever.

    Raises: UserError where links make more folders than there can be images for.
    """
    before, stars, rest = pattern.partition("**/")
    if not stars or (before and not before.endswith("/")):
        yield from glob(pattern, root_dir=root)
        return
    for top in glob(before, root_dir=root) if before else [""]:
        for folder in _folders(root / top):
            yield from (Path(top, folder, name).as_posix() for name in matches(rest, root / top / folder))


def _folders(top: Path) -> Iterator[str]:
    """`top`, as "", and the folders below it, relative to it."""
    linked = 0
    waiting = [("", (_identity(top),), False)]
    while waiting:
        folder, above, through_link = waiting.pop()
        yield folder
        try:
            entries = list(os.scandir(top / folder))
        except OSError:  # as `glob` passes over what it may not read
            continue
        for entry in entries:
            identity = None if entry.name.startswith(".") else _identity(entry)
            if identity is None:
                continue
            link = through_link or entry.is_symlink()
            linked += link
            if linked > _MOST_LINKED:
                raise UserError(
                    f"{top}: symbolic links make more than {_MOST_LINKED:,} folders of it; remove those that lead back "
                    "to where they are"
                )
            if identity not in above:
                waiting.append((f"{folder}/{entry.name}".lstrip("/"), (*above, identity), link))


def _identity(entry: Path | os.DirEntry) -> tuple[int, int] | None:
    """What tells a folder apart under all its names; None for what is no folder, such as a link to itself."""
    try:
        if not entry.is_dir():
            return None
        status = entry.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
