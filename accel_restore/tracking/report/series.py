"""metrics.jsonl in columns, for the report's charts: read as it grows, and thinned so that no spike is lost."""

from array import array
from itertools import repeat
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from accel_restore.tracking.run_files import JsonlTail

_MOST_EVENTS = 200  # that are kept; all are counted
_PLACE = frozenset(("event", "epoch", "step", "rank"))


class Metrics:
    """A run's metrics.jsonl: per rank a column for each figure, and the lines of epochs and of what else happened.

    Columns of floats take a tenth of the memory of the lines' objects.
    """

    def __init__(self, path: Path):
        self.lines = JsonlTail(path)
        self.columns: dict[int, dict[str, array]] = {}  # rank → name → values, `step` among them
        self.epochs: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.num_events = 0

    def read(self) -> None:
        """Read the lines that have come since."""
        for line in self.lines:
            self._add(line)

    def _add(self, line: dict[str, Any]) -> None:
        event, step = line.get("event"), line.get("step")
        if event == "train" and isinstance(line.get("rank"), int) and isinstance(step, int):
            self._add_figures(self.columns.setdefault(line["rank"], {"step": array("d")}), line)
        elif event == "epoch" and isinstance(line.get("epoch"), int):
            self.epochs.append(line)
        elif event != "train":
            self.num_events += 1
            if len(self.events) < _MOST_EVENTS:
                self.events.append(line)

    def _add_figures(self, columns: dict[str, array], line: dict[str, Any]) -> None:
        count = len(columns["step"])
        columns["step"].append(line["step"])
        for name, value in line.items():
            if isinstance(value, dict):
                for key, number in value.items():
                    _append(columns, f"{name}/{key}", number, count)
            elif name not in _PLACE:
                _append(columns, name, value, count)

    def ranks(self) -> list[int]:
        return sorted(self.columns)

    def names(self) -> list[str]:
        """The names of all figures, in the order of the lines."""
        return list(dict.fromkeys(name for columns in self.columns.values() for name in columns if name != "step"))

    def column(self, rank: int, name: str) -> np.ndarray:
        """The values of a figure, NaN where a line lacks it: (lines of the rank,)."""
        columns = self.columns[rank]
        values = np.full(len(columns["step"]), nan)
        given = columns.get(name, ())
        values[: len(given)] = given
        return values

    def figures(self, name: str) -> dict[int, np.ndarray]:
        """The column of each rank."""
        return {rank: self.column(rank, name) for rank in self.ranks()}

    def samples_per_second(self, rank: int) -> np.ndarray:
        """What a rank has trained on, per second; NaN for its first line, which a resumption may have cut short."""
        steps = np.diff(self.column(rank, "step"), prepend=nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.column(rank, "samples") / (steps * self.column(rank, "step_s"))

    def equal_on_all_ranks(self, name: str) -> bool:
        """Whether every rank has the same figures, to the bit."""
        first, *others = self.ranks()
        same = [(self.column(first, key), key) for key in ("step", name)]
        return all(
            np.array_equal(mine, self.column(rank, key), equal_nan=True) for rank in others for mine, key in same
        )

    def mean(self, values: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Steps, and the mean of a figure of each rank over the samples of all ranks at each of them."""
        steps, weights = (np.concatenate([self.column(rank, key) for rank in values]) for key in ("step", "samples"))
        values = np.concatenate(list(values.values()))
        known = np.isfinite(values) & (weights > 0)
        steps, place = np.unique(steps[known], return_inverse=True)
        return steps, np.bincount(place, (values * weights)[known]) / np.bincount(place, weights[known])


def _append(columns: dict[str, array], name: str, value: Any, count: int) -> None:
    """Add the value of a line to a column, NaN where it is no number; `count` is the number of lines before."""
    column = columns.get(name)
    if column is None:
        column = columns[name] = array("d")
    if len(column) < count:
        column.extend(repeat(nan, count - len(column)))  # of lines that lack it
    try:
        column.append(value)
    except (TypeError, OverflowError):
        column.append(nan)


def thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[list[float], list[float]]:
    """At most about `most` points of a curve: of every stretch the lowest and the highest, and both ends.

    Values that are no numbers are left out.
    """
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(y) > most:
        size = -(-len(y) // max(1, most // 2 - 1))
        padded = np.pad(y, (0, -len(y) % size), mode="edge").reshape(-1, size)
        starts = np.arange(len(padded)) * size
        chosen = np.concatenate([starts + padded.argmin(1), starts + padded.argmax(1), [0, len(y) - 1]])
        chosen = np.unique(np.minimum(chosen, len(y) - 1))
        x, y = x[chosen], y[chosen]
    return [int(value) for value in x], [float(f"{value:.6g}") for value in y]
