"""Whole images for validation: an image has the same input in every epoch, on any device and any rank."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from accel_restore.data.augment import to_float
from accel_restore.data.loader import Prefetcher, to_device
from accel_restore.data.pixels import UNIT, Range
from accel_restore.data.store import Store
from accel_restore.utils.stoppable import stoppable


def seed_of(name: str) -> int:
    """Return the seed of the degradation of a whole image, a hash of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def can_crop_gt(size: tuple[int, int], input_size: tuple[int, int], scale: int) -> bool:
    """Return whether each side of gt exceeds `scale` times that of the input by 0 to scale - 1 pixels.

    Such a gt was not cropped to a multiple of the scale before it was reduced to the input.
    """
    return all(0 <= side - scale * small < scale for side, small in zip(size, input_size, strict=True))


class Images(Protocol):
    """Images by index, as (H, W, C) arrays of pixels; a `Store` is one."""

    def __getitem__(self, index: int) -> np.ndarray:
        """Return an image."""


class ValidationDataset:
    """A sequence of {"input", "gt"}, float (1, C, H, W) in [0, 1] on `device`; input is `scale` times smaller.

    Float pixels may be outside of [0, 1], which stands for `range`.

    A synthetic degradation is keyed by the image's name and drawn on the CPU, so that it is the same every time. gt is
    cropped at the bottom and right to multiples of the scale, as in the published tables: before it is degraded, or if
    it is larger than the input allows (see `can_crop_gt`).
    """

    def __init__(
        self,
        names: list[str],
        gt: Images,
        input: Images | None,
        images: Sequence[int] | np.ndarray,
        degrade: Callable[[Tensor, np.ndarray], Tensor],
        device: torch.device,
        scale: int = 1,
        range: Range = UNIT,
    ):
        """`range` is that of float pixels."""
        self.names, self.gt, self.input, self.images = names, gt, input, images
        self.degrade, self.device, self.scale, self.range = degrade, device, scale, range
        self.seeds = [seed_of(name) for name in names]

    def sizes(self) -> list[tuple[int, int]]:
        """Return the height and width of each gt, in pixels."""
        store = cast(Store, self.gt)  # only a store knows the sizes without decoding
        return [(int(height), int(width)) for height, width in (store.sizes[image] for image in self.images)]

    @property
    def gt_kind(self) -> np.dtype:
        """The kind of the pixels of gt."""
        return cast(Store, self.gt).dtype

    def batches(self, batch_size: int) -> list[list[int]]:
        """Return all indices in groups of at most `batch_size` images of one size, ordered by their first images."""
        groups: list[list[int]] = []
        open_groups: dict[tuple[int, ...], list[int]] = {}
        for index, size in enumerate(self.sizes()):
            group = open_groups.get(size)
            if group is None or len(group) == batch_size:
                groups.append(group := [])
                open_groups[size] = group
            group.append(index)
        return groups

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the images at `indices`, all of one size, as one batch."""
        images = [self[index] for index in indices]
        return {name: torch.cat([image[name] for image in images]) for name in images[0]}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        gt = to_float(torch.from_numpy(self.gt[self.images[index]])[None], range=self.range)
        if self.input is not None:
            degraded = to_float(torch.from_numpy(self.input[self.images[index]])[None], range=self.range)
            height, width = (self.scale * side for side in degraded.shape[-2:])
            gt = gt[..., :height, :width].contiguous()
        else:
            height, width = (side - side % self.scale for side in gt.shape[-2:])
            gt = gt[..., :height, :width].contiguous()
            degraded = self.degrade(gt, np.array([self.seeds[index]], np.uint64))
        return {"input": to_device(degraded, self.device), "gt": to_device(gt, self.device)}


class ValidationSets:
    """The images of several sets as one sequence: all of the first set, then all of the second, and so on."""

    def __init__(self, sets: dict[str, ValidationDataset]):
        self.sets = sets
        self.places = [(name, index) for name, one in sets.items() for index in range(len(one))]
        self.set_of = [name for name, _ in self.places]  # of each image
        self.names = [full_name(name, image) for name, one in sets.items() for image in one.names]
        self.scale = next(iter(sets.values())).scale
        # By the index of an image: what its input scores, measured in the first validation.
        self.input_scores: dict[int, list[Tensor]] = {}

    def batches(self, batch_size: int) -> list[list[int]]:
        """Return all indices in groups of at most `batch_size` images of one set and size; see `ValidationDataset`."""
        groups: list[list[int]] = []
        first = 0
        for one in self.sets.values():
            groups += [[first + index for index in group] for group in one.batches(batch_size)]
            first += len(one)
        return groups

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the images at `indices`, all of one set and size, as one batch."""
        return self.sets[self.set_of[indices[0]]].batch([self.places[index][1] for index in indices])

    @contextmanager
    def ahead(
        self, groups: Iterable[list[int]], should_stop: Callable[[], bool] = bool
    ) -> Iterator[Iterator[tuple[list[int], dict[str, Tensor]]]]:
        """Yield an iterator of the groups of `batches` and their batches; a thread reads one batch ahead.

        The iterator ends early if `should_stop` returns true while an image is read.
        """

        def read(indices: list[int]) -> tuple[list[int], dict[str, Tensor]] | None:
            with stoppable(should_stop):
                return indices, self.batch(indices)
            return None

        with Prefetcher(map(read, groups), 1) as found:
            yield takewhile(lambda one: one is not None, found)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        name, place = self.places[index]
        return self.sets[name][place]


def full_name(set_name: str, image: str) -> str:
    """Return the name of an image among those of all sets."""
    return f"{set_name}/{image}" if set_name else image
