"""The application of a network to whole images: in overlapping tiles, and averaged over flips and rotations.

These are plain functions of a network and images (B, C, H, W), which validation and restoration share.
"""

from collections.abc import Callable, Iterator
from itertools import groupby, product

import torch
from torch import Tensor

GRID = (
    16  # pixels; tiles start at multiples, so that networks that halve the size four times see the whole image's grid
)


def tiled(
    model: Callable[[Tensor], Tensor], images: Tensor, tile: int, overlap: int, scale: int = 1, batch: int = 1
) -> Tensor:
    """Return the output of `model` for images of any size, computed for up to `batch` tiles at once.

    Tiles have at most `tile` x `tile` pixels, and neighbours share at least `overlap` pixels. The output is blended
    from one tile to the next in the middle quarter of the shared pixels, so no output pixel is closer to a cut than 3/8
    of the overlap. If the receptive field is not larger than that, the output equals the output for the whole image;
    otherwise it differs, but has no seams. A network that averages over the image (NAFNet's channel attention) averages
    over the tile.

    Shapes: (B, C, H, W) to (B, C, H * scale, W * scale). Units: `tile` and `overlap` in pixels of the input.
    Raises: ValueError unless `tile` is at least 16 pixels larger than `overlap`.
    """
    if overlap < 0 or tile < overlap + GRID:
        raise ValueError(f"tile={tile} must be at least {GRID} above overlap={overlap}, which must not be negative")
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
    """Yield groups of up to `batch` consecutive parts of equal size; the last tiles have another size."""
    for _, group in groupby(parts, lambda part: [end - start for (start, end), weights in part]):
        same = list(group)
        yield from (same[first : first + batch] for first in range(0, len(same), batch))


def cuts(side: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Return (start, end) of the tiles along a side. Starts are multiples of 16, neighbours share >= `overlap`."""
    if side <= tile:
        return [(0, side)]
    stride = (tile - overlap) // GRID * GRID
    last = -(-(side - tile) // GRID) * GRID
    return [(start, min(start + tile, side)) for start in (*range(0, last, stride), last)]


def fades(parts: list[tuple[int, int]], scale: int, like: Tensor) -> list[Tensor]:
    """Return the weight of each part at its output pixels along a side. The weights of a pixel sum to 1."""
    weights = [like.new_ones((end - start) * scale) for start, end in parts]
    for (_, end), (after, _), weight, next_weight in zip(parts, parts[1:], weights, weights[1:], strict=False):
        shared = (end - after) * scale
        place = torch.arange(shared, dtype=like.dtype, device=like.device) + 0.5
        rise = ((place - shared / 2) * 4 / max(shared, 1) + 0.5).clamp(0, 1)
        weight[len(weight) - shared :] *= 1 - rise
        next_weight[:shared] *= rise
    sums = like.new_zeros(parts[-1][1] * scale)  # 1, except where a tile shares pixels with the next but one
    for (start, end), weight in zip(parts, weights, strict=True):
        sums[start * scale : end * scale] += weight
    return [weight / sums[start * scale : end * scale] for (start, end), weight in zip(parts, weights, strict=True)]


def self_ensemble(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the mean of the model's eight outputs for flipped and rotated images, each transformed back.

    Shapes: as the model's, which is called with (B, C, H, W) and (B, C, W, H).
    Source: Timofte et al. 2016, "Seven ways to improve example-based single image super resolution"; called
        self-ensemble and marked with "+" in EDSR, Lim et al. 2017.
    """
    total = images.new_zeros(())
    for flip in (False, True):
        turned = images.flip(-1) if flip else images
        for quarters in range(4):
            output = model(turned.rot90(quarters, (-2, -1))).to(images.dtype).rot90(-quarters, (-2, -1))
            total = total + (output.flip(-1) if flip else output)
    return total / 8
