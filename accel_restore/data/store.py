"""Decoded images in one memory-mapped file, shared by all ranks of a machine through the page cache.

The parts of a crop are close together in the file: a disk reads at most a few short ranges per crop.
"""

import ctypes
import mmap
import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from accel_restore.data.pixels import Range
from accel_restore.data.store_file import STRIP, StoreTable
from accel_restore.data.store_lock import StoreLock
from accel_restore.data.tiles import DamagedTileError, body_of_tile, decode_tile, touched_tiles
from accel_restore.errors import UserError

_LIBC = ctypes.CDLL(None) if hasattr(mmap, "MADV_WILLNEED") else None  # None on Windows


class Store:
    """A sequence of images (H, W, C) in one file, all uint8, uint16, float16 or float32.

    `sizes` (N, 2) holds their heights and widths.

    With `read_ahead` a crop is requested from the disk as a whole before it is copied. This is for data larger than
    memory: otherwise the mapping waits for one page after the other, about 15 times slower.
    """

    def __init__(self, path: Path, channels: int, rows: np.ndarray | None = None, lock: StoreLock | None = None):
        """`rows` are the indices of the file's images that make up the sequence. The store keeps the lock."""
        self.path, self.channels, self.read_ahead, self._lock = path, channels, False, lock
        self.table = StoreTable(path, channels)
        self._rows = np.arange(len(self.table.sizes)) if rows is None else rows
        self.sizes = self.table.sizes[self._rows]
        self.format, self.dtype = self.table.format, self.table.format.dtype
        self.chunks, self.nbytes = self.table.pixels.chunks, self.table.pixels.nbytes  # of the whole file

    @property
    def values(self) -> Range | None:
        """The smallest and the largest value of the float pixels in the file, None for integers."""
        return self.table.values

    @property
    def digests(self) -> list[str]:
        """The digest of the pixels of each image."""
        digests = self.table.digests
        return [digests[row] for row in self._rows.tolist()]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return a copy of the whole image (H, W, C)."""
        height, width = self.sizes[index].tolist()
        image = np.empty((height, width, self.channels), self.dtype)
        self.crop(image, index, 0, 0)
        return image

    def crop(self, out: np.ndarray, index: int, top: int, left: int) -> None:
        """Copy the part of an image with its corner at (top, left) into `out` (h, w, C).

        Raises: UserError if the store is damaged.
        """
        row, (height, width) = self._rows[index], self.sizes[index].tolist()
        if self.table.ends is None:
            self._crop_strips(out, self.table.pixels[row], (height, width), top, left)
            return
        with self._damage():
            self._crop_tiles(out, self.table.pixels[row], self.table.ends[row], (height, width), top, left)

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """Return the tiles of an image in a compact store, and their ends, as they are in the file.

        Raises: UserError if the store is damaged.
        """
        assert self.table.ends is not None
        row = self._rows[index]
        tiles, ends = self.table.pixels[row], self.table.ends[row]
        with self._damage():
            for start, end in pairwise([0, *ends.view(np.int64).tolist()]):
                body_of_tile(tiles[start:end])
        return tiles.tobytes(), ends.tobytes()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """Report damaged tiles with a remedy."""
        try:
            yield
        except DamagedTileError as error:
            raise damaged_store(self.path, error) from error

    def _crop_strips(self, out: np.ndarray, pixels: np.ndarray, size: tuple[int, int], top: int, left: int) -> None:
        height, right, pixel = len(out), left + out.shape[1], self.channels * self.dtype.itemsize
        for strip in range(left - left % STRIP, right, STRIP):
            width = min(STRIP, size[1] - strip)
            first = (strip * size[0] + top * width) * pixel
            rows = pixels[first : first + height * width * pixel]
            if self.read_ahead:
                _advise(rows)
            rows = rows.view(self.dtype).reshape(height, width, self.channels)
            begin, end = max(left, strip), min(right, strip + width)
            out[:, begin - left : end - left] = rows[:, begin - strip : end - strip]

    def _crop_tiles(
        self, out: np.ndarray, tiles: np.ndarray, ends: np.ndarray, size: tuple[int, int], top: int, left: int
    ) -> None:
        ends = ends.view(np.int64)
        touched = list(touched_tiles(size, self.format.tile, top, left, out.shape[:2]))
        starts = [int(ends[number - 1]) if number else 0 for number, _, _ in touched]
        codes = [tiles[start : int(ends[number])] for start, (number, _, _) in zip(starts, touched, strict=True)]
        if self.read_ahead:
            for code in codes:
                _advise(code)
        for code, (_, rows, columns) in zip(codes, touched, strict=True):
            first, begin = max(top, rows.start), max(left, columns.start)
            part = out[first - top : rows.stop - top, begin - left : columns.stop - left]
            size = (rows.stop - rows.start, columns.stop - columns.start)
            decode_tile(part, code, size, first - rows.start, begin - columns.start)

    def warm(self) -> None:
        """Start to read the whole file into memory in the background."""

        def work() -> None:
            with suppress(OSError), self.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

        if hasattr(os, "posix_fadvise"):
            threading.Thread(target=work, name="accel-restore-warm", daemon=True).start()


@dataclass(frozen=True)
class StoredPairs:
    """Images of two stores that belong together."""

    gt: Store
    input: Store | None  # None: the input is synthetic
    indices: np.ndarray  # of the images in both stores


def damaged_store(path: Path, error: Exception) -> UserError:
    """Return the error for a store that cannot be read."""
    command = f"accel-restore cache delete {path.stem[:12]} --dir {shlex.quote(str(path.parent))}"
    return UserError(
        f"{path}: cannot be read ({error}); remove it by `{command}`, and the next run decodes its images again"
    )


def _advise(pages: np.ndarray) -> None:
    """Request mapped bytes from the disk, without waiting for them."""
    if _LIBC is None:
        return
    address = pages.ctypes.data
    start = address - address % mmap.PAGESIZE
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + pages.nbytes - start), mmap.MADV_WILLNEED)
