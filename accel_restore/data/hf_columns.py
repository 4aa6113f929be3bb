"""Images in the rows of a data set: the columns that hold them, and the name, identity and content of each cell."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from accel_restore.data.decode import Cell
from accel_restore.data.image_formats import ImageError
from accel_restore.utils.glob import nfc
from accel_restore.utils.imports import did_you_mean

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset
    from datasets.table import Table

Kind = Literal["image", "bytes", "path", "pixels"]

_VALUES: dict[str, Kind] = {"binary": "bytes", "large_binary": "bytes", "string": "path", "large_string": "path"}
_PIXELS = {"uint8", "uint16", "float16", "float32"}
_KEY = "__key__"  # webdataset's column of names


def choose_columns(
    dataset: "Dataset", gt: str | None, input: str | None, key: str, label: str
) -> tuple[dict[str, str], list[str]]:
    """Return the columns of gt and of input, if there is one, in this order; and the problems found.

    `key` is the source's dotted key, `label` the data set's name in messages. If no column is named, a single column of
    images is gt.
    """
    from datasets import Image

    features = dataset.features
    has = f"{label} has: " + ", ".join(f"{name} ({_in_words(feature)})" for name, feature in features.items())
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    gt = gt or (images[0] if len(images) == 1 and input is None else None)
    if gt is None:
        return {}, [f"{key}.gt: name the column of the clean images; {has}"]
    columns, problems = {"gt": gt} | ({"input": input} if input is not None else {}), []
    for side, column in columns.items():
        if column not in features:
            guess = did_you_mean(column, features)
            hint = f"; did you mean '{guess}'?" if guess else ""
            problems.append(f"{key}.{side}: no column '{column}'; {has}{hint}")
        elif _kind(features[column]) is None:
            problems.append(
                f"{key}.{side}: column '{column}' of {label} holds {_in_words(features[column])}; it must hold images, "
                "encoded files, paths, or pixels of uint8, uint16, float16 or float32 (rows of lists, Array2D, Array3D)"
            )
    if gt == input:
        problems.append(f"{key}: input and gt are the same column '{gt}' of {label}; name two")
    return columns, problems


def _kind(feature: Any) -> Kind | None:
    """How a column holds images: image is bytes or a path; None: it holds no images."""
    from datasets import Array2D, Array3D, Image, LargeList, List, Value

    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, Array2D | Array3D):
        return "pixels" if feature.dtype in _PIXELS else None
    depth = 0
    while isinstance(feature, List | LargeList):
        feature, depth = feature.feature, depth + 1
    if not isinstance(feature, Value):
        return None
    return _VALUES.get(feature.dtype) if depth == 0 else "pixels" if depth < 4 and feature.dtype in _PIXELS else None


def _in_words(feature: Any) -> str:
    return re.sub(r"Value\('(\w+)'\)", r"\1", str(feature).replace("(mode=None, decode=True)", ""))


@dataclass(frozen=True)
class Reach:
    """The folder that paths in rows are relative to, and the folders that they may point into."""

    start: Path
    within: tuple[Path, ...] | None = None  # resolved; None: any folder, for rows that were made in Python
    remedy: str = ""  # for paths that point elsewhere


def images_of(dataset: "Dataset", column: str, label: str, reach: Reach) -> tuple[list[Path | Cell | None], list[str]]:
    """Return the image of each row, None if it has none, and one problem for each row without an image."""
    images: list[Path | Cell | None] = []
    problems: list[str] = []
    table, version = dataset.data, _version(dataset)
    kind = _kind(dataset.features[column])
    assert kind is not None  # checked by `choose_columns`
    resolved = cache(Path.resolve)  # of folders; one look-up per image takes minutes on a network disk
    for row, (place, path, held) in enumerate(_contents(dataset, column)):
        where = f"{label} row {row}, column {column}"
        if held:
            fetch = partial(_fetch, table, column, place, kind)
            images.append(Cell(where, f"{version} {column} {row}", fetch))
            continue
        empty = None, "is empty (null); give the image, or remove the row"
        image, problem = _existing(path, reach, resolved) if path else empty
        images.append(image)
        if image is None:
            problems.append(f"{where}: {problem}")
    return images, problems


def _existing(path: str, reach: Reach, resolved: Callable[[Path], Path]) -> tuple[Path | None, str]:
    """The file of a row's path, or None and the problem. Rows of an unknown author must not read other folders."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in path[:200])
    file = None
    with suppress(OSError, ValueError, RuntimeError):  # for text that is not a path
        if reach.within is None:
            places = reach.start / path, Path(path).expanduser()
            file = next((place for place in places if place.is_file()), None)
        else:
            place = reach.start / path
            real = place.resolve() if place.is_symlink() else resolved(place.parent) / place.name
            if not any(real.is_relative_to(folder) for folder in reach.within):
                return None, f"names the file {shown}, which is outside {reach.start}; {reach.remedy}"
            file = place if place.is_file() else None
    return file, f"names the file {shown}, which does not exist; give the image, or remove the row"


