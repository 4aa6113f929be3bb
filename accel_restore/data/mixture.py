"""How several training sets are mixed: which set each position of the stream of samples takes, and how often before.

After any number of samples each set has been used as often as its share says, to within one sample. The order repeats
after a period, so any position is computed in O(1).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

_LONGEST_PERIOD = 2**17  # samples; such an order takes 0.4 s to compute


@dataclass(frozen=True)
class MixedSet:
    """A training set as one part of the stream of samples."""

    num_samples: int  # per pass over the set
    uses: int = 1  # in each period of the order of all sets
    synthetic_share: Fraction = Fraction(0)  # of the samples; their input is made although the set has files of it


@dataclass(frozen=True)
class MixedOrder:
    """For each position of a period: the set that it takes, and how often the period has taken this set before."""

    sets: np.ndarray
    counts: np.ndarray


def uses_per_period(shares: Sequence[float | None], num_samples: Sequence[int]) -> list[int]:
    """Return how often each set is used in a period. Sets without a share divide the rest by their numbers of samples.

    The shares add up to at most 1; if they do not reach it and no set is without one, they are scaled to 1. Without a
    common denominator that is short enough for a period, shares are rounded, typically by less than 1e-7, and to at
    least 1/131072.
    """
    given = [None if share is None else Fraction(str(share)) for share in shares]
    rest = 1 - sum((share for share in given if share is not None), Fraction(0))
    others = sum(count for share, count in zip(given, num_samples, strict=True) if share is None)
    exact = [
        rest * count / others if share is None else share if others else share / (1 - rest)
        for share, count in zip(given, num_samples, strict=True)
    ]
    period = lcm(*(share.denominator for share in exact))
    return [int(share * period) for share in exact] if period <= _LONGEST_PERIOD else _rounded(exact)


def _rounded(shares: list[Fraction]) -> list[int]:
    """Return the uses in the period that comes closest to the shares; at least one of each set."""
    wanted = np.array(shares, float)
    periods = np.arange(_LONGEST_PERIOD // 2, _LONGEST_PERIOD + 1)[:, None]
    uses = np.maximum(1, np.rint(wanted * periods)).astype(np.int64)
    largest = int(wanted.argmax())
    uses[:, largest] += periods[:, 0] - uses.sum(1)
    return uses[np.abs(uses / periods - wanted).max(1).argmin()].tolist()


@lru_cache(maxsize=4)
def mixed_order(uses: tuple[int, ...]) -> MixedOrder:
    """Return the order of a period in which set i is used `uses[i]` times.

    With K sets, a set's count differs from its share of the positions by at most 1 - 1 / (2K - 2), everywhere. Use j of
    a set therefore has a first and a last position; of the uses whose first position is reached, the one with the
    earliest last position is next.

    Source: Tijdeman, "The chairman assignment problem", 1980.
    """
    period, unit = sum(uses), 2 * len(uses) - 2
    if len(uses) == 1:
        return MixedOrder(np.zeros(period, np.int64), np.arange(period))
    sets, counts = np.empty(period, np.int64), np.empty(period, np.int64)
    waiting = [(_first(1, count, period, unit), index, 1) for index, count in enumerate(uses)]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    for position in range(1, period + 1):
        while waiting and waiting[0][0] <= position:
            _, index, use = heapq.heappop(waiting)
            last = period * (unit * use - 1) // (unit * uses[index]) + 1
            heapq.heappush(ready, (last, index, use))
        _, index, use = heapq.heappop(ready)
        sets[position - 1], counts[position - 1] = index, use - 1
        if use < uses[index]:
            heapq.heappush(waiting, (_first(use + 1, uses[index], period, unit), index, use + 1))
    return MixedOrder(sets, counts)


def _first(use: int, uses: int, period: int, unit: int) -> int:
    """The first position, counted from 1, for a use of a set, counted from 1."""
    return -(-period * (unit * use - unit + 1) // (unit * uses))
