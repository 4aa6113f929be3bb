"""Different images in order, as columns: their paths, and what the disk says of each file."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from accel_restore.data.columns import Texts
from accel_restore.data.decode import Cell, ImageSource

_AT_ONCE = 2_000  # files that a thread asks for
_THREADS = 8  # a disk in a network answers several questions at once
MISSING = -1  # the size of a file that is not there


class ImageList:
    """Images that all differ. A file is known by its path and `status`, a cell of a data set by its identity."""

    def __init__(self, texts: Texts, cells: dict[int, Cell] | None = None, status: np.ndarray | None = None):
        """`texts` are paths, or the labels of the `cells`, which are given by their indices."""
        self.texts, self.cells = texts, cells or {}
        self.digests: dict[str, str] = {}  # those computed so far, by the facts that they include
        self._status = status

    @classmethod
    def of(cls, images: Iterable[ImageSource | str]) -> "ImageList":
        """Return the images of an iterable, in which none occurs twice; a text is a path."""
        images = list(images)
        cells = {index: image for index, image in enumerate(images) if isinstance(image, Cell)}
        return cls(Texts.of(map(str, images)), cells)

    @property
    def status(self) -> np.ndarray:
        """(N, 4): size, times of modification and change in ns, inode. The disk is asked when this is first read."""
        if self._status is None:
            has_files = len(self.cells) < len(self)
            self._status = read_status(self.texts) if has_files else np.full((len(self), 4), MISSING)
        return self._status

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> ImageSource:
        return self.cells[index] if index in self.cells else Path(self.texts[index])

    def __iter__(self) -> Iterator[ImageSource]:
        for index, text in enumerate(self.texts):
            yield self.cells[index] if index in self.cells else Path(text)

    def first(self, count: int) -> "ImageList":
        """Return the first images."""
        if count >= len(self):
            return self
        cells = {index: cell for index, cell in self.cells.items() if index < count}
        return ImageList(self.texts[:count], cells, None if self._status is None else self._status[:count])

    def digest(self, before: list, after: list) -> str:
        """Return a hash of the list [*before, identities of all images, *after]. A million take seconds, once."""
        facts = json.dumps([*before, [], *after])
        if facts not in self.digests:
            start = len(json.dumps([*before, []])) - 2
            digest, between = hashlib.sha256(facts[:start].encode()), ""
            for identity in self.identities():
                digest.update(f"{between}{json.dumps(identity)}".encode())
                between = ", "
            digest.update(facts[start:].encode())
            self.digests[facts] = digest.hexdigest()
        return self.digests[facts]

    def identities(self) -> Iterator[list | None]:
        """Yield what is equal as long as an image is: the resolved path of a file and its status, None without a file.

        Unpacking an archive sets the size and the modification time of another version; it cannot set ctime and inode.
        """
        resolved = cache(os.path.realpath)  # of folders; one look-up per image takes minutes on a network disk
        for index, (text, numbers) in enumerate(zip(self.texts, self.status, strict=True)):
            size, changed, moved, inode = numbers.tolist()
            if index in self.cells:
                yield [self.cells[index].identity]
            elif size == MISSING:
                yield None  # reading the image reports the reason
            else:
                name = text.rpartition("/")[2]
                yield [f"{resolved(text.removesuffix(name)).rstrip('/')}/{name}", size, changed, moved, inode % 2**64]


@dataclass(frozen=True)
class ImageColumn:
    """A sequence of images in which one may occur several times: different images, and an index into them for each."""

    images: ImageList
    rows: np.ndarray

    @classmethod
    def of(cls, images: Iterable[ImageSource | str]) -> "ImageColumn":
        """Return the images of an iterable; texts are paths."""
        images = list(images)
        row = {image: number for number, image in enumerate(dict.fromkeys(images))}
        rows = range(len(images)) if len(row) == len(images) else map(row.__getitem__, images)
        return cls(ImageList.of(row), np.fromiter(rows, np.int64, len(images)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ImageSource:
        return self.images[int(self.rows[index])]

    def text(self, index: int) -> str:
        """Return the path of an image, or the label of a cell."""
        return self.images.texts[int(self.rows[index])]

    def first(self, count: int) -> "ImageColumn":
        """Return the first images. Each different one was numbered when it first occurred, so theirs are the first."""
        rows = self.rows[:count]
        return ImageColumn(self.images.first(int(rows.max(initial=-1)) + 1), rows)


def read_status(paths: Texts) -> np.ndarray:
    """Return (N, 4): size, times of modification and change in ns, and inode of each file; MISSING without a file.

    A million files in the memory of the system take about 4 s of one core.
    """

    def ask(start: int) -> np.ndarray:
        numbers: list[int] = []
        for path in paths[start : start + _AT_ONCE].tolist():
            try:
                status = os.stat(path)  # noqa: PTH116  twice as fast
            except (OSError, ValueError):
                numbers += (MISSING, MISSING, MISSING, MISSING)
            else:
                numbers += (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return rows_of_four(numbers)

    starts = range(0, len(paths), _AT_ONCE)
    if len(starts) < 2:
        return ask(0)
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate(list(pool.map(ask, starts)))


def rows_of_four(numbers: list[int]) -> np.ndarray:
    """Return (N, 4) int64. Inodes of 64 bits and times after 2262 are taken modulo 2**64."""
    try:
        return np.array(numbers, np.int64).reshape(-1, 4)
    except OverflowError:
        return np.array([(number + 2**63) % 2**64 - 2**63 for number in numbers], np.int64).reshape(-1, 4)
