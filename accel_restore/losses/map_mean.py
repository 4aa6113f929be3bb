"""The mean of a map of values over an image, computed block by block.

A large image then needs memory for the map alone, not for every intermediate result. On a CPU a block stays in the
cache of one core: SSIM takes a tenth of the time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

from torch import Tensor

# Values of a block. With more, torch divides each operation on a CPU between threads, which costs more than it gains.
_MOST_ON_CPU, _MOST_ON_GPU = 2**15, 2**22
_SMALL = 2**10


@contextmanager
def small_blocks() -> Iterator[None]:
    """Use small blocks in this context, to measure on small images how memory grows with large ones."""
    global _MOST_ON_CPU, _MOST_ON_GPU
    former = _MOST_ON_CPU, _MOST_ON_GPU
    _MOST_ON_CPU = _MOST_ON_GPU = _SMALL
    try:
        yield
    finally:
        _MOST_ON_CPU, _MOST_ON_GPU = former


def mean_of_map(
    map: Callable[[Tensor, Tensor], Tensor], output: Tensor, gt: Tensor, margin: int = 0, most: int | None = None
) -> Tensor:
    """Return the mean of `map(output, gt)` for each image, over channels and pixels; shape (B,).

    A value of the map may depend on the pixels at its place and up to `margin` below it and to the right. `most`
    bounds the number of values in a block. The result does not depend on it if each value is computed by itself, such
    as a sum of pixels.

    Shapes: the images (B, C, H, W), the map (B, C', H - margin, W - margin) with any C'.
    """
    if most is None:
        most = _MOST_ON_CPU if gt.device.type == "cpu" else _MOST_ON_GPU
    batch, channels, *sides = gt.shape
    height, width = (side - margin for side in sides)
    step = max(16, int((most / (batch * channels)) ** 0.5) - margin)
    values: Tensor | None = None
    for top, left in product(range(0, max(1, height), step), range(0, max(1, width), step)):
        part = map(*(images[..., top : top + step + margin, left : left + step + margin] for images in (output, gt)))
        if values is None:
            values = part.new_empty(*part.shape[:2], height, width)
        values[..., top : top + step, left : left + step] = part
    assert values is not None
    return values.flatten(1).mean(1)
