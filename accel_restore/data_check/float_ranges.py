"""Findings about the values of float pixels and `data.range`, which the network sees as [0, 1]."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from accel_restore.data.pixels import UNIT, Range
from accel_restore.data_check.findings import Finding

_FAR = 1.0  # widths of the range that values may be outside of it
_SHARE = 0.01  # of values outside, from which it is reported
_FILLED = 0.25  # least part of the range that values fill; a quarter costs 12 dB of PSNR


class FloatValues(NamedTuple):
    """The smallest and the largest value of an image's float pixels, and the share outside of the range."""

    lowest: float
    highest: float
    outside: float


def measure_floats(image: np.ndarray, range: Range) -> FloatValues:
    """Measure float pixels (H, W, C) that are on the scale of networks; the values are those of the file."""
    low, high = range
    lowest, highest = (low + (high - low) * float(value) for value in (image.min(), image.max()))
    return FloatValues(lowest, highest, float(((image < 0) | (image > 1)).mean()))


def span(values: Iterable[FloatValues | None]) -> FloatValues | None:
    """Return the values of several images together, weighted equally; None if none has float pixels."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    lowest, highest, outside = zip(*found, strict=True)
    return FloatValues(min(lowest), max(highest), float(np.mean(outside)))


def find_in_range(
    place: str, files: list[str], values: list[FloatValues | None], range: Range, is_input: bool = False
) -> list[Finding]:
    """Return a finding if the float pixels of one side of a set do not suit the range.

    `place` names the side; `files` are those of `values`.
    """
    total = span(values)
    if total is None:
        return []
    (low, high), width = range, range[1] - range[0]
    about = f"{place}: float pixels are from {total.lowest:g} to {total.highest:g}"
    remedy = f"set data.range=[{total.lowest:g},{total.highest:g}], or to the values that are black and white"
    if total.lowest < low - _FAR * width or total.highest > high + _FAR * width:
        distances = [-np.inf if value is None else max(low - value.lowest, value.highest - high) for value in values]
        farthest = files[int(np.argmax(distances))]
        text = f"{about}, far outside of data.range {_text(range)} ({total.outside:.1%} of the values are outside)"
        return [Finding("range", f"{text}, the farthest in {farthest}; {remedy}", (farthest,))]
    if total.outside > _SHARE and not is_input:  # noise may take an input out of the range
        return [Finding("range", f"{about}, {total.outside:.1%} outside of data.range {_text(range)}; {remedy}")]
    if (filled := (total.highest - total.lowest) / width) < _FILLED:
        text = f"{about} and fill {filled:.1%} of data.range {_text(range)}, so PSNR is too high; {remedy}"
        return [Finding("range", text)]
    return []


def find_unused_range(has_floats: bool, range: Range) -> list[Finding]:
    """Return a finding if the range is set, but no image has float pixels."""
    if has_floats or range == UNIT:
        return []
    text = (
        f"data.range: is {_text(range)}, but no examined file has float pixels; integers are divided by their largest "
        "value; remove it"
    )
    return [Finding("range", text)]


def _text(range: Range) -> str:
    return f"[{range[0]:g}, {range[1]:g}]"
