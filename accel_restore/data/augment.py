"""Augmentation of a batch on the training device: flips, quarter turns, mixing, degradation, conversion to float."""

from concurrent.futures import Executor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.pixels import UNIT, Range

FLIPS = {"hflip": 1, "vflip": 2, "rot90": 4}  # bits of a sample's code


def finish_batch(
    batch: dict, degrade: DegradationPipeline, *, channels_last: bool, readers: Executor | None = None
) -> dict[str, Tensor | np.ndarray]:
    """Return the batch that a model trains on: `input` and `gt` (B, C, H, W) in [0, 1], flipped and degraded.

    Float pixels may be outside of [0, 1].

    The work is done on the device of the batch. `readers` degrade the samples in parallel; without them the samples are
    degraded one by one.
    """
    low, high = batch.get("range", UNIT)
    range = float(low), float(high)
    gt = to_float(batch["gt"], batch.get("flips"), channels_last, range)
    if "input" in batch:
        degraded = to_float(batch["input"], batch.get("flips"), channels_last, range)
    else:
        degraded = degrade(gt, batch["seeds"]) if readers is None else degrade(gt, batch["seeds"], readers.map)
        if channels_last:
            degraded = degraded.contiguous(memory_format=torch.channels_last)
    if "partner" in batch:
        degraded, gt = (mixed(images, batch["partner"], batch["share"]) for images in (degraded, gt))
    return {"input": degraded, "gt": gt, **{name: batch[name] for name in ("weight", "id", "set") if name in batch}}


def mixed(images: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Return share * image + (1 - share) * partner for the first B images; `partner` (B,) holds indices of `images`.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018. Both images of a pair are mixed with one
    share, as in the training of Restormer and MIRNet (Zamir et al. 2020).
    """
    return torch.lerp(images[partner], images[: len(partner)], share.view(-1, 1, 1, 1))


def to_float(crops: Tensor, codes: Tensor | None = None, channels_last: bool = False, range: Range = UNIT) -> Tensor:
    """Return crops (B, H, W, C) as float (B, C, H, W) on the scale of networks, of torch's default dtype.

    Integers are divided by their largest value. Of float crops, `range` becomes [0, 1]; others are outside of it, and
    nothing is clamped. `codes` are the flips and rotations of each sample; with them H and W must be equal.
    """
    batch, height, width, channels = crops.shape
    images = torch.empty(
        (batch, channels, height, width),
        dtype=torch.get_default_dtype(),
        device=crops.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if codes is not None and crops.device.type == "cpu":  # on a CPU, one by one is twice as fast
        for image, crop, code in zip(images, crops, codes.tolist(), strict=True):
            image.copy_(turned(crop, code).permute(2, 0, 1))
    else:
        images.copy_((crops if codes is None else turned_together(crops, codes)).permute(0, 3, 1, 2))
    if not crops.is_floating_point():
        return images.div_(torch.iinfo(crops.dtype).max)
    low, high = range
    return images if range == UNIT else images.sub_(low).div_(high - low)


def turned(crop: Tensor, code: int) -> Tensor:
    """Return a crop (H, W, C) on the CPU with the flips, then the rotation by 90° (counter-clockwise), of a code."""
    rotate = bool(code & FLIPS["rot90"])
    dims = [dim for dim, flip in ((1, bool(code & FLIPS["hflip"]) ^ rotate), (0, code & FLIPS["vflip"])) if flip]
    crop = crop.flip(dims) if dims else crop
    if not rotate:
        return crop
    values = crop.numpy()  # moves whole pixels; torch would move each value of a pixel
    pixels = values.view(np.dtype((np.void, values.shape[2] * values.itemsize)))[..., 0]
    return torch.from_numpy(np.ascontiguousarray(pixels.T).view(values.dtype).reshape(*pixels.T.shape, -1))


def turned_together(crops: Tensor, codes: Tensor) -> Tensor:
    """Return square crops (B, H, W, C), each as `turned` returns it, in two operations for any number of crops.

    Shapes: codes (B,) int64, on the device of the crops.
    """
    pixels = crops.flatten(1, 2)
    places = _places(crops.shape[1], crops.device)[codes].unsqueeze(2).expand_as(pixels)
    if pixels.dtype == torch.uint16:  # torch has few GPU operations for uint16
        return pixels.view(torch.int16).gather(1, places).view(torch.uint16).view_as(crops)
    return pixels.gather(1, places).view_as(crops)


@lru_cache(maxsize=4)
def _places(side: int, device: torch.device) -> Tensor:
    """For each code and position, the index of the pixel that moves there. Shapes: (8, side²) int64."""
    grid = torch.arange(side**2).view(side, side, 1)
    return torch.stack([turned(grid, code).flatten() for code in range(8)]).to(device)
