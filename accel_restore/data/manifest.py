"""What a search for pairs has found, kept in the cache: the next start only asks whether folders or files changed.

The times of a folder change when a file in it is added, removed or renamed. As long as those of all folders are the
same, a search finds the same files, and none is made. A file that is rewritten in place changes only its own times, so
every file is asked for these at every start. With `trust_folders` it is not: then nobody notices such a file, and a run
trains on its former pixels.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from accel_restore.data.columns import Texts, map_columns, save_columns
from accel_restore.data.file_search import EXTENSIONS, RAW_EXTENSIONS, Searched, is_pattern, locate, root_of
from accel_restore.data.image_list import MISSING, ImageColumn, ImageList, read_status, rows_of_four
from accel_restore.data.pairs import Pairs, PairTable, find_pairs
from accel_restore.utils.files import sync_folder
from accel_restore.utils.redaction import redacted

FOLDER = "scans"  # of the manifests, in the cache folder
_VERSION = 1  # of their layout
_SETTLED = 2.0  # seconds; the times of a folder that was just changed may stay the same at a second change
_KEPT = 90 * 86400  # seconds; a manifest that was not used for this long is removed


@dataclass(frozen=True)
class Place:
    """Where pairs are searched: the arguments of `find_pairs`."""

    gt: str | list[str]
    input: str | list[str] | None
    key: str
    recursive: bool = False

    def digest(self) -> str:
        """Return a hash of all that decides which folders are searched, and by which rule."""
        sides = [self.gt, self.input or []]
        places = [place for side in sides for place in ([side] if isinstance(side, str) else side)]
        located = [
            [str(locate(place).absolute()), str(root_of(locate(place)).absolute()) if is_pattern(place) else None]
            for place in places
        ]
        suffixes = sorted(EXTENSIONS | RAW_EXTENSIONS)
        facts = [_VERSION, suffixes, self.gt, self.input, self.key, self.recursive, located]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@dataclass
class Scan:
    """The pairs of a place. `save` keeps them for the next start, with what was computed of them since."""

    pairs: Pairs
    problems: list[str]
    notes: list[str] = field(default_factory=list)  # on what was left out of folders
    path: Path | None = None  # of the manifest; None: nothing is kept
    folders: Texts = field(default_factory=lambda: Texts.of([]))  # that were searched
    folder_status: np.ndarray = field(default_factory=lambda: rows_of_four([]))  # device, inode, times of change in ns
    saved: dict[str, Any] | None = None  # the digests in the manifest, None if it has to be written

    def save(self) -> None:
        """Write the manifest, unless nothing is new. A cache that cannot be written costs the next start time only."""
        if self.path is None or self.problems or self.saved == self._computed():
            return
        table = self.pairs.table
        arrays: dict[str, np.ndarray | Texts] = {"names": table.names, "ranks": table.ranks}
        for side, column in _sides(table).items():
            if (column.images.status[:, 0] == MISSING).any():
                return
            arrays |= {side: column.images.texts, f"{side}.status": column.images.status, f"{side}.rows": column.rows}
        arrays |= {"folders": self.folders, "folders.status": self.folder_status}
        staging = self.path.with_name(f".{self.path.stem}.{os.getpid()}.tmp")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_columns(staging, arrays, {"version": _VERSION, "notes": self.notes, "digests": self._computed()})
                staging.replace(self.path)
            finally:
                staging.unlink(missing_ok=True)
            sync_folder(self.path.parent)
            _remove_unused(self.path.parent)

    def _computed(self) -> dict[str, dict[str, str]]:
        return {side: dict(column.images.digests) for side, column in _sides(self.pairs.table).items()}


def scan_files(place: Place, cache: Path, trust_folders: bool = False) -> Scan:
    """Find the pairs of a place, in the manifest of an earlier search if no folder has changed since.

    Raises: as `find_pairs`.
    """
    path = None
    with suppress(OSError):  # a name that is too long, which the search reports
        path = cache / FOLDER / f"{place.digest()}.arrow"
        if (known := _restored(path, trust_folders)) is not None:
            return known
    return _searched(place, path)


def _searched(place: Place, path: Path | None) -> Scan:
    searched, start = Searched(), time.time()
    pairs, problems = find_pairs(place.gt, place.input, place.key, place.recursive, searched=searched)
    folders = Texts.of(sorted(searched.folders))
    status = _folder_status(folders)
    is_settled = (status[:, 2:] < (start - _SETTLED) * 1e9).all() and (status[:, 0] != MISSING).all()
    places = folders.tolist()
    has_secret = redacted(places) != places  # nothing with a secret of the environment is written
    can_be_kept = is_settled and not searched.has_broken_links and not has_secret
    return Scan(pairs, problems, searched.notes, path if can_be_kept else None, folders, status)


def _restored(path: Path, trust_folders: bool) -> Scan | None:
    """Return what the manifest holds, if there is one and no folder has changed, with the present status of files."""
    try:
        arrays, facts = map_columns(path)
        if facts["version"] != _VERSION or (_folder_status(arrays["folders"]) != arrays["folders.status"]).any():
            return None
        columns, saved = {}, facts["digests"]
        for side in ("gt", "input"):
            if side in arrays:
                texts, status, rows = arrays[side], arrays[f"{side}.status"], arrays[f"{side}.rows"]
                now = status if trust_folders else read_status(texts)
                if (now[:, 0] == MISSING).any():
                    return None
                columns[side] = ImageColumn(ImageList(texts, status=now), rows)
                if np.array_equal(now, status):
                    columns[side].images.digests.update(facts["digests"][side])
                else:
                    saved = None
        pairs = Pairs(PairTable(arrays["names"], columns["gt"], columns.get("input"), arrays["ranks"]))
        notes = [str(note) for note in facts["notes"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or damaged
        return None
    with suppress(OSError):
        os.utime(path)  # the time of last use
    return Scan(pairs, [], notes, path, arrays["folders"], arrays["folders.status"], saved)


def _sides(table: PairTable) -> dict[str, ImageColumn]:
    return {"gt": table.gt} | ({"input": table.input} if table.input is not None else {})


def _folder_status(folders: Texts) -> np.ndarray:
    """Return (F, 4): device, inode, times of modification and change of each folder in ns; MISSING without one."""

    def ask(folder: str) -> list[int]:
        try:
            status = os.stat(folder or ".")  # noqa: PTH116
        except (OSError, ValueError):
            return [MISSING] * 4
        return [status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]

    return rows_of_four([number for folder in folders for number in ask(folder)])


def _remove_unused(folder: Path) -> None:
    for path in folder.glob("*.arrow"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _KEPT:
                path.unlink()
