"""The form of a score wherever it is shown: console, tables, pictures, report, model card."""

import re
from collections.abc import Iterable

from accel_restore.registry import METRICS

TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "dists": "DISTS"}


def metrics_of(names: Iterable[str]) -> list[str]:
    """Return the metrics among the names of scores, ours first. Metrics score the input too, as input_NAME."""
    names = list(names)
    return [
        *(name for name in TITLES if name in names),
        *(name for name in names if name not in TITLES and f"input_{name}" in names),
    ]


def format_score(name: str, value: float, signed: bool = False) -> str:
    """Return a score with its unit: a PSNR as "25.00 dB", a loss with four digits, others of ours with four decimals.

    `name` may also name the input's score or a difference: input_psnr, psnr_2, psnr_difference.
    """
    sign, metric = "+" if signed else "", re.sub(r"^input_|_(2|difference)$", "", name)
    if metric == "psnr":
        return f"{value:{sign}.2f} dB"
    if metric == "loss":
        return f"{value:{sign}#.4g}"
    return f"{value:{sign}.4f}" if metric in METRICS else f"{value:{sign}.5g}"


def titled_score(name: str, value: float) -> str:
    """Return a score with its unit and title, such as "25.00 dB PSNR"."""
    return f"{format_score(name, value)} {TITLES.get(name, name)}"
