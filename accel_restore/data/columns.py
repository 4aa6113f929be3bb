"""Columns of numbers and texts in one file that is mapped, so that processes share them and nothing is copied.

A million texts are two arrays here, and about 80 MB of objects in a list.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np

_AT_ONCE = 10_000  # texts that are held as objects while all are iterated over
_FACTS = b"facts"  # key of the metadata that holds numbers and names as JSON
_ARRAYS = b"arrays"  # … and the type and shape of each array


class Texts(Sequence[str]):
    """A sequence of texts: their UTF-8 bytes one after the other, and where each one starts and ends."""

    def __init__(self, data: np.ndarray, bounds: np.ndarray):
        """`bounds` (N + 1) are indices into `data`, uint8. Raises: ValueError if they do not fit."""
        if not len(bounds) or bounds[0] or bounds[-1] != len(data) or (np.diff(bounds) < 0).any():
            raise ValueError("the bounds of texts do not fit the texts")
        self.data, self.bounds = data, bounds

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Return the texts of an iterable as a sequence."""
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        bounds = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=bounds[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Texts": ...
    def __getitem__(self, index: int | slice) -> "str | Texts":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("texts are sliced in steps of 1")
            bounds = self.bounds[start : max(start, stop) + 1]
            return Texts(self.data[bounds[0] : bounds[-1]], bounds - bounds[0])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.data[self.bounds[index] : self.bounds[index + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE].tolist()

    def tolist(self) -> list[str]:
        """Return all texts, much faster than one by one."""
        whole, bounds = self.data.tobytes(), self.bounds.tolist()
        if not whole.isascii():
            return [str(whole[start:end], "utf-8", "surrogateescape") for start, end in pairwise(bounds)]
        text = whole.decode("ascii")
        return [text[start:end] for start, end in pairwise(bounds)]

    def at(self, indices: np.ndarray) -> list[str]:
        """Return the texts at `indices`; no others are read."""
        data, starts, ends = self.data.data, self.bounds[indices].tolist(), self.bounds[indices + 1].tolist()
        return [str(data[start:end], "utf-8", "surrogateescape") for start, end in zip(starts, ends, strict=True)]


def save_columns(path: Path, arrays: Mapping[str, np.ndarray | Texts], facts: Mapping[str, Any]) -> None:
    """Write arrays, texts and JSON `facts` to a new file, an Arrow file of one row."""
    import pyarrow as pa

    plain: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        plain |= (
            {f"{name}.data": array.data, f"{name}.bounds": array.bounds} if isinstance(array, Texts) else {name: array}
        )
    shapes = {name: [array.dtype.str, array.shape] for name, array in plain.items()}
    metadata = {_FACTS: json.dumps(facts).encode(), _ARRAYS: json.dumps(shapes).encode()}
    columns = [
        pa.Array.from_buffers(
            pa.large_binary(),
            1,
            [None, pa.py_buffer(np.array([0, array.nbytes], np.int64)), pa.py_buffer(np.ascontiguousarray(array))],
        )
        for array in plain.values()
    ]
    schema = pa.schema([(name, pa.large_binary()) for name in plain], metadata=metadata)
    with path.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def map_columns(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays and texts of a file, mapped and read-only, and its facts.

    Raises: OSError; ValueError if it is no such file, or damaged.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batch, metadata = reader.get_batch(0), reader.schema.metadata or {}
    if not {_FACTS, _ARRAYS} <= metadata.keys():
        raise ValueError("lacks the description of its columns")
    shapes, facts = json.loads(metadata[_ARRAYS]), json.loads(metadata[_FACTS])
    plain = {}
    for (name, (kind, shape)), column in zip(shapes.items(), batch.columns, strict=True):
        data = column.buffers()[2]
        plain[name] = np.frombuffer(data if data is not None else b"", np.dtype(kind)).reshape(shape)
    arrays: dict[str, Any] = {name: array for name, array in plain.items() if not name.endswith((".data", ".bounds"))}
    for name in plain:
        if name.endswith(".data"):
            name = name.removesuffix(".data")
            arrays[name] = Texts(plain[f"{name}.data"], plain[f"{name}.bounds"])
    return arrays, facts
