"""What the report and the curves show of metrics.jsonl, in memory that does not grow with the run."""

from collections.abc import Iterator
from contextlib import suppress
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from accel_restore.tracking.report.thinning import Curve, Points, Sample
from accel_restore.tracking.run_files import JsonlTail, is_number, set_scores, validation_scores

MEAN_ABOVE = 8  # with more ranks than this, curves of their mean are kept too
TERMS, SETS, SET_SAMPLES = "terms/", "set_loss/", "set_samples/"
_MAX_EVENTS = 200  # kept; all are counted
_PLACE = frozenset(("event", "epoch", "step", "rank"))


class Rank:
    """The train lines of one rank."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}  # of each value over steps, and of `speed` and `wait`
        self.samples = {name: Sample() for name in ("speed", "step_s", "wait_s")}
        self.num_lines = 0
        self._step = nan

    def add(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Add a line; return its values, and those that follow from them: samples per second and % of waiting.

        The first line has no samples per second, because a resumption may have shortened its window.
        """
        seconds, samples = values.get("step_s", nan), values.get("samples", nan)
        duration = (step - self._step) * seconds
        values = {
            **values,
            "speed": samples / duration if duration else nan,
            "wait": 100 * values.get("wait_s", nan) / seconds if seconds else nan,
        }
        for name, value in values.items():
            if name not in self.curves:
                self.curves[name] = Curve()
            self.curves[name].add(step, value)
        for name, sample in self.samples.items():
            sample.add(values.get(name, nan))
        self.num_lines += 1
        self._step = step
        return values


class Metrics:
    """The content of metrics.jsonl: curves of each rank and of validation, and the first lines of other events."""

    def __init__(self, path: Path):
        self.lines = JsonlTail(path)
        self.ranks: dict[int, Rank] = {}
        self.means: dict[str, Curve] = {}  # over all ranks, weighted by their samples; see `_has_mean`
        self.scores: dict[str, Curve] = {}  # of validation over epochs from 1; terms are terms/NAME
        self.set_scores: dict[str, dict[str, Curve]] = {}
        self.train_loss = Curve()
        self.best: tuple[int, dict[str, Any]] | None = None  # the best epoch, from 1, and its scores
        self.seconds, self.total_seconds = Sample(), 0.0  # of epochs
        self.events: list[dict[str, Any]] = []
        self.num_events = 0
        self._differing: set[str] = set()  # values that ranks do not share
        self._step: int | None = None  # of the lines in `_group`
        self._group: dict[int, dict[str, float]] = {}  # rank → its values; complete once another step follows

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
            if step != self._step or line["rank"] in self._group:
                self._close_group()
                self._step, self._group = step, {}
            rank = self.ranks.setdefault(line["rank"], Rank())
            self._group[line["rank"]] = rank.add(step, dict(_numbers(line)))
        elif event == "epoch" and isinstance(line.get("epoch"), int):
            self._add_epoch(line["epoch"] + 1, line)
        elif event != "train":
            self.num_events += 1
            if len(self.events) < _MAX_EVENTS:
                self.events.append(line)

    def _close_group(self) -> None:
        for name, mean in self._means_of_group():
            self.means.setdefault(name, Curve()).add(self._step or 0, mean)
        self._differing |= self._differences_in_group()

    def _means_of_group(self) -> Iterator[tuple[str, float]]:
        """Yield the mean over ranks of each value that is shown as one."""
        for name in dict.fromkeys(name for values in self._group.values() for name in values):
            if name.startswith((TERMS, SETS)) or len(self._group) > MEAN_ABOVE:
                weight = SET_SAMPLES + name.removeprefix(SETS) if name.startswith(SETS) else "samples"
                pairs = [(values.get(name, nan), values.get(weight, nan)) for values in self._group.values()]
                pairs = [(value, samples) for value, samples in pairs if isfinite(value) and samples > 0]
                if pairs:
                    yield name, sum(value * samples for value, samples in pairs) / sum(n for _, n in pairs)

    def _differences_in_group(self) -> set[str]:
        """Return the names of the values that are not bit-identical on all ranks; `step` if lines are missing."""
        first, *others = self._group.values() or [{}]
        missing = {"step"} if len(self._group) not in (0, len(self.ranks)) else set()
        names = {name for values in others for name in values.keys() | first.keys()} - self._differing
        return missing | {name for name in names if any(not _is_same(first, values, name) for values in others)}

    def _add_epoch(self, epoch: int, line: dict[str, Any]) -> None:
        scores = validation_scores(line)
        terms = scores.pop("terms", None)
        scores |= {f"{TERMS}{name}": value for name, value in terms.items()} if isinstance(terms, dict) else {}
        _add_scores(self.scores, epoch, scores)
        for name, of_set in set_scores(line).items():
            _add_scores(self.set_scores.setdefault(name, {}), epoch, of_set)
        self.train_loss.add(epoch, _score(line.get("train_loss")))
        if line.get("is_best"):
            self.best = epoch, scores
        if is_number(line.get("seconds")):
            self.seconds.add(line["seconds"])
            self.total_seconds += line["seconds"]

    def names(self) -> list[str]:
        """Return the names of all values of train lines."""
        return list(dict.fromkeys(name for rank in self.ranks.values() for name in rank.curves))

    def curves(self, name: str) -> dict[int, Curve]:
        """Return a curve over steps of each rank; empty for ranks without the value."""
        return {rank: self.ranks[rank].curves.get(name, Curve()) for rank in sorted(self.ranks)}

    def mean(self, name: str) -> Points:
        """Return the curve of the mean over ranks, weighted by their samples."""
        x, y = self.means.get(name, Curve()).points()
        last = [mean for found, mean in self._means_of_group() if found == name]
        return np.append(x, [self._step] * len(last)), np.append(y, last)

    def is_identical_on_all_ranks(self, name: str) -> bool:
        """Return whether a value is bit-identical on all ranks."""
        last = self._differences_in_group() if len(self._group) == len(self.ranks) else set()
        return not {"step", name} & (self._differing | last)


def _numbers(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the values of a train line by name; those of a mapping are NAME/KEY. NaN for what is not a number."""
    for name, value in line.items():
        if isinstance(value, dict):
            for key, number in value.items():
                yield f"{name}/{key}", _float(number)
        elif name not in _PLACE:
            yield name, _float(value)


def _float(value: Any) -> float:
    if isinstance(value, int | float):
        with suppress(OverflowError):
            return float(value)
    return nan


def _score(value: Any) -> float:
    return value if is_number(value) else nan


def _is_same(first: dict[str, float], other: dict[str, float], name: str) -> bool:
    mine, its = first.get(name, nan), other.get(name, nan)
    return mine == its or (mine != mine and its != its)


def _add_scores(curves: dict[str, Curve], epoch: int, scores: dict[str, Any]) -> None:
    for name, value in scores.items():
        curves.setdefault(name, Curve()).add(epoch, _score(value))
