"""metrics.jsonl as columns for the report's charts. Curves are thinned without losing spikes."""

from array import array
from itertools import repeat
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from accel_restore.tracking.run_files import JsonlTail

_MAX_EVENTS = 200  # kept; all are counted
_PLACE = frozenset(("event", "epoch", "step", "rank"))


class Metrics:
    """The content of metrics.jsonl: a column per rank and value, the lines of epochs, and the lines of other events.

    Columns of floats take a tenth of the memory of the parsed lines.
    """

    def __init__(self, path: Path):
        self.lines = JsonlTail(path)
        self.columns: dict[int, dict[str, array]] = {}  # rank → name, including step → values
        self.epochs: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.num_events = 0

    def read(self) -> None:
        """Read the new lines."""
        known = len(self.lines.damaged)
        for line in self.lines:
            self._add(line)
        for number, _ in self.lines.damaged[known:]:
            self._add({"event": "damaged line", "line": number})

    def _add(self, line: dict[str, Any]) -> None:
        event, step = line.get("event"), line.get("step")
        if event == "train" and isinstance(line.get("rank"), int) and isinstance(step, int):
            self._add_values(self.columns.setdefault(line["rank"], {"step": array("d")}), line)
        elif event == "epoch" and isinstance(line.get("epoch"), int):
            self.epochs.append(line)
        elif event != "train":
            self.num_events += 1
            if len(self.events) < _MAX_EVENTS:
                self.events.append(line)

    def _add_values(self, columns: dict[str, array], line: dict[str, Any]) -> None:
        count = len(columns["step"])
        columns["step"].append(line["step"])
        for name, value in line.items():
            if isinstance(value, dict):
                for key, number in value.items():
                    _append(columns, f"{name}/{key}", number, count)
            elif name not in _PLACE:
                _append(columns, name, value, count)

    def ranks(self) -> list[int]:
        """Return the ranks that have lines."""
        return sorted(self.columns)

    def names(self) -> list[str]:
        """Return the names of all columns but step."""
        return list(dict.fromkeys(name for columns in self.columns.values() for name in columns if name != "step"))

    def column(self, rank: int, name: str) -> np.ndarray:
        """Return a column of a rank, with NaN for lines that lack the value.

        Shapes: (number of the rank's lines,).
        """
        columns = self.columns[rank]
        values = np.full(len(columns["step"]), nan)
        given = columns.get(name, ())
        values[: len(given)] = given
        return values

    def columns_of(self, name: str) -> dict[int, np.ndarray]:
        """Return the column of each rank."""
        return {rank: self.column(rank, name) for rank in self.ranks()}

    def samples_per_second(self, rank: int) -> np.ndarray:
        """Return the throughput of a rank; NaN for its first line, whose window a resumption may have shortened."""
        steps = np.diff(self.column(rank, "step"), prepend=nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.column(rank, "samples") / (steps * self.column(rank, "step_s"))

    def is_identical_on_all_ranks(self, name: str) -> bool:
        """Return whether the column is bit-identical on all ranks."""
        first, *others = self.ranks()
        same = [(self.column(first, key), key) for key in ("step", name)]
        return all(
            np.array_equal(mine, self.column(rank, key), equal_nan=True) for rank in others for mine, key in same
        )

    def mean(self, values: dict[int, np.ndarray], samples: str = "samples") -> tuple[np.ndarray, np.ndarray]:
        """Return steps, and the mean over ranks at each step, weighted by the column `samples` of each rank."""
        steps, weights = (np.concatenate([self.column(rank, key) for rank in values]) for key in ("step", samples))
        joined = np.concatenate(list(values.values()))
        known = np.isfinite(joined) & (weights > 0)
        steps, place = np.unique(steps[known], return_inverse=True)
        return steps, np.bincount(place, (joined * weights)[known]) / np.bincount(place, weights[known])


def _append(columns: dict[str, array], name: str, value: Any, count: int) -> None:
    """Append a line's value to a column, or NaN if it is not a number; `count` lines came before."""
    column = columns.get(name)
    if column is None:
        column = columns[name] = array("d")
    if len(column) < count:
        column.extend(repeat(nan, count - len(column)))  # for lines that lack it
    try:
        column.append(value)
    except (TypeError, OverflowError):
        column.append(nan)


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
