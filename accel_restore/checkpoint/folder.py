"""The folder of a run: which files a run writes there, and which of them it removes when it starts again."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from accel_restore.config.schema import Config
from accel_restore.data.identity import RECORD
from accel_restore.errors import UserError, raise_problems
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.utils.files import discard

# What a run writes. --overwrite removes these and nothing else, and only if status.json shows that it was a run.
MARKER, CONFIG = "status.json", "config.yaml"
RUN_FILES = (
    "checkpoints", CONFIG, "metrics.jsonl", "memory.jsonl", "metrics.damaged.jsonl", "memory.damaged.jsonl", WEIGHTS,
    "samples", "curves.png", "report.html", "plan.json", RECORD, "wandb", "tensorboard", "hub", "audit",
    "audit.json", MARKER,
)  # fmt: skip
_NO_PATHS = ("run.name", "run.dir", "tracking.")
_MOST_LINKS = 40  # that lead to one file, as in Linux


def refuse_foreign(folder: Path) -> None:
    """Raise `UserError` if a folder that is not a run holds files with the names of a run's files."""
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if found and MARKER not in found:
        raise UserError(
            f"{folder}: holds {', '.join(found)}, but no run; choose another run.name, or move these files so that "
            "they are not overwritten"
        )


def remove_run(folder: Path) -> None:
    """Remove the files of a run, except config.yaml, which the new run replaces: it may be the --config of this run.

    status.json is the last, so that a crash leaves a folder that is still a run's.
    """
    for name in RUN_FILES:
        if name != CONFIG:
            discard(folder / name)


def check_inputs(folder: Path, inputs: Iterable[tuple[str, Path]]) -> None:
    """Raise `UserError` if starting the run in `folder` again would remove one of its `inputs`: (key, path)."""
    lost: dict[str, list[Path]] = {}
    for key, path in find_lost(folder, inputs):
        lost.setdefault(key, []).append(path)
    raise_problems(
        f"{folder}: starting again removes the files of the run in this folder, and the new run needs some of them; "
        "choose another run.name, or copy them to another folder and name the copies",
        [f"{key}: {first}" + (f" and {len(more):,} more" if more else "") for key, (first, *more) in lost.items()],
    )


def find_lost(folder: Path, inputs: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return the inputs, each with its key, that disappear when the run in `folder` is removed."""
    if not folder.is_dir():
        return []
    removed = _Removed(folder)
    return [(key, path) for key, path in inputs if removed.entries and removed.includes(path)]


def paths_in(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the texts of a configuration that may be paths, with their keys; also arguments of the user's own code."""
    for key, text in _texts(config.model_dump(mode="json")):
        if not key.startswith(_NO_PATHS):
            yield key, Path(os.path.expanduser(text))  # noqa: PTH111  pathlib raises for an unknown home


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, dict | list):
        for name, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _texts(item, f"{key}.{name}".lstrip("."))


class _Removed:
    """The files of a run as the file system identifies them, whatever path or link leads to them."""

    def __init__(self, folder: Path):
        self.folder, self.here = _identity(folder.stat()), os.getcwd()  # noqa: PTH109  texts: fast for 100,000 images
        self.entries = {_identity((folder / name).lstat()) for name in RUN_FILES if os.path.lexists(folder / name)}
        self.known: dict[str, bool] = {"/": False}  # folders

    def includes(self, path: str | Path, links: int = 0) -> bool:
        """Return whether `path` leads through a file or folder that is removed."""
        path = os.path.join(self.here, path)  # noqa: PTH118
        above = os.path.dirname(path)  # noqa: PTH120
        if above not in self.known:
            entries = [above, *map(str, Path(above).parents)][::-1]
            self.known[above] = any(self._is(entry, links) for entry in entries)
        return self.known[above] or self._is(path, links)

    def _is(self, entry: str, links: int) -> bool:
        try:
            status = os.lstat(entry)
            if _identity(status) in self.entries and _identity(Path(entry).parent.stat()) == self.folder:
                return True
            is_link = stat.S_ISLNK(status.st_mode) and links < _MOST_LINKS
            return is_link and self.includes(Path(entry).parent / Path(entry).readlink(), links + 1)
        except (OSError, ValueError):  # it does not exist, or is no path
            return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