def _contents(dataset: "Dataset", column: str) -> Iterator[tuple[int, str | None, bool]]:
    """For each row its index in the table, its path, and whether it holds an image itself. Reads only the paths."""
    import pyarrow.compute as pc

    values, kind = dataset.data.column(column), _kind(dataset.features[column])
    places = np.arange(len(dataset)) if dataset._indices is None else dataset._indices.column(0).to_numpy()
    if kind == "image":
        paths, contents = pc.struct_field(values, "path"), pc.struct_field(values, "bytes")
    else:
        paths, contents = (values, None) if kind == "path" else (None, values)
    names = paths.take(places).to_pylist() if paths is not None else [None] * len(places)
    held = contents.is_valid().to_numpy()[places] if contents is not None else np.zeros(len(places), bool)
    return zip(places.tolist(), names, held.tolist(), strict=True)


def names_of(dataset: "Dataset", column: str) -> list[str]:
    """Return the stems of the rows' paths if all rows have one and all differ, otherwise the row numbers."""
    column = _KEY if _KEY in dataset.features else column
    stems = [nfc(PurePath(path or "").stem) for _, path, _ in _contents(dataset, column)]
    if all(stems) and len(set(stems)) == len(stems):
        return stems
    return [f"{row:0{len(str(len(stems) - 1))}d}" for row in range(len(stems))]


def _version(dataset: "Dataset") -> str:
    """A hash that stands for the content, equal in all processes.

    The data set's fingerprint is a hash of the steps that made it (for tables in memory: of the bytes; for loaded
    files: of paths and modification times). It does not change if equal steps write a save_to_disk folder again, so the
    times and the inode of the folder's state.json are added; unpacking an archive sets the modification time alone.
    """
    files = sorted({Path(file["filename"]) for file in dataset.cache_files})
    states = sorted({state for file in files if (state := file.with_name("state.json")).is_file()})
    written = [[s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for s in map(Path.stat, states)]
    facts = [dataset._fingerprint, [file.stat().st_size for file in files], written]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _fetch(table: "Table", column: str, place: int, kind: Kind) -> bytes | np.ndarray:
    value = table.fast_slice(place, 1).column(column)
    if kind == "pixels":
        return _pixels(value.chunk(0))
    return (value[0]["bytes"] if kind == "image" else value[0]).as_py()


def _pixels(row: "pyarrow.Array") -> np.ndarray:
    """(H, W) or (H, W, C) of an array with one element, a list of lists; makes no Python numbers."""
    values: Any = getattr(row, "storage", row)
    shape: list[int] = []
    while hasattr(values, "flatten"):
        lengths = set(values.value_lengths().to_pylist())
        values = values.flatten()
        if len(lengths) != 1 or values.null_count:
            raise ImageError("has rows of different lengths, or gaps; give one rectangle of pixels")
        shape += lengths
    return values.to_numpy().reshape(shape)
