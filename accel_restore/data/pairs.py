"""Pairs of images: what a pair is, a sequence of pairs as columns, and which of them are held out."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from accel_restore.data.columns import Texts
from accel_restore.data.decode import ImageSource
from accel_restore.data.file_search import Searched
from accel_restore.data.image_list import ImageColumn
from accel_restore.data.matching import match_files


@dataclass(frozen=True)
class Pair:
    """A clean image and its degraded image; without the latter, the input is synthetic."""

    name: str
    gt: ImageSource
    input: ImageSource | None = None


class PairTable:
    """The pairs of a source, in order of their names, as columns."""

    def __init__(self, names: Texts, gt: ImageColumn, input: ImageColumn | None, ranks: np.ndarray | None = None):
        """`ranks`: see the property."""
        self.names, self.gt, self.input = names, gt, input
        if ranks is not None:
            self.ranks = ranks

    @cached_property
    def ranks(self) -> np.ndarray:
        """The place of each pair's gt if all gts are ordered by the hash of the name of their first pair."""
        _, first = np.unique(self.gt.rows, return_index=True)
        names = self.names.tolist()
        digests = [hashlib.sha256(names[index].encode()).digest() for index in first.tolist()]
        order = np.argsort(np.array(digests, "S32"), kind="stable")
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return places[self.gt.rows]

    def first(self, count: int) -> "PairTable":
        """Return the first pairs."""
        if count >= len(self.names):
            return self
        input = None if self.input is None else self.input.first(count)
        return PairTable(self.names[:count], self.gt.first(count), input)


class Pairs(Sequence[Pair]):
    """Some pairs of a table, in its order. A `Pair` is made when it is asked for."""

    def __init__(self, table: PairTable, indices: np.ndarray | None = None):
        """`indices` of the pairs in the table; None: all of them."""
        self.table = table
        self.indices = np.arange(len(table.names)) if indices is None else indices

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> "Pairs":
        """Return pairs as columns: all with an input, or all without."""
        pairs = list(pairs)
        inputs = [pair.input for pair in pairs if pair.input is not None]
        names, gt = Texts.of(pair.name for pair in pairs), ImageColumn.of(pair.gt for pair in pairs)
        return cls(PairTable(names, gt, ImageColumn.of(inputs) if inputs else None))

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> "Pairs": ...
    def __getitem__(self, index: int | slice) -> "Pair | Pairs":
        if isinstance(index, slice):
            return Pairs(self.table, self.indices[index])
        row, table = int(self.indices[index]), self.table
        return Pair(table.names[row], table.gt[row], None if table.input is None else table.input[row])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Pair.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # like a list

    @property
    def names(self) -> list[str]:
        """The name of each pair."""
        return self.table.names.at(self.indices)

    @property
    def labels(self) -> "Labels":
        """What messages call each pair."""
        return Labels(self)

    def first(self, count: int | None) -> "Pairs":
        """Return the first pairs, as a table of their own; None: all."""
        return self if count is None or count >= len(self) else Pairs(self.table.first(count))

    def sources(self) -> Iterator[ImageSource]:
        """Yield all images, gt and input, each once."""
        for column in (self.table.gt, self.table.input):
            if column is not None:
                yield from (column.images[row] for row in np.unique(column.rows[self.indices]).tolist())


class Labels(Sequence[str]):
    """The path of each pair's input, or of its gt if the input is synthetic."""

    def __init__(self, pairs: Pairs):
        self.pairs, table = pairs, pairs.table
        self.column = table.gt if table.input is None else table.input

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Labels": ...
    def __getitem__(self, index: int | slice) -> "str | Labels":
        if isinstance(index, slice):
            return Labels(self.pairs[index])
        return self.column.text(int(self.pairs.indices[index]))


def find_pairs(
    gt: str | list[str],
    input: str | list[str] | None,
    key: str,
    recursive: bool = False,
    notes: list[str] | None = None,
    searched: Searched | None = None,
) -> tuple[Pairs, list[str]]:
    """Return the pairs in order of their names, and the problems found; `key` is the dotted key of the source.

    What is left out of folders is added to `notes`, and where was searched to `searched`.

    A folder's images are named by their stems (with `recursive`, sub-folders too: "scene/0001"). In a pattern, each
    `{}` names the image, `*` matches anything and `**` folders of any depth. If an input pattern has `*`, each input
    forms a pair with its one gt. Lists of folders or patterns pair element by element ("0/0001").

    Raises: UserError if a named package is not installed, or links make endless folders.
    """
    searched = searched or Searched()
    try:
        found, problems = match_files(gt, input, key, recursive, searched)
    except OSError as error:  # a name that is too long, a folder without permission
        return Pairs.of([]), [f"{key}: cannot be searched: {error.strerror}: {error.filename!s:.200}"]
    if notes is not None:
        notes += searched.notes
    inputs = [match.input for match in found if match.input is not None]
    names, gts = Texts.of(match.name for match in found), ImageColumn.of(match.gt for match in found)
    table = PairTable(names, gts, ImageColumn.of(inputs) if inputs else None)
    return Pairs(table), list(dict.fromkeys(problems))  # a file may be found as gt and as input


def held_out(pairs: Pairs, fraction: float) -> tuple[Pairs, Pairs]:
    """Return training and validation pairs: the `fraction` (at least one) with the lowest hashes of names is held out.

    The choice depends only on names, so runs with another seed or a few more images are scored on the same images.
    Pairs of one gt stay together, so that no run is scored on images that it was trained on.
    """
    scenes, places = np.unique(pairs.table.ranks[pairs.indices], return_inverse=True)
    chosen = places < max(1, round(fraction * len(scenes)))
    return Pairs(pairs.table, pairs.indices[~chosen]), Pairs(pairs.table, pairs.indices[chosen])
