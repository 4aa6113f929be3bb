"""The files of the cache folder: a store, NAME.arrow, and a JSON file next to it that describes it."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from accel_restore.data.store_file import MARK
from accel_restore.data.store_lock import StoreLock
from accel_restore.utils.files import read_object
from accel_restore.utils.places import user_cache

# The names of stores, of unfinished stores, and of unfinished descriptions.
_NAME = re.compile(r"[0-9a-f]{32}\.(arrow|[0-9]+\.tmp)|\.[0-9a-f]{16}\.[0-9]+\.tmp")
_SCHEMA_BYTES = 4096  # at the start of an Arrow file; they hold the names of its columns
_DESCRIBED: dict[str, type] = {
    "images": int, "first": str, "channels": int, "bits": int, "codec": str, "bytes": int,
}  # fmt: skip


def default_cache() -> Path:
    """Return the folder of decoded images if `data.cache_dir` is not set."""
    return user_cache() / "accel_restore"


def lock_store(path: Path) -> StoreLock | None:
    """Return a lock on a store that is complete and stays while the lock exists; None if there is no such store."""
    try:
        lock = StoreLock(path)
    except (FileNotFoundError, BlockingIOError):  # missing, or being deleted
        return None
    return lock if lock.nbytes == described(path).get("bytes") else None


@dataclass(frozen=True)
class StoredSource:
    """A store in the cache folder."""

    name: str
    nbytes: int
    last_used: float  # seconds since 1970
    description: dict[str, Any]  # see _DESCRIBED; empty for the remains of a killed process


def list_stores(cache: Path) -> list[StoredSource]:
    """Return the stores of a cache folder, and the remains of killed processes; the last used first.

    Other files are left out, such as the Arrow files of other programs.
    """
    found = []
    try:
        paths = list(cache.iterdir())
    except FileNotFoundError:  # no run has decoded images yet
        return []
    for path in filter(_is_own, paths):
        with suppress(FileNotFoundError):  # a process has just finished or deleted it
            stat = path.stat()
            found.append(StoredSource(path.name.removesuffix(".arrow"), stat.st_size, stat.st_mtime, described(path)))
    return sorted(found, key=lambda store: -store.last_used)


def delete_store(cache: Path, name: str) -> bool:
    """Delete a store and return True, or False if a process is building or reading it."""
    try:
        with FileLock(cache / f"{name.lstrip('.').partition('.')[0]}.lock", timeout=0):
            with suppress(FileNotFoundError):
                _ = StoreLock(cache / f"{name}.arrow", exclusive=True)
            for suffix in ("", ".arrow", ".json"):
                (cache / f"{name}{suffix}").unlink(missing_ok=True)
    except (Timeout, BlockingIOError):
        return False
    return True


def _is_own(path: Path) -> bool:
    """Whether a file has a name that only stores have, and is described as one or has the content of one."""
    if not _NAME.fullmatch(path.name) or not path.is_file():
        return False
    if path.suffix == ".arrow" and described(path):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_SCHEMA_BYTES)
    except OSError:
        return False
    if path.suffix == ".tmp" and (not start or start.startswith(b"{")):  # not yet written, or a description
        return True
    by_datasets = b"large_binary"  # stores of earlier versions, which `datasets` wrote, have it in their schema
    return all(name in start for name in (b"pixels", b"height", b"width")) and (MARK in start or by_datasets in start)


def described(path: Path) -> dict[str, Any]:
    """Return the description next to a store, without values of another type than a store's; empty without one."""
    found = read_object(path.with_suffix(".json"))
    return {key: value for key, value in found.items() if type(value) is _DESCRIBED.get(key)}
