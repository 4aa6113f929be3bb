"""The folder of decoded images: each list of images is decoded once, by one process, into a store that all runs share.

A store is named by what it was made from (paths, sizes, times of change, channels), so a changed image gives another
store. It appears whole or not at all; a file beside it says what it holds.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from accel_restore.data.images import MAX_PIXELS, Header, Source, Unusable, read_header, read_image
from accel_restore.data.store import Store, write_store
from accel_restore.errors import UserError

_VERSION = 2  # of the stored layout

Size = tuple[int, int]  # height, width
Track = Callable[[Iterable, int, str], Iterable]  # (items, how many, what is done to them) → the items, with progress


def default_cache() -> Path:
    """Where decoded images are kept unless `data.cache_dir` says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "accel_restore"


@dataclass(frozen=True)
class Opened:
    """Images that were asked for: their store, None with problems; each one's size, None where it is unusable."""

    store: Store | None
    sizes: list[Size | None]
    problems: list[str]  # one sentence for each unusable image


def open_stores(
    wanted: Sequence[Sequence[Source]],
    channels: int,
    cache: Path,
    track: Track | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[Opened]:
    """The store of each list of images, built where it does not exist yet, by one process while others wait for it.

    Raises: UserError where the disk is too small for all of them, or the cache folder cannot be written.
    """
    lists = [_Images(images, channels, cache) for images in wanted]
    try:
        if not all(images.path.exists() for images in lists):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / "building.lock"):
                _build(cache, [images for images in lists if not images.path.exists()], track, max_pixels)
    except OSError as error:
        raise UserError(
            f"{cache}: cannot keep decoded images there ({error.strerror or error}); set data.cache_dir"
        ) from error
    return [images.open() for images in lists]


class _Images:
    """A list of images on its way to a store; one that stands twice in it is stored once."""

    def __init__(self, images: Sequence[Source], channels: int, cache: Path):
        self.unique = list(dict.fromkeys(images))
        row = {image: number for number, image in enumerate(self.unique)}
        self.rows = np.array([row[image] for image in images], np.int64)
        self.channels = channels
        self.headers: list[Header | Unusable] = []
        self.problems: list[str] = []
        identity = json.dumps([_VERSION, channels, list(map(_identity, self.unique))])
        self.path = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.arrow"

    def read_headers(self, max_pixels: int) -> None:
        self.headers = list(_each(lambda image: read_header(image, max_pixels), self.unique))
        good = [header for header in self.headers if isinstance(header, Header)]
        self.bits = max((header.bits for header in good), default=8)  # 16 where one image needs them
        nbytes = [header.height * header.width * self.channels * self.bits // 8 for header in good]
        self.nbytes, self.largest = sum(nbytes), max(nbytes, default=0)

    def build(self, track: Track | None, max_pixels: int) -> None:
        """Decode all images into the store, or, where one is unusable, collect all problems and leave no file."""
        staging = self.path.with_suffix(f".{os.getpid()}.tmp")
        decoded = _each(lambda image: read_image(image, self.channels, self.bits, max_pixels), self.unique)
        if track is not None:
            decoded = track(decoded, len(self.unique), f"decoding {len(self.unique)} images, once")
        try:
            write_store(staging, self._usable(decoded), self.largest)
            if not self.problems:
                self.path.with_suffix(".json").write_text(json.dumps(self._description()))
                staging.replace(self.path)
        finally:
            staging.unlink(missing_ok=True)

    def _usable(self, decoded: Iterable[np.ndarray | Unusable]) -> Iterator[np.ndarray]:
        for image, pixels in zip(self.unique, decoded, strict=True):
            if isinstance(pixels, Unusable):
                self.problems.append(f"{image}: {pixels}")
            elif not self.problems:
                yield pixels

    def _description(self) -> dict[str, Any]:
        return {"images": len(self.unique), "first": str(self.unique[0]), "channels": self.channels, "bits": self.bits}

    def open(self) -> Opened:
        if not self.problems:
            with suppress(OSError):
                os.utime(self.path)  # when it was last used
            store = Store(self.path, self.channels, self.rows)
            return Opened(store, [tuple(size) for size in store.sizes.tolist()], [])
        known = {
            image: (header.height, header.width)
            for image, header in zip(self.unique, self.headers, strict=bool(self.headers))
            if isinstance(header, Header)
        }
        return Opened(None, [known.get(self.unique[row]) for row in self.rows], self.problems)


def _identity(image: Source) -> list | None:
    if not isinstance(image, Path):
        return [image.identity]
    try:
        stat = image.stat()
    except OSError:
        return None  # reading it says why
    return [str(image.resolve()), stat.st_size, stat.st_mtime_ns]


def _build(cache: Path, lists: list[_Images], track: Track | None, max_pixels: int) -> None:
    """Build stores, in a cache folder that is locked; the disk must have room for all before the first is begun."""
    for leftover in cache.glob("*.tmp"):  # of a build that was killed
        leftover.unlink()
    for images in lists:
        images.read_headers(max_pixels)
    need, free = sum(images.nbytes for images in lists), shutil.disk_usage(cache).free
    if need > free:
        raise UserError(
            f"{cache}: decoded images need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free some, or set data.cache_dir to another disk"
        )
    for images in lists:
        if not images.path.exists():  # a list may be asked for twice
            images.build(track, max_pixels)


def num_cores() -> int:
    """The cores that this process may use, which in a container or under Slurm are not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _each(read: Callable, images: list[Source]) -> Iterator[Any]:
    """What `read` gives for each image, in order, or its Unusable; done ahead on all cores (decoders free the lock)."""

    def attempt(image: Source) -> Any:
        try:
            return read(image)
        except Unusable as error:
            return error

    workers = num_cores()
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for image in images:
            ahead.append(pool.submit(attempt, image))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@dataclass(frozen=True)
class Stored:
    """A store in the cache folder."""

    name: str
    nbytes: int
    last_used: float  # seconds since 1970
    description: dict[str, Any]  # images, first, channels, bits


def list_stores(cache: Path) -> list[Stored]:
    """The stores of a cache folder, those used last first."""
    found = []
    for path in cache.glob("*.arrow"):
        description = path.with_suffix(".json")
        known = json.loads(description.read_text()) if description.exists() else {}
        stat = path.stat()
        found.append(Stored(path.stem, stat.st_size, stat.st_mtime, known))
    return sorted(found, key=lambda store: -store.last_used)


def delete_store(cache: Path, name: str) -> None:
    """Remove a store; a run that reads it goes on undisturbed."""
    for suffix in (".arrow", ".json"):
        (cache / f"{name}{suffix}").unlink(missing_ok=True)
