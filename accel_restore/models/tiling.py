"""How a network is applied to whole images: in overlapping tiles, and averaged over flips and rotations.

Plain functions of a network and images (B, C, H, W); validation and restoring share them.
"""

from collections.abc import Callable, Iterator
from itertools import groupby, product

import torch
from torch import Tensor

GRID = 16  # pixels: tiles start at multiples, so that networks that halve the size four times see it as in the whole


def tiled(
    model: Callable[[Tensor], Tensor], images: Tensor, tile: int, overlap: int, scale: int = 1, batch: int = 1
) -> Tensor:
    """The output of `model` for images of any size, of which it sees at most `batch` tiles of `tile` x `tile` pixels.

    Neighbouring tiles share at least `overlap` pixels. In the middle quarter of what they share, the output goes over
    from one to the other; so nothing comes from nearer than 3/8 of the overlap to a cut. The output is that for the
    whole image if the network looks no further than that, and has no seams if it does. A network with means over the
    image (NAFNet's channel attention) takes them over the tile.

    Shapes: (B, C, H, W) to (B, C, H * scale, W * scale). Units: `tile` and `overlap` in pixels of the input.
    Raises: ValueError where `tile` is not larger than `overlap` by at least 16 pixels.
    """
    if overlap < 0 or tile < overlap + GRID:
        raise ValueError(f"tile={tile} must be at least {GRID} above overlap={overlap}, which must not be below 0")
    height, width = images.shape[-2:]
    if height <= tile and width <= tile:
        return model(images)
    rows, columns = cuts(height, tile, overlap), cuts(width, tile, overlap)
    total = images.new_zeros(*images.shape[:2], height * scale, width * scale)
    sides = (zip(parts, fades(parts, scale, total), strict=True) for parts in (rows, columns))
    for group in _batches(list(product(*sides)), batch):
        tiles = [images[..., top:bottom, left:right] for ((top, bottom), _), ((left, right), _) in group]
        outputs = model(torch.cat(tiles) if len(tiles) > 1 else tiles[0]).split(len(images))
        for (((top, bottom), down), ((left, right), across)), output in zip(group, outputs, strict=True):
            part = total[..., top * scale : bottom * scale, left * scale : right * scale]
            part += output * (down[:, None] * across)
    return total


def _batches(parts: list, batch: int) -> Iterator[list]:
    """The parts in order, up to `batch` together that follow each other and are of one size (the last differ)."""
    for _, group in groupby(parts, lambda part: [end - start for (start, end), weights in part]):
        same = list(group)
        yield from (same[first : first + batch] for first in range(0, len(same), batch))


def cuts(side: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """The (start, end) of the tiles along a side: starts are multiples of 16, neighbours share `overlap` or more."""
    if side <= tile:
        return [(0, side)]
    stride = (tile - overlap) // GRID * GRID
    last = -(-(side - tile) // GRID) * GRID
    return [(start, min(start + tile, side)) for start in (*range(0, last, stride), last)]


def fades(parts: list[tuple[int, int]], scale: int, like: Tensor) -> list[Tensor]:
    """The weight of each part at each of its output pixels along a side; those of a pixel add up to 1."""
    weights = [like.new_ones((end - start) * scale) for start, end in parts]
    for (_, end), (after, _), weight, next_weight in zip(parts, parts[1:], weights, weights[1:], strict=False):
        shared = (end - after) * scale
        place = torch.arange(shared, dtype=like.dtype, device=like.device) + 0.5
        rise = ((place - shared / 2) * 4 / max(shared, 1) + 0.5).clamp(0, 1)
        weight[len(weight) - shared :] *= 1 - rise
        next_weight[:shared] *= rise
    sums = like.new_zeros(parts[-1][1] * scale)  # 1, but where a tile shares pixels with the next but one
    for (start, end), weight in zip(parts, weights, strict=True):
        sums[start * scale : end * scale] += weight
    return [weight / sums[start * scale : end * scale] for (start, end), weight in zip(parts, weights, strict=True)]


def self_ensemble(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The mean of the eight outputs of `model` for the images flipped and rotated, each turned back.

    Shapes: as the model's; it is called with (B, C, H, W) and (B, C, W, H).
    Source: Timofte et al. 2016, "Seven ways to improve example-based single image super resolution"; called
        self-ensemble, and marked by "+", in EDSR, Lim et al. 2017.
    """
    total = 0.0
    for flip in (False, True):
        turned = images.flip(-1) if flip else images
        for quarters in range(4):
            output = model(turned.rot90(quarters, (-2, -1))).to(images.dtype).rot90(-quarters, (-2, -1))
            total = total + (output.flip(-1) if flip else output)
    return total / 8
