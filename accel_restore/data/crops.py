"""Random draws per sample, batches of uint8 crops, and their conversion on the training device.

Every draw is a hash of (seed, epoch, sample id): no random state, the same crop on any rank, thread or machine.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from accel_restore.data.order import Sample, hashes, key, uniform
from accel_restore.data.store import Store

_TOP, _LEFT, _FLIP, _DEGRADE = range(4)  # what a hash is drawn for
FLIPS = {"hflip": 1, "vflip": 2, "rot90": 4}  # bits of a sample's code


class CropDataset(Dataset):
    """Samples of an epoch as batches of crops: `__getitems__` gives a whole batch, sliced from the mapped images.

    The batch: `gt` and, of paired sources, `input` as uint8 (B, H, W, C); `weight` (B,); and on the host, as numpy
    arrays, `id`, `flips` (codes) and `seeds` of the degradation.
    """

    def __init__(
        self,
        gt: Store,
        input: Store | None,
        images: list[int],
        *,
        patch_size: int,
        crops_per_image: int,
        augment: list[str],
        seed: int,
    ):
        self.gt, self.input = gt, input
        self.images = np.asarray(images, np.int64)  # the stores' images that belong to this set
        self.patch_size, self.crops_per_image, self.seed = patch_size, crops_per_image, seed
        self.flip_bits = sum(FLIPS[name] for name in set(augment))

    def __len__(self) -> int:
        return len(self.images) * self.crops_per_image

    def __getitems__(self, samples: list[Sample]) -> dict[str, Tensor | np.ndarray]:
        ids = np.array([sample.id for sample in samples], np.int64)
        weights = np.array([sample.weight for sample in samples])

        def draw(purpose: int) -> np.ndarray:
            return hashes(ids, key(self.seed, samples[0].epoch, purpose))

        images = self.images[ids // self.crops_per_image]
        room = self.gt.sizes[images] - self.patch_size + 1  # (B, 2): places for a crop's corner
        tops = (uniform(draw(_TOP)) * room[:, 0]).astype(np.int64)
        lefts = (uniform(draw(_LEFT)) * room[:, 1]).astype(np.int64)
        places = list(zip(images.tolist(), tops.tolist(), lefts.tolist(), strict=True))
        batch = {
            "gt": self._crops(self.gt, places),
            "weight": torch.from_numpy(weights).to(torch.get_default_dtype()),
            "id": np.where(weights > 0, ids, -1),
            "flips": draw(_FLIP).astype(np.int64) & self.flip_bits,
            "seeds": draw(_DEGRADE),
        }
        if self.input is not None:
            batch["input"] = self._crops(self.input, places)
        return batch

    def _crops(self, store: Store, places: list[tuple[int, int, int]]) -> Tensor:
        size = self.patch_size
        crops = np.empty((len(places), size, size, store[0].shape[2]), np.uint8)
        for crop, (image, top, left) in zip(crops, places, strict=True):
            crop[...] = store[image][top : top + size, left : left + size]
        return torch.from_numpy(crops)


def finish_batch(
    batch: dict, degrade: Callable[[Tensor, np.ndarray], Tensor], *, channels_last: bool
) -> dict[str, Tensor | np.ndarray]:
    """The batch that a model trains on: `input` and `gt` (B, C, H, W) in [0, 1], flipped and degraded on its device."""
    gt = to_float(flipped(batch["gt"], batch["flips"]), channels_last)
    if "input" in batch:
        degraded = to_float(flipped(batch["input"], batch["flips"]), channels_last)
    else:
        degraded = degrade(gt, batch["seeds"])
    return {"input": degraded, "gt": gt, "weight": batch["weight"], "id": batch["id"]}


def flipped(crops: Tensor, codes: np.ndarray) -> Tensor:
    """The crops (B, H, W, C) with flips and the rotation by 90° applied in place, as each sample's code says."""
    for crop, code in zip(crops, codes.tolist(), strict=True):
        turned = crop
        if code & FLIPS["hflip"]:
            turned = turned.flip(1)
        if code & FLIPS["vflip"]:
            turned = turned.flip(0)
        if code & FLIPS["rot90"]:
            turned = turned.rot90(1, (0, 1))
        if code:
            crop.copy_(turned)
    return crops


def to_float(crops: Tensor, channels_last: bool = False) -> Tensor:
    """uint8 (B, H, W, C) as float (B, C, H, W) in [0, 1], of torch's default dtype."""
    images = crops.permute(0, 3, 1, 2).to(torch.get_default_dtype()).div_(255)
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
