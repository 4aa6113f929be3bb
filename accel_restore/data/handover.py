"""What one process of a machine has found, written for the other ranks: they map it, and search and decode nothing."""

from pathlib import Path
from typing import Any

import numpy as np

from accel_restore.data.cache import Opened, reopen
from accel_restore.data.columns import Texts, map_columns, save_columns
from accel_restore.data.image_list import ImageColumn, ImageList
from accel_restore.data.pairs import Pairs, PairTable
from accel_restore.data.scan import Images, ScannedData, ScannedSet

_SIDES = ("gt", "input")


def write_found(found: ScannedData, path: Path) -> None:
    """Write data without problems for `read_found`."""
    arrays: dict[str, np.ndarray | Texts] = {}
    sources: dict[str, Any] = {}  # by key: the stores of gt and input
    sets: dict[str, list] = {}
    for kind, name, one in _numbered(found):
        sets.setdefault(kind, []).append([name, one.key])
        arrays[f"{kind}/{name}"] = one.pairs.indices
        if one.key not in sources and one.images is not None:
            table, opened = one.images.pairs.table, (one.images.gt, one.images.input)
            arrays[f"{one.key}/names"] = table.names
            sources[one.key] = {}
            for side, column, images in zip(_SIDES, (table.gt, table.input), opened, strict=True):
                if column is not None and images is not None and images.store is not None:
                    arrays |= {f"{one.key}/{side}": column.images.texts, f"{one.key}/{side}/rows": column.rows}
                    sources[one.key][side] = [str(images.store.path), images.store.channels]
    save_columns(path, arrays, {"sources": sources, "sets": sets, "notes": found.notes, "facts": found.facts})


def read_found(path: Path) -> ScannedData:
    """Return what another process of this machine has written. An image of a data set is known by its label alone.

    Raises: UserError if a store was deleted since.
    """
    arrays, facts = map_columns(path)
    images: dict[str, Images] = {}
    for key, stores in facts["sources"].items():
        columns: dict[str, ImageColumn] = {}
        opened: dict[str, Opened] = {}
        for side, (store, channels) in stores.items():
            rows = arrays[f"{key}/{side}/rows"]
            columns[side] = ImageColumn(ImageList(arrays[f"{key}/{side}"]), rows)
            opened[side] = reopen(Path(store), channels, rows)
        table = PairTable(arrays[f"{key}/names"], columns["gt"], columns.get("input"))
        images[key] = Images(Pairs(table), opened["gt"], opened.get("input"))
    found = ScannedData({}, {}, [], facts["notes"], facts["facts"])
    for kind, sets in (("train", found.train), ("val", found.val)):
        for name, key in facts["sets"][kind]:
            sets[name] = ScannedSet(key, images[key], Pairs(images[key].pairs.table, arrays[f"{kind}/{name}"]))
    return found


def _numbered(found: ScannedData) -> list[tuple[str, str, ScannedSet]]:
    return [("train", *item) for item in found.train.items()] + [("val", *item) for item in found.val.items()]
