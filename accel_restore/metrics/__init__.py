"""Metrics: scores of restored images, and the protocol that they are measured by.

A metric is a `Metric` with a line in `registry.METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accel_restore.registry import METRICS
from accel_restore.utils.imports import resolve

if TYPE_CHECKING:  # titles and units of scores are needed without torch
    from torch import Tensor

    from accel_restore.state import Scores

Measure = Callable[["Tensor", "Tensor"], "Tensor"]  # (output, gt), each (B, C, H, W) in [0, 1], to one value per image


@dataclass(frozen=True)
class Metric:
    """A score of images."""

    build: Callable[[str | None], Measure]  # from a file of weights; raises UserError if it needs one and cannot use it
    text: str  # how it measures, as the protocol describes it
    smallest_side: int = 1  # of the images that it can score, in pixels
    higher_is_better: bool = True
    of_luma: bool = True  # scores the luma if the protocol asks for it; otherwise always the colours


def get_metric(name: str) -> Metric:
    """Return the metric with this name in the registry."""
    return resolve(name, METRICS, "validation.metrics")


def monitored_value(scores: Scores | None, monitor: str) -> float:
    """The value that decides which weights are best; lower is better. Infinite without scores; NaN is never best."""
    if scores is None:
        return math.inf
    if monitor == "loss":
        return scores.loss
    return -scores.metrics[monitor] if get_metric(monitor).higher_is_better else scores.metrics[monitor]
