"""The cache folder of decoded images: one process decodes a list of images once, into a store that all runs share.

The name of a store is a hash of its sources, so a changed image gives another store, which takes the unchanged images
from existing ones. A file is unchanged if its path, size, inode and times are; reading 100,000 files to compare their
content would take minutes at every start. A store appears complete or not at all, with a digest of the pixels of each
image; a JSON file next to it describes it.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from accel_restore.config.data import MAX_PIXELS
from accel_restore.data.cache_folder import lock_store
from accel_restore.data.decode import ImageSource, read_header, read_image
from accel_restore.data.image_formats import ImageError
from accel_restore.data.image_list import ImageColumn, ImageList
from accel_restore.data.parallel import each_ahead
from accel_restore.data.pixels import KINDS, Range, common_kind, is_float
from accel_restore.data.reuse import find_stored, source_of
from accel_restore.data.store import Store, damaged_store
from accel_restore.data.store_file import Format, StoredImage, encode, facts_of, write_store
from accel_restore.data.store_lock import StoreLock
from accel_restore.errors import UserError
from accel_restore.utils.files import read_object, replace_file, sync_folder
from accel_restore.utils.redaction import redacted
from accel_restore.utils.words import counted

_VERSION = 3  # of the stored layout
_DECODED_AHEAD = 2**30  # bytes of decoded images waiting to be written
_TRIED = 8  # images that are encoded to estimate the size of a compact store
_MARGIN = 1.1  # of that estimate

Size = tuple[int, int]  # height, width
Track = Callable[[Iterable, int, str], Iterable]  # (items, their number, description) → the items, with progress shown


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
    codec: str = "raw",
) -> list[Opened]:
    """Return the store of each list of images, with `channels` channels, of each list if it is one; build missing ones.

    One process builds a store while others wait for it; `log` reports the wait, and `track` shows the progress.

    Raises: UserError if the disk has too little room for all stores, the cache folder cannot be written, or a store is
    damaged.
    """
    columns = [images if isinstance(images, ImageColumn) else ImageColumn.of(images) for images in wanted]
    counts = [channels] * len(columns) if isinstance(channels, int) else channels
    # An image that is listed twice is stored once.
    builds = [
        _Build(column.images, count, cache, codec, max_pixels) for column, count in zip(columns, counts, strict=True)
    ]
    by_path = {build.path: build for build in builds}
    try:
        if missing := [build for _, build in sorted(by_path.items()) if not build.hold()]:
            cache.mkdir(parents=True, exist_ok=True)
            _build_missing(cache, missing, track, log)
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
        store = Store(path, channels, rows, StoreLock(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); start again") from error
    return Opened(store, store.sizes, [], store.values)


class _Build:
    """A list of images, and the store that is built from it."""

    def __init__(self, images: ImageList, channels: int, cache: Path, codec: str, max_pixels: int):
        self.images, self.channels, self.codec, self.max_pixels = images, channels, codec, max_pixels
        self.sizes: list[Size | None] = []
        self.problems: list[str] = []
        self.lock: StoreLock | None = None  # once the store exists
        digest = images.digest([_VERSION, channels], [codec] * (codec != "raw"))
        self.path = cache / f"{digest[:32]}.arrow"
        self.refusal = self.path.with_suffix(".problems")

    def hold(self) -> bool:
        """Return whether the store exists, with the number of bytes that were written; it then stays."""
        self.lock = lock_store(self.path)
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

    def survey(self) -> None:
        """Find the images that are stored already; determine the size and kind of each, and the format of the store."""
        self.sources = [source_of(identity) for identity in self.images.identities()]
        stored = find_stored(self.path.parent, self.sources, self.channels)
        places = [
            [place for place in stored.get(source, ()) if math.prod(place.size) <= self.max_pixels]
            for source in self.sources
        ]
        unknown = [image for image, those in zip(self.images, places, strict=True) if not those]
        headers = each_ahead(lambda image: read_header(image, self.max_pixels), unknown)
        known = [those[0] if those else next(headers) for those in places]
        self.kinds = [None if isinstance(one, ImageError) else one.dtype for one in known]
        self.sizes = [None if isinstance(one, ImageError) else one.size for one in known]
        self.kind = common_kind(kind for kind in self.kinds if kind is not None)  # the deeper one if they differ
        if self.kind is None:
            self.problems.append(self._mixture())
        self.format = Format(self.codec, self.channels, KINDS[0] if self.kind is None else self.kind)
        usable = [[place for place in those if place.store.format.dtype == self.kind] for those in places]
        self.reused = {number: those[0] for number, those in enumerate(usable) if those}
        pixel = self.channels * self.format.dtype.itemsize
        nbytes = [math.prod(size) * pixel for size in self.sizes if size is not None]
        self.nbytes, self.largest = sum(nbytes), max(nbytes, default=0)  # without compression

    def _mixture(self) -> str:
        """The problem of floats among integers."""
        (one, floats), (other, integers) = (
            next((image, kind) for image, kind in zip(self.images, self.kinds, strict=True)
                 if kind is not None and is_float(kind) is wanted) for wanted in (True, False)
        )  # fmt: skip
        return (
            f"{one}: has {floats} pixels, but {other} has {integers}; convert all images of a source to floats, or all "
            "to integers"
        )

    def estimate(self) -> int:
        """Return how many bytes the store will take: those of a few images, encoded on trial, tell the others."""
        if self.codec == "raw":
            return self.nbytes
        tried = range(0, len(self.images), -(-len(self.images) // _TRIED))
        made = [image for image in each_ahead(self._make, tried) if isinstance(image, StoredImage)]
        values = sum(image.facts.height * image.facts.width for image in made) * self.channels
        share = sum(len(image.pixels) for image in made) / max(1, values * self.format.dtype.itemsize)
        return int(_MARGIN * share * self.nbytes)

    def build(self, track: Track | None) -> None:
        """Write all images into the store; if one is unusable, collect all problems and leave no store."""
        staging = self.path.with_suffix(f".{os.getpid()}.tmp")
        at_once = max(1, _DECODED_AHEAD // max(1, self.largest))
        made: Iterable[StoredImage | ImageError] = each_ahead(self._make, range(len(self.images)), at_once)
        if track is not None:
            made = track(made, len(self.images), self._task())
        try:
            write_store(staging, self._usable(made), self.format, self._check_room)
            if self.problems:
                found = {"sizes": self.sizes, "problems": redacted(self.problems)}
                replace_file(self.refusal, json.dumps(found).encode())
            else:
                replace_file(self.path.with_suffix(".json"), json.dumps(self._description(staging)).encode())
                staging.replace(self.path)
                sync_folder(self.path.parent)
                self.hold()
        finally:
            staging.unlink(missing_ok=True)
            self.reused.clear()  # the other stores may be deleted again

    def _make(self, number: int) -> StoredImage:
        """Return an image as the store holds it. Raises: ImageError."""
        if number in self.reused and (stored := self.reused[number].stored_as(self.format)) is not None:
            return stored
        pixels = read_image(self.images[number], self.channels, self.kind, self.max_pixels)
        if (kind := self.kinds[number]) is None:
            kind = pixels.dtype
        return encode(pixels, facts_of(pixels, kind, self.sources[number]), self.format)

    def _task(self) -> str:
        decoded, reused = len(self.images) - len(self.reused), len(self.reused)
        if not decoded:
            return f"taking {counted(reused, 'image')} from other stores"
        return f"decoding {counted(decoded, 'image')}, once" + f"; {reused} from other stores" * bool(reused)

    def _check_room(self, nbytes: int) -> None:
        """Raises: UserError if the disk has no room for these bytes; it is never filled up."""
        if (free := shutil.disk_usage(self.path.parent).free) < nbytes:
            raise _no_room(self.path.parent, f"more than the {free / 1e9:.1f} GB that are left")

    def _usable(self, made: Iterable[StoredImage | ImageError]) -> Iterator[StoredImage]:
        for image, result in zip(self.images, made, strict=True):
            if isinstance(result, ImageError):
                self.problems.append(f"{image}: {result}")
            elif not self.problems:
                yield result

    def _description(self, staging: Path) -> dict[str, Any]:
        return {
            "images": len(self.images),
            "first": redacted(str(self.images[0])),
            "channels": self.channels,
            "bits": 8 * self.format.dtype.itemsize,
            **({"dtype": str(self.kind)} if is_float(self.format.dtype) else {}),
            "codec": self.codec,
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
            store = Store(self.path, self.channels, rows, self.lock)
        except (OSError, ValueError, KeyError) as error:
            raise damaged_store(self.path, error) from error
        return Opened(store, store.sizes, [], store.values)


def _build_missing(cache: Path, builds: list[_Build], track: Track | None, log: Callable[[str], None] | None) -> None:
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
            build.survey()
        free = shutil.disk_usage(cache).free
        if sum(build.nbytes for build in builds) > free and (need := sum(build.estimate() for build in builds)) > free:
            raise _no_room(cache, f"{need / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free")
        for build in builds:
            build.build(track)


def _no_room(cache: Path, need: str) -> UserError:
    return UserError(f"{cache}: decoded images need {need}; free some space, or set data.cache_dir to another disk")
