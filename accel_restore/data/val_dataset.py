"""Whole images for validation: the same input for an image in every epoch, on any device and any rank."""

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from accel_restore.data.augment import to_float
from accel_restore.data.store import Store


def seed_of(name: str) -> int:
    """What the draws of a degradation are keyed by, for a whole image of this name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


class ValidationDataset:
    """A sequence of {"input", "gt"}, float (1, C, H, W) in [0, 1] on `device`; input is `scale` times smaller.

    A synthetic degradation is keyed by the image's name and drawn on the CPU, so that it is the same every time. For it
    gt is cut, below and to the right, to multiples of the scale, as the published tables do. `batch` joins images of
    equal size.
    """

    def __init__(
        self,
        names: list[str],
        gt: Store,
        input: Store | None,
        images: list[int],
        degrade: Callable[[Tensor, np.ndarray], Tensor],
        device: torch.device,
        scale: int = 1,
    ):
        self.names, self.gt, self.input, self.images = names, gt, input, images
        self.degrade, self.device, self.scale = degrade, device, scale
        self.seeds = [seed_of(name) for name in names]

    def batches(self, batch_size: int) -> list[list[int]]:
        """All indices in groups of at most `batch_size` images of one size, in the order of their first images."""
        groups, open_groups = [], {}
        for index, image in enumerate(self.images):
            size = tuple(self.gt.sizes[image])
            group = open_groups.get(size)
            if group is None or len(group) == batch_size:
                groups.append(group := [])
                open_groups[size] = group
            group.append(index)
        return groups

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """The images at `indices`, of equal size, as one."""
        images = [self[index] for index in indices]
        return {name: torch.cat([image[name] for image in images]) for name in images[0]}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        gt = to_float(torch.from_numpy(self.gt[self.images[index]])[None])
        if self.input is not None:
            degraded = to_float(torch.from_numpy(self.input[self.images[index]])[None])
        else:
            height, width = (side - side % self.scale for side in gt.shape[-2:])
            gt = gt[..., :height, :width].contiguous()
            degraded = self.degrade(gt, np.array([self.seeds[index]], np.uint64))
        return {"input": degraded.to(self.device), "gt": gt.to(self.device)}
