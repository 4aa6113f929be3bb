"""Find files below a folder by patterns with `*` and `**`; symbolic links are followed, without loops."""

import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path


def matches(pattern: str, root: Path) -> Iterator[str]:
    """Yield the paths below `root` that match a pattern of `glob`, in which `**/` stands for folders of any depth.

    Hidden files and folders are left out unless the pattern names them. Links to folders are followed, but `**/` enters
    each folder once, however many links lead to it.
    """
    before, stars, rest = pattern.partition("**/")
    if not stars or (before and not before.endswith("/")):
        yield from glob(pattern, root_dir=root)
        return
    for top in glob(before, root_dir=root) if before else [""]:
        for folder in _folders(root / top):
            yield from (Path(top, folder, name).as_posix() for name in matches(rest, root / top / folder))


def _folders(top: Path) -> Iterator[Path]:
    """Yield the folders at and below `top`, relative to it."""
    visited: set[tuple[int, int]] = set()
    for name, inside, _ in os.walk(top, followlinks=True):
        folder = Path(name)
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            inside.clear()
            continue
        visited.add(identity)
        yield folder.relative_to(top)
        # In a fixed order, and folders before links to them, so that a file is found under the same path everywhere.
        visible = (each for each in inside if not each.startswith("."))
        inside[:] = sorted(visible, key=lambda each: ((folder / each).is_symlink(), each))
