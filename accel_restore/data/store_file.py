"""The file of a store: one Arrow stream with a row per image. Its schema says how the pixels are stored.

| Column | Content |
|---|---|
| pixels | raw: strips, 256 pixels wide, one after the other; compact: tiles, see `tiles` |
| ends | compact only: where each tile ends in `pixels`, int64 |
| height, width, digest | of the pixels |
| low, high | floats only: the smallest and the largest value |
| dtype | of the source; the store's own can be wider |
| source | hash of the identity of the source, for later stores that hold the same image |

Stores of earlier versions have neither `dtype` nor `source`, and nothing in the schema; they hold integers.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from accel_restore.data.pixels import Range, is_float
from accel_restore.data.tiles import encode_tiles, tile_side

STRIP = 256  # pixels
SOURCE_BYTES = 16
MARK = b"accel_restore"  # in the schema of a store
_BUFFERED_BYTES = 64 * 2**20  # held before a write
_DIGEST_BYTES = 8  # a million images have two equal ones by chance with a probability of 3e-8


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
    kind = pixels.dtype.name if is_float(pixels.dtype) else pixels.itemsize
    content = hashlib.sha256(repr((pixels.shape, kind)).encode())
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()[: 2 * _DIGEST_BYTES]


@dataclass(frozen=True)
class Format:
    """How the pixels of a store are stored."""

    codec: str  # raw or compact
    channels: int
    dtype: np.dtype

    @property
    def tile(self) -> int:
        """The side of the tiles of a compact store."""
        return tile_side(self.channels, self.dtype)


@dataclass(frozen=True)
class Facts:
    """What a store records of an image, next to its pixels: a column for each."""

    height: int
    width: int
    digest: str
    low: float | None  # None for integers
    high: float | None
    dtype: str
    source: bytes


@dataclass(frozen=True)
class StoredImage:
    """A row of the file."""

    pixels: bytes
    ends: bytes  # empty for raw
    facts: Facts


def facts_of(pixels: np.ndarray, dtype: np.dtype, source: bytes) -> Facts:
    """Return the facts of an image (H, W, C) whose source has this dtype."""
    low, high = (float(pixels.min()), float(pixels.max())) if is_float(pixels.dtype) else (None, None)
    height, width, _ = pixels.shape
    return Facts(height, width, digest_of(pixels), low, high, dtype.name, source)


def encode(pixels: np.ndarray, facts: Facts, format: Format) -> StoredImage:
    """Return the row of an image (H, W, C) of the format's dtype."""
    if format.codec == "raw":
        strips = [pixels[:, left : left + STRIP].reshape(-1) for left in range(0, pixels.shape[1], STRIP)]
        return StoredImage(np.concatenate(strips).tobytes(), b"", facts)
    tiles, ends = encode_tiles(pixels, format.tile)
    return StoredImage(tiles, ends.tobytes(), facts)


def write_store(path: Path, images: Iterable[StoredImage], format: Format, before_write: Callable[[int], None]) -> None:
    """Write images to `path`, and sync it to the disk. Calls `before_write` with the number of bytes of each write."""
    import pyarrow as pa  # takes 0.2 s

    values = {"pixels": pa.large_binary()} | ({"ends": pa.large_binary()} if format.codec == "compact" else {})
    facts = {"height": pa.int32(), "width": pa.int32(), "digest": pa.string()}
    facts |= {"low": pa.float32(), "high": pa.float32()} if is_float(format.dtype) else {}
    facts |= {"dtype": pa.string(), "source": pa.binary(SOURCE_BYTES)}
    about = {"codec": format.codec, "channels": format.channels, "dtype": format.dtype.name}
    schema = pa.schema([*values.items(), *facts.items()], metadata={MARK: json.dumps(about)})
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for rows in _batches(images):
                before_write(sum(len(row.pixels) for row in rows))
                columns = [pa.array([getattr(row, name) for row in rows], kind) for name, kind in values.items()]
                columns += [pa.array([getattr(row.facts, name) for row in rows], kind) for name, kind in facts.items()]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _batches(images: Iterable[StoredImage]) -> Iterator[list[StoredImage]]:
    batch: list[StoredImage] = []
    buffered = 0
    for image in images:
        buffered += len(image.pixels)
        if batch and buffered > _BUFFERED_BYTES:
            yield batch
            batch, buffered = [], len(image.pixels)
        batch.append(image)
    if batch:
        yield batch


class StoreTable:
    """The columns of a store's file; pixels are mapped, not read."""

    def __init__(self, path: Path, channels: int):
        """Raises: OSError, ValueError or KeyError if the file is damaged."""
        import pyarrow as pa  # not `datasets`, which takes a second to import

        self._table = table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        self.sizes = np.stack([_numbers(table.column(name)) for name in ("height", "width")], axis=1).astype(np.int64)
        self.pixels = Values(table.column("pixels"))
        about = json.loads((table.schema.metadata or {}).get(MARK, b"{}"))
        num_values = int(self.sizes.prod(axis=1).sum()) * channels
        dtype = np.dtype(about.get("dtype", "uint8" if self.pixels.nbytes == num_values else "uint16"))
        self.format = Format(about.get("codec", "raw"), channels, dtype)
        if self.format.codec == "raw" and self.pixels.nbytes != num_values * dtype.itemsize:
            raise ValueError(f"it has {self.pixels.nbytes} bytes of pixels, not {num_values * dtype.itemsize}")
        self.ends = Values(table.column("ends")) if self.format.codec == "compact" else None

    @property
    def digests(self) -> list[str]:
        """The digests of all images."""
        return self._table.column("digest").to_pylist()

    @property
    def sources(self) -> list[bytes]:
        """The hashes of the identities of all sources; empty if they are not recorded."""
        return self._table.column("source").to_pylist() if "source" in self._table.column_names else []

    @property
    def values(self) -> Range | None:
        """The smallest and the largest value of float pixels, None for integers."""
        if not is_float(self.format.dtype):
            return None
        low, high = (_numbers(self._table.column(name), np.float32) for name in ("low", "high"))
        return float(low.min()), float(high.max())

    def facts(self, row: int) -> Facts:
        """Return the facts of an image in a store that records its source."""
        names = self._table.column_names
        found = {key.name: self._table.column(key.name)[row].as_py() for key in fields(Facts) if key.name in names}
        return Facts(**({"low": None, "high": None} | found))


class Values:
    """The values of an Arrow large_binary column as mapped bytes."""

    def __init__(self, column: Any):
        self.chunks: list[np.ndarray] = []
        chunk_of, starts, stops = [], [], []
        for number, chunk in enumerate(column.chunks):
            _, offsets, data = chunk.buffers()
            places = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
            self.chunks.append(np.frombuffer(data, np.uint8)[: places[-1]])
            chunk_of.append(np.full(len(chunk), number))
            starts.append(places[:-1])
            stops.append(places[1:])
        self._chunk_of, self._starts, self._stops = (np.concatenate(parts) for parts in (chunk_of, starts, stops))
        self.nbytes = sum(map(len, self.chunks))

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the bytes of a value."""
        return self.chunks[self._chunk_of[row]][self._starts[row] : self._stops[row]]


def _numbers(column: Any, dtype: DTypeLike = np.int32) -> np.ndarray:
    """An Arrow column of int32 or float32. Its own `to_numpy` would import pandas."""
    chunks = [np.frombuffer(chunk.buffers()[1], dtype)[chunk.offset :][: len(chunk)] for chunk in column.chunks]
    return np.concatenate(chunks)
