"""Metrics: scores of restored images, and the protocol that they are measured by.

A metric is a `Metric` with a line in `registry.METRICS`, or named by its import path: see `own.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accel_restore.registry import METRICS
from accel_restore.utils.imports import resolve

if TYPE_CHECKING:  # titles and units of scores are needed without torch
    from torch import Tensor

Measure = Callable[..., "Tensor"]  # (output, gt), each (B, C, H, W) in [0, 1], to one value per image


@dataclass(frozen=True)
class Metric:
    """A score of images."""

    build: Callable[[str | None], Measure]  # from a file of weights; raises UserError if it needs one and cannot use it
    text: str  # how it measures, as the protocol describes it
    smallest_side: int = 1  # of the images that it can score, in pixels
    higher_is_better: bool | None = True  # None: it cannot be monitored
    of_luma: bool = True  # scores the luma if the protocol asks for it; otherwise always the colours
    image_channels: tuple[int, ...] | None = None  # of the images that it can score; None: any number
    prepares: bool = False  # takes as a third argument how pixels are prepared, and scores a large image in parts


def get_metric(name: str, arguments: dict[str, Any] | None = None, key: str = "validation.metrics") -> Metric:
    """Return the metric with this name in the registry, or at this import path, built with `arguments`.

    Raises: UserError, with the configuration key `key`, if it cannot be imported or built.
    """
    found = resolve(name, METRICS, key)
    if name in METRICS:
        return found
    from accel_restore.metrics.own import own_metric

    return own_metric(name, found, arguments or {}, key)
