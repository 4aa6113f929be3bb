"""Decode once: images as raw bytes in a memory-mapped Arrow file, shared by all ranks through the page cache.

A file is named by what it was made from (paths, sizes, times of change, channels), so a changed image gives another
store, and runs that use the same images share one.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from filelock import FileLock

from accel_restore.data.images import Unusable, image_size, read_image
from accel_restore.errors import UserError

_VERSION = 1  # of the stored layout
_ROWS_BYTES = 64 * 2**20  # pixels buffered before a write
FEATURES = {"pixels": "large_binary", "height": "int32", "width": "int32"}


class Store:
    """A sequence of images, uint8 (H, W, C): read-only views of the memory-mapped file, nothing is copied."""

    def __init__(self, path: Path, channels: int):
        from datasets import Dataset

        table = Dataset.from_file(str(path)).data
        heights, widths = (table.column(name).to_numpy() for name in ("height", "width"))
        self.sizes = np.stack([heights, widths], axis=1).astype(np.int64)  # (N, 2)
        self._views = [
            pixels.reshape(height, width, channels)
            for pixels, (height, width) in zip(_values(table.column("pixels")), self.sizes.tolist(), strict=True)
        ]

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._views[index]


def _values(column) -> Iterator[np.ndarray]:
    """The bytes of each value of an Arrow large_binary column, without copying (`as_buffer` would copy)."""
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        starts = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        pixels = np.frombuffer(data, np.uint8)
        for start, end in pairwise(starts):
            yield pixels[start:end]


def default_cache() -> Path:
    """Where decoded images are kept unless `data.cache_dir` says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "accel_restore"


Size = tuple[int, int]  # height, width


def open_store(
    files: list[Path], channels: int, cache: Path, announce: Callable[[str], None] = print
) -> tuple[Store | None, list[Size | None], list[str]]:
    """The store of `files`, built where it does not exist yet; the size of each image; and the problems found.

    With problems (unusable images, each named) there is no store; a size that cannot be read is None. Ranks that come
    while another builds wait for it.

    Raises: UserError where the disk is too small or the cache folder cannot be written.
    """
    try:
        name = _fingerprint(files, channels)
    except OSError as error:
        return None, [None] * len(files), [f"{error.filename}: cannot be read ({error.strerror})"]
    path = cache / f"{name}.arrow"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):
            if not path.exists():
                for leftover in cache.glob(f"{name}.*.tmp"):  # of a build that was killed
                    leftover.unlink()
                sizes, problems = _build(path, files, channels, announce)
                if problems:
                    return None, sizes, problems
    except OSError as error:
        raise UserError(
            f"{cache}: cannot keep decoded images there ({error.strerror or error}); set data.cache_dir"
        ) from error
    store = Store(path, channels)
    return store, [tuple(size) for size in store.sizes.tolist()], []


def _fingerprint(files: list[Path], channels: int) -> str:
    stats = [(str(file.resolve()), file.stat()) for file in files]
    identity = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return hashlib.sha256(json.dumps([_VERSION, channels, identity]).encode()).hexdigest()[:32]


def _build(
    path: Path, files: list[Path], channels: int, announce: Callable[[str], None]
) -> tuple[list[Size | None], list[str]]:
    """Decode all files into `path`, which appears whole or, with problems, not at all; their sizes and the problems."""
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    sizes: list[Size | None] = []
    for file in files:
        try:
            sizes.append(image_size(file))
        except Unusable:  # reading it says why
            sizes.append(None)
    areas = [height * width * channels for height, width in filter(None, sizes)]
    need = sum(areas)
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise UserError(
            f"{path.parent}: decoded images need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free some, or set data.cache_dir to another disk"
        )
    announce(f"decoding {len(files)} images once into {path.parent} ({need / 1e6:.0f} MB)")
    features = Features({name: Value(kind) for name, kind in FEATURES.items()})
    staging = path.with_suffix(f".{os.getpid()}.tmp")
    problems: list[str] = []
    try:
        rows = max(1, _ROWS_BYTES // max(areas, default=1))
        with ArrowWriter(path=str(staging), features=features, writer_batch_size=rows) as writer:
            for file, pixels in zip(files, _decoded(files, channels), strict=True):
                if isinstance(pixels, Unusable):
                    problems.append(f"{file}: {pixels}")
                else:
                    height, width, _ = pixels.shape
                    writer.write({"pixels": pixels.tobytes(), "height": height, "width": width})
            if not problems:
                writer.finalize()
        if not problems:
            staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    return sizes, problems


def _decoded(files: list[Path], channels: int) -> Iterator[np.ndarray | Unusable]:
    """The pixels of each file in order, decoded ahead on all cores (decoders release the interpreter lock)."""

    def decode(file: Path) -> np.ndarray | Unusable:
        try:
            return read_image(file, channels)
        except Unusable as error:
            return error

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for file in files:
            ahead.append(pool.submit(decode, file))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
