"""Synthetic degradations: they make `input` from `gt` on the device, reproducibly for each sample.

Each takes gt of shape (B, C, H, W) in [0, 1] and `seeds`, one integer per sample, and returns a tensor of that shape.
Keyword parameters are configuration; strengths are in 8-bit levels, and a pair [low, high] is drawn anew per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_restore.data.order import hashes, key, uniform
from accel_restore.errors import UserError
from accel_restore.naming import check_arguments, resolve

if TYPE_CHECKING:  # the names are checked before torch is imported
    from torch import Tensor

Range = float | list[float]


def gaussian_noise(gt: Tensor, seeds: np.ndarray, *, sigma: Range) -> Tensor:
    """gt plus white Gaussian noise of standard deviation sigma / 255, neither clipped nor rounded.

    Source: the protocol of the published gray and colour denoising tables (Zhang et al., DnCNN, 2017).
    """
    import torch

    low, high = _range(sigma, "gaussian_noise.sigma")
    sigmas = (low + (high - low) * uniform(hashes(seeds, key(1)))) / 255
    noise = torch.empty(gt.shape, dtype=gt.dtype, device=gt.device)
    generator = torch.Generator(gt.device)
    for sample, (seed, scale) in enumerate(zip(hashes(seeds, key(2)).tolist(), sigmas.tolist(), strict=True)):
        noise[sample].normal_(0.0, scale, generator=generator.manual_seed(seed >> 1))
    return gt + noise


DEGRADATIONS = {"gaussian_noise": gaussian_noise}


def _range(value: Range, what: str) -> tuple[float, float]:
    low, high = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    if not numbers or not 0 <= low <= high < float("inf"):
        raise UserError(f"data.degradation: {what} must be a number from 0 on or a pair [low, high], not {value!r}")
    return float(low), float(high)


def build_degradation(steps: list[tuple[str, dict[str, Any]]]) -> Callable[[Tensor, np.ndarray], Tensor]:
    """A function (gt, seeds) → input that applies the named degradations in order.

    Raises: UserError for arguments that a degradation does not have or cannot use.
    """
    import torch

    parts = []
    for position, (name, arguments) in enumerate(steps):
        function = resolve(name, DEGRADATIONS, "data.degradation")
        check_arguments(function, arguments, f"data.degradation.{position}", skip=("gt", "seeds"))
        try:  # on a small image, for the arguments' values
            function(torch.zeros(1, 1, 8, 8), np.zeros(1, np.uint64), **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"data.degradation.{position}: {name} cannot work with {arguments}: {error}") from error
        parts.append((function, arguments))

    def degrade(gt: Tensor, seeds: np.ndarray) -> Tensor:
        output = gt
        for position, (function, arguments) in enumerate(parts):
            output = function(output, hashes(seeds, key(position)), **arguments)
        return output

    return degrade
