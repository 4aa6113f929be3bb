"""The charts of a report, from the figures of a run: what is drawn, by which name, in which unit."""

from typing import Any

import numpy as np

from accel_restore.tracking.report.series import Metrics, thin

_MOST_POINTS = 4000  # of a curve
_MOST_OF_CHART = 24_000  # of all its curves together, so that a page of 64 ranks stays below a few MB
_FEW_RANKS = 8  # whose curves can be told apart without their mean
_SCORES = {
    "loss": "Validation loss",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM (1 is best)",
    "lpips": "LPIPS (lower is better)",
    "dists": "DISTS (lower is better)",
}
_TITLES = {"loss": "Loss per rank", "lr": "Learning rate per rank", "grad_norm": "Gradient norm"}
_DERIVED = ("samples", "step_s", "wait_s")  # drawn as speed and waiting


def training_charts(metrics: Metrics, loss: str) -> list[dict[str, Any]]:
    """Loss and learning rate per rank, loss terms, gradient norm and other figures of the lines; `loss` names it."""
    if not metrics.columns:
        return []
    ranks, many = metrics.ranks(), len(metrics.ranks()) > 1
    charts = []
    for name in metrics.names():
        if name in _DERIVED or name.startswith("terms/"):
            continue
        values = metrics.figures(name)
        equal = many and metrics.equal_on_all_ranks(name)
        if equal and name != "lr":
            values = {ranks[0]: values[ranks[0]]}
        chart = _per_rank(metrics, name, _TITLES.get(name, f"{name} per rank"), values)
        if name == "loss":
            chart |= {"log": True, "note": f"{loss}; the mean since the line before", "skipped": True}
        elif equal:
            chart["note"] = f"equal on all {len(ranks)} ranks, to the bit"
        chart["steps"] = name == "lr"
        if any(series["x"] for series in chart["series"]):  # else it was no number
            charts.append(chart)
    terms = [name for name in metrics.names() if name.startswith("terms/")]
    if terms:
        series = [
            _series(name.removeprefix("terms/"), *metrics.mean(metrics.figures(name)), _MOST_POINTS) for name in terms
        ]
        chart = {"id": "terms", "title": "Terms of the loss", "x": "step", "log": True, "series": series}
        charts.append({**chart, "note": "weighted; the mean over all ranks"})
    return charts


def speed_charts(metrics: Metrics) -> list[dict[str, Any]]:
    """Samples per second, and the part of the time that is spent waiting for data, per rank."""
    speed, waiting = {}, {}
    for rank in metrics.ranks():
        seconds = metrics.column(rank, "step_s")
        with np.errstate(divide="ignore", invalid="ignore"):
            waiting[rank] = 100 * metrics.column(rank, "wait_s") / seconds
        speed[rank] = metrics.samples_per_second(rank)
    if not speed:
        return []
    note = "a validation counts to the line after it"
    return [
        {**_per_rank(metrics, "speed", "Throughput per rank (samples/s)", speed), "note": note},
        _per_rank(metrics, "wait", "Waiting for data per rank (% of a step)", waiting),
    ]


def validation_charts(metrics: Metrics) -> list[dict[str, Any]]:
    """Each validation score per epoch (from 1), with that of the input, where there is one, and the best epoch."""
    epochs = metrics.epochs
    names = dict.fromkeys(key[4:] for line in epochs for key in line if key.startswith("val_"))
    best = next((line["epoch"] + 1 for line in reversed(epochs) if line.get("is_best")), None)
    charts = []
    for name in names:
        if name.startswith("input_") or name == "terms":
            continue
        series = [_of_epochs("validation", epochs, f"val_{name}")]
        if name == "loss":
            series.append(_of_epochs("training", epochs, "train_loss"))
        elif f"input_{name}" in names:
            series.append({**_of_epochs("input", epochs, f"val_input_{name}"), "dashed": True})
        if not series[0]["x"]:
            continue
        title = _SCORES.get(name, name.upper())
        chart = {"id": f"val_{name}", "title": title, "x": "epoch", "log": name == "loss", "series": series}
        charts.append({**chart, "best": best})
    terms = dict.fromkeys(key for line in epochs for key in (line.get("val_terms") or {}))
    if terms:
        lines = [{"epoch": line["epoch"], **(line.get("val_terms") or {})} for line in epochs]
        series = [_of_epochs(name, lines, name) for name in terms]
        charts.append({"id": "val_terms", "title": "Terms of the loss", "x": "epoch", "log": True, "series": series})
    return charts


def _of_epochs(name: str, lines: list[dict[str, Any]], key: str) -> dict[str, Any]:
    values = [line.get(key) for line in lines]
    numbers = [value if isinstance(value, int | float) else np.nan for value in values]
    return _series(name, np.array([line["epoch"] + 1 for line in lines]), np.array(numbers, float), _MOST_POINTS)


def _per_rank(metrics: Metrics, name: str, title: str, values: dict[int, np.ndarray]) -> dict[str, Any]:
    most = min(_MOST_POINTS, _MOST_OF_CHART // len(values))
    series = [_series(f"rank {rank}", metrics.column(rank, "step"), y, most) for rank, y in values.items()]
    if len(values) > _FEW_RANKS and name != "lr":
        series.append(_series("all ranks", *metrics.mean(values), _MOST_POINTS, whole=True))
    return {"id": name, "title": title, "x": "step", "ranks": True, "series": series}


def _series(name: str, x: np.ndarray, y: np.ndarray, most: int, **more: Any) -> dict[str, Any]:
    x, y = thin(x, y, most)
    return {"name": name, "x": x, "y": y, **more}
