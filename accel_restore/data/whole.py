"""Whole images for validation: the same input for an image in every epoch, on any device and any rank."""

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from accel_restore.data.crops import to_float
from accel_restore.data.store import Store


class WholeImages:
    """A sequence of {"input", "gt"}, float (1, C, H, W) in [0, 1] on `device`.

    A synthetic degradation is keyed by the image's name and drawn on the CPU, so that it is the same every time.
    """

    def __init__(
        self,
        names: list[str],
        gt: Store,
        input: Store | None,
        images: list[int],
        degrade: Callable[[Tensor, np.ndarray], Tensor],
        device: torch.device,
    ):
        self.names, self.gt, self.input, self.images = names, gt, input, images
        self.degrade, self.device = degrade, device
        self.seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        gt = _image(self.gt, self.images[index])
        if self.input is not None:
            degraded = _image(self.input, self.images[index])
        else:
            degraded = self.degrade(gt, np.array([self.seeds[index]], np.uint64))
        return {"input": degraded.to(self.device), "gt": gt.to(self.device)}


def _image(store: Store, index: int) -> Tensor:
    return to_float(torch.from_numpy(np.array(store[index]))[None])
