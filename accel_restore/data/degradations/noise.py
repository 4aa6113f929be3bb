"""Gaussian noise of a whole batch in a few operations: each value is a hash of its sample's key and its position.

torch's own generators draw different numbers on a GPU than on a CPU, and need an operation per sample. Here integers
are hashed, and two table entries are looked up and added. So the result is bit-identical on every device.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's constants
_LEVELS = 2**16


def words(keys: Tensor, count: int) -> Tensor:
    """Return the first `count` outputs of splitmix64 seeded by each key, as int64 with the bits of uint64.

    Shapes: keys (B,) int64; returns (B, count).
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    z = torch.arange(1, count + 1, device=keys.device) * _signed(_GOLDEN) + keys[:, None]
    z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(_FIRST))
    z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(_SECOND))
    return z.bitwise_xor_(_shifted(z, 31))


def normals(keys: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return Gaussian noise of mean 0 and variance 1 for each key: (B, *shape), bit-identical on every device.

    A value is the sum of two quantiles of a Gaussian of half the variance, each chosen by 16 bits. The largest value is
    6.0; of a true Gaussian, one value in 10⁹ is larger.
    """
    count = torch.Size(shape).numel()
    places = words(keys, -(-count // 2)).view(torch.int16).to(torch.int32) & (_LEVELS - 1)
    values = _quantiles(keys.device, dtype).index_select(0, places.flatten()).view(len(keys), -1)
    return (values[:, :count] + values[:, count : 2 * count]).view(len(keys), *shape)


def to_device(values: Sequence[float] | Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the values as a tensor on the device, without waiting for a GPU."""
    on_host = torch.tensor(values, dtype=dtype)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host.to(device)


@lru_cache(maxsize=4)
def _quantiles(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The midpoints of 65,536 equally likely parts of a Gaussian, scaled so that their variance is exactly 1/2.

    They are always computed on the CPU.
    """
    quantiles = torch.special.ndtri((torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS)
    return (quantiles / (2 * quantiles.square().mean()).sqrt()).to(dtype).to(device)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift to the right, as for an unsigned integer."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
