"""The cache folder of decoded images: one process decodes a list of images once, into a store that all runs share.

The name of a store is a hash of its sources, so a changed image gives another store. A file is unchanged if its path,
size, inode and times are; reading 100,000 files to compare their content would take minutes at every start. A store
appears complete or not at all, with a digest of the pixels of each image; a JSON file next to it describes it.
"""

import json
import os
import re
import shlex
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from accel_restore.config.data import MAX_PIXELS
from accel_restore.data.decode import ImageSource, read_header, read_image
from accel_restore.data.image_formats import Header, ImageError
from accel_restore.data.image_list import ImageColumn, ImageList
from accel_restore.data.pixels import Range, common_kind, is_float
from accel_restore.data.store import Store, digest_of, write_store
from accel_restore.data.store_lock import StoreLock
from accel_restore.errors import UserError
from accel_restore.utils.cgroups import num_cores
from accel_restore.utils.files import read_object, replace_file, sync_folder
from accel_restore.utils.places import user_cache
from accel_restore.utils.redaction import redacted
from accel_restore.utils.words import counted

_VERSION = 3  # of the stored layout
# The names of stores, of unfinished stores, and of unfinished descriptions.
_NAME = re.compile(r"[0-9a-f]{32}\.(arrow|[0-9]+\.tmp)|\.[0-9a-f]{16}\.[0-9]+\.tmp")
_SCHEMA_BYTES = 4096  # at the start of an Arrow file; they hold the names of its columns
_DESCRIBED: dict[str, type] = {
    "images": int, "first": str, "channels": int, "bits": int, "bytes": int, "dtype": str, "values": list,
}  # fmt: skip
_DECODED_AHEAD = 2**30  # bytes of decoded images waiting to be written

Size = tuple[int, int]  # height, width
Track = Callable[[Iterable, int, str], Iterable]  # (items, their number, description) → the items, with progress shown


def default_cache() -> Path:
    """Return the folder of decoded images if `data.cache_dir` is not set."""
    return user_cache() / "accel_restore"


@dataclass(frozen=True)
class Opened:
    """A list of images: their store (None if there are problems), and their sizes."""

    store: Store | None
    heights_widths: np.ndarray  # (N, 2); 0 for an unusable image
    problems: list[str]  # one for each unusable image
    values: Range | None = None  # the smallest and the largest of float pixels

    @property
    def sizes(self) -> list[Size | None]:
        """The size of each image, None for an unusable one."""
        return [(height, width) if height else None for height, width in self.heights_widths.tolist()]


def open_stores(
    wanted: Sequence[Sequence[ImageSource] | ImageColumn],
    channels: int | Sequence[int],
    cache: Path,
    track: Track | None = None,
    max_pixels: int = MAX_PIXELS,
    log: Callable[[str], None] | None = None,
) -> list[Opened]:
    """Return the store of each list of images, with `channels` channels, of each list if it is one; build missing ones.

    One process builds a store while others wait for it; `log` reports the wait, and `track` shows the progress.

    Raises: UserError if the disk has too little room for all stores, the cache folder cannot be written, or a store is
    damaged.
    """
    columns = [images if isinstance(images, ImageColumn) else ImageColumn.of(images) for images in wanted]
    counts = [channels] * len(columns) if isinstance(channels, int) else channels
    # An image that is listed twice is stored once.
    builds = [_Build(column.images, count, cache) for column, count in zip(columns, counts, strict=True)]
    by_path = {build.path: build for build in builds}
    try:
        if missing := [build for _, build in sorted(by_path.items()) if not build.hold()]:
            cache.mkdir(parents=True, exist_ok=True)
            _build_missing(cache, missing, track, max_pixels, log)
    except OSError as error:
        raise UserError(
            f"{cache}: cannot store decoded images there ({error.strerror or error}); set data.cache_dir"
        ) from error
    return [by_path[build.path].open(column.rows) for column, build in zip(columns, builds, strict=True)]


