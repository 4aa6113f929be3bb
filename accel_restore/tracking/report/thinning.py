"""Sequences of any length in bounded memory. What is kept depends on the values alone, not on when they were read."""

from array import array
from math import inf, isfinite, nan

import numpy as np

_MOST = 4096  # values kept; a multiple of 4

Points = tuple[np.ndarray, np.ndarray]  # x and y


class Curve:
    """All points of a short curve; of a long one, the lowest and the highest point of equal intervals, and both ends.

    Points whose y is not finite are left out.
    """

    def __init__(self) -> None:
        self.x, self.y = array("d"), array("d")
        self.size = 1  # points in an interval
        self._open = 0  # points in the interval that is not complete
        self._low, self._high = (nan, inf), (nan, -inf)  # of that interval
        self._first = self._last = (nan, nan)

    def __len__(self) -> int:
        return len(self.x)

    def add(self, x: float, y: float) -> None:
        """Append a point."""
        if not isfinite(y):
            return
        self._last = (x, y)
        if self.size == 1:
            self.x.append(x)
            self.y.append(y)
        else:
            if y < self._low[1]:
                self._low = (x, y)
            if y > self._high[1]:
                self._high = (x, y)
            self._open += 1
            if self._open < self.size:
                return
            for point in sorted((self._low, self._high)):
                self.x.append(point[0])
                self.y.append(point[1])
            self._open, self._low, self._high = 0, (nan, inf), (nan, -inf)
        if len(self.x) >= _MOST:
            self._halve()

    def _halve(self) -> None:
        """Join neighbouring intervals: of four points, keep the lowest and the highest."""
        if self.size == 1:
            self._first = self.x[0], self.y[0]
        x, y = np.array(self.x).reshape(-1, 4), np.array(self.y).reshape(-1, 4)
        chosen = np.sort(np.stack([y.argmin(1), y.argmax(1)], 1), axis=1)
        self.x = array("d", np.take_along_axis(x, chosen, 1).ravel())
        self.y = array("d", np.take_along_axis(y, chosen, 1).ravel())
        self.size *= 4 if self.size == 1 else 2

    def points(self) -> Points:
        """Return the points that are kept, in order."""
        x, y = np.array(self.x), np.array(self.y)
        if self.size > 1:
            last = sorted((self._low, self._high)) if self._open else []
            ends = np.array([self._first, *last, self._last])
            x, y = np.concatenate([ends[:1, 0], x, ends[1:, 0]]), np.concatenate([ends[:1, 1], y, ends[1:, 1]])
            is_new = np.append(True, (np.diff(x) != 0) | (np.diff(y) != 0))
            x, y = x[is_new], y[is_new]
        return x, y


class Sample:
    """All values of a short sequence; of a long one, every n-th, for medians. Non-finite values are left out."""

    def __init__(self) -> None:
        self.values = array("d")
        self.step, self._count = 1, 0

    def add(self, value: float) -> None:
        """Append a value."""
        if isfinite(value):
            if self._count % self.step == 0:
                self.values.append(value)
            self._count += 1
            if len(self.values) >= _MOST:
                self.values = self.values[::2]
                self.step *= 2

    def median(self) -> float:
        """Return the median; NaN of no values."""
        return float(np.median(self.values)) if self.values else nan


def thin(x: np.ndarray, y: np.ndarray, limit: int) -> tuple[list[int], list[float]]:
    """Return about `limit` points of a curve: the minimum and maximum of each interval, and both ends.

    Non-finite values are left out.
    """
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(y) > limit:
        size = -(-len(y) // max(1, limit // 2 - 1))
        padded = np.pad(y, (0, -len(y) % size), mode="edge").reshape(-1, size)
        starts = np.arange(len(padded)) * size
        chosen = np.concatenate([starts + padded.argmin(1), starts + padded.argmax(1), [0, len(y) - 1]])
        chosen = np.unique(np.minimum(chosen, len(y) - 1))
        x, y = x[chosen], y[chosen]
    return [int(value) for value in x], [float(f"{value:.6g}") for value in y]
