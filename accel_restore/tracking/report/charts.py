"""The charts of the report: which values are drawn, with their names and units."""

from typing import Any

import numpy as np

from accel_restore.tracking.report.series import Metrics, thin
from accel_restore.tracking.run_files import is_number, set_scores, validation_scores

_MAX_POINTS = 4000  # of a curve
_MAX_CHART_POINTS = 24_000  # of all curves in a chart: a page of 64 ranks stays below a few MB
_MEAN_ABOVE = 8  # ranks: above, a curve of their mean is added
_SCORES = {
    "loss": "Validation loss",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM (higher is better)",
    "lpips": "LPIPS (lower is better)",
    "dists": "DISTS (lower is better)",
}
_TITLES = {
    "loss": "Loss per rank",
    "lr": "Learning rate per rank",
    "grad_norm": "Gradient norm",
    "d_loss": "Discriminator: loss per rank",
    "d_real": "Discriminator: mean logit of gt per rank",
    "d_fake": "Discriminator: mean logit of the output per rank",
    "d_accuracy": "Discriminator: accuracy per rank",
    "d_lr": "Discriminator: learning rate per rank",
    "d_grad_norm": "Discriminator: gradient norm",
    "g_share": "Adversarial term's share of the gradient at the output",
}
_NOTES = {
    "grad_norm": "before clipping",
    "d_grad_norm": "before clipping",
    "d_accuracy": "0.5 is guessing; 1 for long means that the generator learns little from it",
    "g_share": "0 for long means that the term has no effect",
}
_DERIVED = ("samples", "step_s", "wait_s")  # drawn as throughput and data wait
_TERMS, _SETS, _SET_SAMPLES = "terms/", "set_loss/", "set_samples/"

Chart = dict[str, Any]


def training_charts(metrics: Metrics, loss: str) -> list[Chart]:
    """Return charts of the values in train lines. `loss` describes the loss, such as l1 + ssim."""
    charts = [
        _training_chart(metrics, name, loss)
        for name in metrics.names()
        if name not in _DERIVED and not name.startswith((_TERMS, _SETS, _SET_SAMPLES))
    ]
    charts = [chart for chart in charts if any(series["x"] for series in chart["series"])]  # without text columns
    terms = [name for name in metrics.names() if name.startswith(_TERMS)]
    if terms:
        series = [_mean_series(metrics, name.removeprefix(_TERMS), metrics.columns_of(name)) for name in terms]
        chart = {"id": "terms", "title": "Loss terms", "x": "step", "log": True, "series": series}
        charts.append({**chart, "note": "weighted, mean over all ranks"})
    sets = [name.removeprefix(_SETS) for name in metrics.names() if name.startswith(_SETS)]
    if sets:
        series = [
            _mean_series(metrics, name, metrics.columns_of(f"{_SETS}{name}"), f"{_SET_SAMPLES}{name}") for name in sets
        ]
        chart = {"id": "sets", "title": "Loss per training set", "x": "step", "log": True, "series": series}
        charts.append({**chart, "note": "mean over all ranks"})
    return charts


def _training_chart(metrics: Metrics, name: str, loss: str) -> Chart:
    values, ranks = metrics.columns_of(name), metrics.ranks()
    identical = len(ranks) > 1 and metrics.is_identical_on_all_ranks(name)
    if identical and name not in ("lr", "d_lr"):
        values = {ranks[0]: values[ranks[0]]}
    chart = _rank_chart(metrics, name, _TITLES.get(name, f"{name} per rank"), values)
    if name == "loss":
        note = f"{loss}. A point is the mean of the steps since the point before."
        if any(line.get("event") == "skip" for line in metrics.events):
            note += " A dotted line is a skipped step."
        chart |= {"log": True, "note": note, "skipped": True}
    elif identical:
        chart["note"] = f"bit-identical on all {len(ranks)} ranks"
    elif name in _NOTES:
        chart["note"] = _NOTES[name]
    return {**chart, "steps": name in ("lr", "d_lr")}


