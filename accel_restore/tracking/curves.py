"""curves.png: loss and learning rate of each rank over steps, and validation scores over epochs, from 1."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from accel_restore.metrics.format import metrics_of
from accel_restore.tracking.report.series import Metrics
from accel_restore.tracking.report.thinning import Curve
from accel_restore.utils.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"
_DOTS_UP_TO = 30  # points of a curve
_LEGEND_UP_TO = 16  # ranks
_LONG_TITLE = 40  # letters, as of an import path


def draw_curves(metrics: Metrics, path: Path) -> None:
    """Draw what has been read of metrics.jsonl. Raises: OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scores = ["loss", *metrics_of(name for name, curve in metrics.scores.items() if len(curve))]
    num_panels = 2 + len(scores)
    figure = Figure(figsize=(10, 1.6 * (num_panels - 1) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-num_panels // 2), 2).flatten()
    for panel, name in zip(panels, ("loss", "lr"), strict=False):
        _draw_ranks(panel, name, metrics.curves(name))
    for panel, name in zip(panels[2:], scores, strict=False):
        _draw_score(panel, name, metrics)
    for panel in panels[:num_panels]:
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for panel in panels[num_panels:]:
        panel.axis("off")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    replace_file(path, file.getvalue())


def _draw_ranks(panel: "Axes", name: str, curves: dict[int, Curve]) -> None:
    for rank, curve in curves.items():
        style = ("-" if rank == 0 else "--") if len(curve) > _DOTS_UP_TO else ".-"
        drawn = "steps-post" if name == "lr" else "default"
        panel.plot(*curve.points(), style, drawstyle=drawn, label=f"rank {rank}", lw=1)
    panel.set(title=f"train/{name} per rank", xlabel="step")
    if 0 < len(curves) <= _LEGEND_UP_TO:
        panel.legend(fontsize=7)


def _draw_score(panel: "Axes", name: str, metrics: Metrics) -> None:
    sets = metrics.set_scores
    points = metrics.scores.get(name, Curve()).points()
    panel.plot(*points, ".-", lw=1, label="mean of sets" if sets else None)
    for of_set, curves in sets.items():
        panel.plot(*curves.get(name, Curve()).points(), "--", lw=1, label=of_set)
    epoch, scores = metrics.best or (0, {})
    best = [(epoch, scores[name])] if scores.get(name) is not None else []
    panel.plot(*np.array(best, float).reshape(-1, 2).T, "*", ms=11, label="best")
    panel.set(xlabel="epoch")
    panel.set_title(f"val/{name}", fontsize="large" if len(name) < _LONG_TITLE else "small")
    panel.legend(fontsize=7)
