"""Keyed random numbers: a draw is a hash of (seed, pass, sample id, purpose), so there is no random state to store."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from enum import IntEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the names of degradations are checked before torch is imported
    import torch
    from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's constants
_ROUNDS = 6

Range = float | Sequence[float]  # a number, or a pair [low, high] drawn uniformly for each sample


class Draw(IntEnum):
    """What a hash is used for. Values are never reused or changed: they determine the bits of every run."""

    TOP = 0
    LEFT = 1
    FLIP = 2
    DEGRADE = 3
    MIXED = 16
    PARTNER = 17
    SHARE = 18
    SET = 24
    FORWARD = 32


def ends(span: Range) -> tuple[float, float]:
    """Return the lowest and the highest value of a range."""
    low, high = span if isinstance(span, Sequence) else (span, span)
    return low, high


class KeyedRandom:
    """A source of draws whose n-th draw is a hash of (seed, n), the same in any thread and on any rank."""

    def __init__(self, seed: int):
        self.seed, self.count = seed, 0

    def _next(self) -> int:
        self.count += 1
        return key(self.seed, self.count)

    def split(self, index: int) -> KeyedRandom:
        """Return an independent source for part `index`; earlier draws do not affect it."""
        return KeyedRandom(key(self.seed, -1, index))

    def uniform(self, span: Range) -> float:
        """Draw a float from a range, or return the number itself."""
        low, high = ends(span)
        return low + (high - low) * (self._next() >> 11) * 2.0**-53

    def integer(self, low: int, high: int) -> int:
        """Draw an integer from `low` to `high`, both included."""
        return low + self._next() % (high - low + 1)

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.uniform((0, 1)) < probability

    def choice(self, items: Sequence, weights: Sequence[float] | None = None) -> Any:
        """Draw one of `items` with probabilities proportional to `weights`. Raises: ValueError for invalid weights."""
        weights = [1.0] * len(items) if weights is None else weights
        if len(weights) != len(items) or any(weight < 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"weights {weights} do not fit {len(items)} choices")
        place = self.uniform((0, sum(weights)))
        return items[bisect(list(accumulate(weights)), place, hi=len(items) - 1)]

    def permutation(self, n: int) -> list[int]:
        """Return 0 … n − 1 in a random order."""
        return sorted(range(n), key=[self._next() for _ in range(n)].__getitem__)

    def signed(self) -> int:
        """Draw a signed 64-bit integer."""
        return self._next() - 2**63

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a torch generator seeded by the next draw, for draws per pixel."""
        import torch

        return torch.Generator(device).manual_seed(self._next() >> 1)

    def normal(self, like: Tensor, sigma: float = 1.0) -> Tensor:
        """Draw Gaussian noise with the shape, dtype and device of `like`."""
        import torch

        noise = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return noise.normal_(0.0, sigma, generator=self.generator(like.device))


class EvenRandom(KeyedRandom):
    """Keyed draws for trials: the possible outcomes of a chance or a choice are equally likely, so rare ones occur."""

    def split(self, index: int) -> EvenRandom:
        """Return an independent source for part `index`; earlier draws do not affect it."""
        return EvenRandom(super().split(index).seed)

    def chance(self, probability: float) -> bool:
        """Return True or False with equal probability, or the only possible outcome."""
        return super().chance(0.5 if 0 < probability < 1 else probability)

    def choice(self, items: Sequence, weights: Sequence[float] | None = None) -> Any:
        """Draw one of the `items` with a weight above 0."""
        return super().choice(items, None if weights is None else [float(weight > 0) for weight in weights])


def seed_forward(seed: int, device: torch.device) -> None:
    """Seed the generators from which a model's forward may draw: torch's for the CPU and the device, Python's, NumPy's.

    `torch.manual_seed` would take 0.2 ms longer: as long as CUDA is not in use, it records a stack trace for each call.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002  the generator that such models draw from


def key(*parts: int) -> int:
    """Return a 64-bit hash of integers; their order matters."""
    state = 0
    for part in parts:
        state = _mix(state ^ _mix(part & _MASK))
    return state


def _mix(value: int) -> int:
    """Return the splitmix64 hash of a 64-bit number.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    z = (value + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def keys(seed: int, passes: np.ndarray, purpose: int) -> np.ndarray:
    """Return for each sample the key (uint64) of its draws for one purpose, from the seed and the sample's pass."""
    each = passes.tolist()
    found = {one: key(seed, one, purpose) for one in set(each)}  # for a batch, faster than np.unique
    return np.array([found[one] for one in each], np.uint64)


def hashes(values: np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Return a uint64 hash of each integer under a `key`, or each under its own one (uint64).

    A counter-based generator: splitmix64 over arrays.
    """
    z = (values.astype(np.uint64) ^ np.asarray(key, np.uint64)) + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    return z ^ (z >> np.uint64(31))


def uniform(hashes: np.ndarray) -> np.ndarray:
    """Convert uint64 hashes to floats in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(positions: np.ndarray, size: int, seed: int, passes: np.ndarray) -> np.ndarray:
    """Return the ids at `positions` of random permutations of 0 … size − 1, one per seed and pass, in O(1) each.

    A permutation is a Feistel network over the smallest even number of bits that holds `size`. Results that are too
    large are permuted again (cycle walking), on average fewer than three times.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    half_bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    round_keys = [keys(seed, passes, round_) for round_ in range(_ROUNDS)]
    ids = np.asarray(positions).astype(np.uint64)
    outside = np.ones(ids.shape, bool)
    while outside.any():
        left, right = ids[outside] >> half_bits, ids[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (hashes(right, round_key[outside]) & mask)
        ids[outside] = (left << half_bits) | right
        outside = ids >= np.uint64(size)
    return ids.astype(np.int64)