def reopen(path: Path, channels: int, rows: np.ndarray) -> Opened:
    """Return images of a store that another process on this machine has opened.

    Raises: UserError if it has been deleted.
    """
    try:
        return _opened(path, channels, rows, StoreLock(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); start again") from error


def _opened(path: Path, channels: int, rows: np.ndarray, lock: StoreLock | None) -> Opened:
    about = _described(path)
    store, values = Store(path, channels, rows, lock, about.get("dtype")), about.get("values")
    return Opened(store, store.sizes, [], values and tuple(values))


class _Build:
    """A list of images, and the store that is built from it."""

    def __init__(self, images: ImageList, channels: int, cache: Path):
        self.images, self.channels = images, channels
        self.sizes: list[Size | None] = []
        self.problems: list[str] = []
        self.lock: StoreLock | None = None  # once the store exists
        self.path = cache / f"{images.digest([_VERSION, channels], [])[:32]}.arrow"
        self.refusal = self.path.with_suffix(".problems")

    def hold(self) -> bool:
        """Return whether the store exists, with the number of bytes that were written; it then stays."""
        try:
            self.lock = StoreLock(self.path)
        except (FileNotFoundError, BlockingIOError):  # missing, or being deleted
            return False
        if self.lock.nbytes != _described(self.path).get("bytes"):
            self.lock = None
        return self.lock is not None

    def was_refused_since(self, time: float) -> bool:
        """Whether another process has found problems since then; if so, adopt them."""
        try:
            if self.refusal.stat().st_mtime < time:
                return False
        except FileNotFoundError:
            return False
        found = read_object(self.refusal)
        if not ("sizes" in found and found.get("problems")):  # damaged
            return False
        self.sizes, self.problems = [size and tuple(size) for size in found["sizes"]], found["problems"]
        return True

    def read_headers(self, max_pixels: int) -> None:
        """Determine the size of each image, the kind of the pixels and the bytes of the store."""
        headers = list(each_ahead(lambda image: read_header(image, max_pixels), self.images))
        self.sizes = [(head.height, head.width) if isinstance(head, Header) else None for head in headers]
        good = [header for header in headers if isinstance(header, Header)]
        self.kind = common_kind(header.dtype for header in good)  # the deeper one if kinds differ
        if self.kind is None:
            one, other = (
                next((image, head) for image, head in zip(self.images, headers, strict=True)
                     if isinstance(head, Header) and is_float(head.dtype) == floats) for floats in (True, False)
            )  # fmt: skip
            self.problems.append(
                f"{one[0]}: has {one[1].dtype} pixels, but {other[0]} has {other[1].dtype}; convert all images of a "
                "source to floats, or all to integers"
            )
        depth = self.kind.itemsize if self.kind is not None else 0
        nbytes = [header.height * header.width * self.channels * depth for header in good]
        self.nbytes, self.largest = sum(nbytes), max(nbytes, default=0)

    def build(self, track: Track | None, max_pixels: int) -> None:
        """Decode all images into the store; if one is unusable, collect all problems and leave no store."""
        staging = self.path.with_suffix(f".{os.getpid()}.tmp")
        at_once, ranges = max(1, _DECODED_AHEAD // max(1, self.largest)), list[Range]()

        def decode(image: ImageSource) -> tuple[np.ndarray, str]:
            pixels = read_image(image, self.channels, self.kind, max_pixels)
            if is_float(pixels.dtype):
                ranges.append((float(pixels.min()), float(pixels.max())))
            return pixels, digest_of(pixels)

        decoded: Iterable[tuple[np.ndarray, str] | ImageError] = each_ahead(decode, self.images, at_once)
        if track is not None:
            decoded = track(decoded, len(self.images), f"decoding {counted(len(self.images), 'image')}, once")
        try:
            write_store(staging, self._usable(decoded))
            if self.problems:
                found = {"sizes": self.sizes, "problems": redacted(self.problems)}
                replace_file(self.refusal, json.dumps(found).encode())
            else:
                replace_file(self.path.with_suffix(".json"), json.dumps(self._description(staging, ranges)).encode())
                staging.replace(self.path)
                sync_folder(self.path.parent)
                self.hold()
        finally:
            staging.unlink(missing_ok=True)

    def _usable(self, decoded: Iterable[tuple[np.ndarray, str] | ImageError]) -> Iterator[tuple[np.ndarray, str]]:
        for image, result in zip(self.images, decoded, strict=True):
            if isinstance(result, ImageError):
                self.problems.append(f"{image}: {result}")
            elif not self.problems:
                yield result

    def _description(self, staging: Path, ranges: list[Range]) -> dict[str, Any]:
        assert self.kind is not None
        values = [min(low for low, _ in ranges), max(high for _, high in ranges)] if ranges else None
        return {
            "images": len(self.images),
            "first": redacted(str(self.images[0])),
            "channels": self.channels,
            "bits": 8 * self.kind.itemsize,
            **({"dtype": str(self.kind), "values": values} if values else {}),  # stores of integers say it by "bits"
            "bytes": staging.stat().st_size,
        }

    def open(self, rows: np.ndarray) -> Opened:
        """Return the images at `rows`, in this order."""
        if self.problems:
            sizes = np.array([size or (0, 0) for size in self.sizes], np.int64)
            return Opened(None, sizes[rows], self.problems)
        with suppress(OSError):
            os.utime(self.path)  # the time of last use
        try:
            return _opened(self.path, self.channels, rows, self.lock)
        except (OSError, ValueError, KeyError) as error:
            command = f"accel-restore cache delete {self.path.stem[:12]} --dir {shlex.quote(str(self.path.parent))}"
            raise UserError(
                f"{self.path}: cannot be read ({error}); remove it by `{command}`, and the next run decodes its images "
                "again"
            ) from error


def _build_missing(
    cache: Path, builds: list[_Build], track: Track | None, max_pixels: int, log: Callable[[str], None] | None
) -> None:
    """Build stores, each under its lock. The disk must have room for all before the first one is started."""
    start = time.time()
    with ExitStack() as locks:
        for build in builds:  # in the order of their names, so that two processes never wait for each other
            lock = FileLock(build.path.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if log is not None:
                    log("waiting for another process that decodes the images")
                lock.acquire()
            locks.callback(lock.release)
        builds = [build for build in builds if not (build.hold() or build.was_refused_since(start))]
        for build in builds:
            for leftover in cache.glob(f"{build.path.stem}.*.tmp"):  # from a process that was killed
                leftover.unlink(missing_ok=True)
            build.read_headers(max_pixels)
        need, free = sum(build.nbytes for build in builds), shutil.disk_usage(cache).free
        if need > free:
            raise UserError(
                f"{cache}: decoded images need {need / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; "
                "free some space, or set data.cache_dir to another disk"
            )
        for build in builds:
            build.build(track, max_pixels)


def each_ahead(read: Callable, items: Iterable, at_once: int | None = None) -> Iterator[Any]:
    """Yield `read(item)`, or the ImageError that it raises, for each item in order.

    The items are read ahead on all cores (decoders release the GIL). At most `at_once` results are held.
    """

    def attempt(item: Any) -> Any:
        try:
            return read(item)
        except ImageError as error:
            return error

    workers = num_cores()
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for item in items:
            ahead.append(pool.submit(attempt, item))
            if len(ahead) >= min(2 * workers, at_once or 2 * workers):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@dataclass(frozen=True)
class StoredSource:
    """A store in the cache folder."""

    name: str
    nbytes: int
    last_used: float  # seconds since 1970
    description: dict[
        str, Any
    ]  # images, first, channels, bits, dtype, bytes; empty for the remains of a killed process


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
            found.append(StoredSource(path.name.removesuffix(".arrow"), stat.st_size, stat.st_mtime, _described(path)))
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
    if path.suffix == ".arrow" and _described(path):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_SCHEMA_BYTES)
    except OSError:
        return False
    if path.suffix == ".tmp" and (not start or start.startswith(b"{")):  # not yet written, or a description
        return True
    return all(name in start for name in (b"pixels", b"height", b"width", b"large_binary"))


def _described(path: Path) -> dict[str, Any]:
    """The description next to a store, without values of another type than a store's; empty if there is none."""
    found = read_object(path.with_suffix(".json"))
    return {key: value for key, value in found.items() if type(value) is _DESCRIBED.get(key)}