def speed_charts(metrics: Metrics) -> list[Chart]:
    """Return charts of the throughput and the data wait of each rank."""
    speed, waiting = {}, {}
    for rank in metrics.ranks():
        seconds = metrics.column(rank, "step_s")
        with np.errstate(divide="ignore", invalid="ignore"):
            waiting[rank] = 100 * metrics.column(rank, "wait_s") / seconds
        speed[rank] = metrics.samples_per_second(rank)
    if not speed:
        return []
    note = "The first point after a validation includes the time of the validation."
    throughput = _rank_chart(metrics, "speed", "Throughput per rank (samples/s)", speed)
    wait = _rank_chart(metrics, "wait", "Waiting for data per rank (% of step time)", waiting)
    return [{**throughput, "note": note, "unit": "samples/s"}, {**wait, "unit": "%"}]


def validation_charts(metrics: Metrics) -> list[Chart]:
    """Return a chart of each validation score, and one of the loss terms, over epochs from 1.

    With several sets, a score has a curve for the mean over sets, and one for each set.
    """
    lines = metrics.epochs
    scores = [validation_scores(line) for line in lines]
    of_sets = [set_scores(line) for line in lines]
    sets = dict.fromkeys(name for line in of_sets for name in line)
    epochs = [line["epoch"] + 1 for line in lines]
    best = next((line["epoch"] + 1 for line in reversed(lines) if line.get("is_best")), None)
    names = dict.fromkeys(name for line in scores for name in line)
    charts = []
    for name in names:
        if name.startswith("input_") or name == "terms":
            continue
        series = [_epoch_series("mean of sets" if sets else "validation", epochs, scores, name)]
        if not series[0]["x"]:
            continue
        series += [_epoch_series(of, epochs, [line.get(of, {}) for line in of_sets], name) for of in sets]
        if name == "loss":
            series.append(_epoch_series("training", epochs, lines, "train_loss"))
        elif f"input_{name}" in names:
            inputs = _epoch_series("input", epochs, scores, f"input_{name}")
            series += [{**inputs, "dashed": True}] if inputs["x"] else []
        chart = _epoch_chart(f"val_{name}", _SCORES.get(name, name), series, log=name == "loss")
        charts.append({**chart, "best": best, "unit": "dB" if name == "psnr" else ""})
    terms = [line.get("terms") or {} for line in scores]
    if names_of_terms := dict.fromkeys(name for line in terms for name in line):
        series = [_epoch_series(name, epochs, terms, name) for name in names_of_terms]
        charts.append(_epoch_chart("val_terms", "Validation loss terms", series, log=True))
    return charts


def _epoch_chart(id: str, title: str, series: list[dict[str, Any]], log: bool) -> Chart:
    return {"id": id, "title": title, "x": "epoch", "log": log, "series": series}


def _epoch_series(name: str, epochs: list[int], lines: list[dict[str, Any]], key: str) -> dict[str, Any]:
    values = [line.get(key) for line in lines]
    numbers = [value if is_number(value) else np.nan for value in values]
    return _series(name, np.array(epochs), np.array(numbers, float), _MAX_POINTS)


def _rank_chart(metrics: Metrics, name: str, title: str, values: dict[int, np.ndarray]) -> Chart:
    limit = min(_MAX_POINTS, _MAX_CHART_POINTS // len(values))
    series = [_series(f"rank {rank}", metrics.column(rank, "step"), y, limit) for rank, y in values.items()]
    if len(values) > _MEAN_ABOVE and name != "lr":
        series.append({**_mean_series(metrics, "all ranks", values), "whole": True})
    return {"id": name, "title": title, "x": "step", "ranks": True, "series": series}


def _mean_series(
    metrics: Metrics, name: str, values: dict[int, np.ndarray], samples: str = "samples"
) -> dict[str, Any]:
    return _series(name, *metrics.mean(values, samples), _MAX_POINTS)


def _series(name: str, x: np.ndarray, y: np.ndarray, limit: int) -> dict[str, Any]:
    thin_x, thin_y = thin(x, y, limit)
    return {"name": name, "x": thin_x, "y": thin_y}
