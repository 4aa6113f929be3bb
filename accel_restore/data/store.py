"""Decoded images in one memory-mapped Arrow file, shared by all ranks of a machine through the page cache.

An image is stored as raw pixels in vertical strips, 256 pixels wide, one after the other. Each strip holds rows of
(W, C) pixels. The rows of a crop are therefore close together: a disk reads at most a few short ranges per crop.
"""

import ctypes
import hashlib
import mmap
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from accel_restore.data.store_lock import StoreLock

STRIP = 256  # pixels
_BUFFERED_BYTES = 64 * 2**20  # pixels held before a write
_DIGEST_BYTES = 8  # a million images have two equal ones by chance with a probability of 3e-8
_LIBC = ctypes.CDLL(None) if hasattr(mmap, "MADV_WILLNEED") else None  # None on Windows


def digest_of(pixels: np.ndarray) -> str:
    """Return a digest of size and pixels (H, W, C).

    16-bit values that are 8-bit ones times 257 count as these, and float32 values that float16 holds as float16: an
    image is converted if another one is deeper.
    """
    if pixels.dtype == np.uint16 and not (pixels % 257).any():
        pixels = (pixels // 257).astype(np.uint8)
    if pixels.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = pixels.astype(np.float16)
        pixels = half if np.array_equal(half, pixels) else pixels
    kind = pixels.dtype.name if pixels.dtype.kind == "f" else pixels.itemsize
    content = hashlib.sha256(repr((pixels.shape, kind)).encode())
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()[: 2 * _DIGEST_BYTES]


class Store:
    """A sequence of images (H, W, C) in one file, all uint8, uint16, float16 or float32.

    `sizes` (N, 2) holds their heights and widths.

    With `read_ahead` a crop is requested from the disk as a whole before it is copied. This is for data larger than
    memory: otherwise the mapping waits for one page after the other, about 15 times slower.
    """

    def __init__(
        self, path: Path, channels: int, rows: np.ndarray, lock: StoreLock | None = None, dtype: str | None = None
    ):
        """`rows` are the indices of the file's images that make up the sequence. The store keeps the lock.

        `dtype` is that of the pixels; None: uint8 or uint16, by the number of bytes, as in files of older versions.
        """
        import pyarrow as pa  # not `datasets`, which takes a second to import

        self.path, self.channels, self.read_ahead, self._lock = path, channels, False, lock
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        heights, widths = (_numbers(table.column(name)) for name in ("height", "width"))
        self.sizes = np.stack([heights, widths], axis=1)[rows]
        self._digests, self._rows = table.column("digest"), rows
        self.chunks, chunk_of, starts = _values(table.column("pixels"))
        self._chunk_of, self._starts = chunk_of[rows], starts[rows]
        self.nbytes = sum(map(len, self.chunks))  # of the whole file
        values = int((heights * widths).sum()) * channels
        self.dtype = np.dtype(dtype or (np.uint8 if self.nbytes == values else np.uint16))
        if self.nbytes != values * self.dtype.itemsize:
            raise ValueError(f"it has {self.nbytes} bytes of pixels instead of {values * self.dtype.itemsize}")

    @property
    def digests(self) -> list[str]:
        """The digest of the pixels of each image."""
        digests = self._digests.to_pylist()
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
        """Copy the part of an image with its corner at (top, left) into `out` (h, w, C)."""
        image_height, image_width = self.sizes[index].tolist()
        chunk, start = self.chunks[self._chunk_of[index]], int(self._starts[index])
        height, right, pixel = len(out), left + out.shape[1], self.channels * self.dtype.itemsize
        for strip in range(left - left % STRIP, right, STRIP):
            width = min(STRIP, image_width - strip)
            first = start + (strip * image_height + top * width) * pixel
            rows = chunk[first : first + height * width * pixel]
            if self.read_ahead:
                _advise(rows)
            rows = rows.view(self.dtype).reshape(height, width, self.channels)
            begin, end = max(left, strip), min(right, strip + width)
            out[:, begin - left : end - left] = rows[:, begin - strip : end - strip]

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


def _numbers(column) -> np.ndarray:
    """An Arrow column of int32 as int64. Its own `to_numpy` would import pandas."""
    chunks = [np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset :][: len(chunk)] for chunk in column.chunks]
    return np.concatenate(chunks).astype(np.int64)


def _values(column) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The bytes of each chunk of an Arrow large_binary column (not copied), and the chunk and start of each value."""
    chunks, chunk_of, starts = [], [], []
    for number, chunk in enumerate(column.chunks):
        _, offsets, data = chunk.buffers()
        places = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        chunks.append(np.frombuffer(data, np.uint8)[: places[-1]])
        chunk_of.append(np.full(len(chunk), number))
        starts.append(places[:-1])
    return chunks, np.concatenate(chunk_of), np.concatenate(starts)


def _advise(pages: np.ndarray) -> None:
    """Request mapped bytes from the disk, without waiting for them."""
    if _LIBC is None:
        return
    address = pages.ctypes.data
    start = address - address % mmap.PAGESIZE
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + pages.nbytes - start), mmap.MADV_WILLNEED)


def write_store(path: Path, images: Iterable[tuple[np.ndarray, str]]) -> None:
    """Write images (H, W, C) of one dtype, each with its digest, to `path`, and sync it to the disk."""
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    numbers = {"height": Value("int32"), "width": Value("int32")}
    features = Features({"pixels": Value("large_binary"), **numbers, "digest": Value("string")})
    buffered = 0
    with ArrowWriter(path=str(path), features=features) as writer:
        for image, digest in images:
            buffered += image.nbytes
            if buffered > _BUFFERED_BYTES:
                writer.write_examples_on_file()
                buffered = image.nbytes
            height, width, _ = image.shape
            strips = [image[:, left : left + STRIP].reshape(-1) for left in range(0, width, STRIP)]
            pixels = np.concatenate(strips).tobytes()
            writer.write({"pixels": pixels, "height": height, "width": width, "digest": digest})
        writer.finalize()
    with path.open("rb") as file:
        os.fsync(file.fileno())
