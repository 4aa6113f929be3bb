"""The charts of the report: which values are drawn, with their names and units."""

from typing import Any

from accel_restore.tracking.report.series import MEAN_ABOVE, SET_SAMPLES, SETS, TERMS, Metrics
from accel_restore.tracking.report.thinning import Curve, Points, thin

_MAX_POINTS = 4000  # of a curve
_MAX_CHART_POINTS = 24_000  # of all curves in a chart: a page of 64 ranks stays below a few MB
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
_SPEED = ("samples", "step_s", "wait_s", "speed", "wait")  # drawn as throughput and data wait

Chart = dict[str, Any]


def training_charts(metrics: Metrics, loss: str) -> list[Chart]:
    """Return charts of the values in train lines. `loss` describes the loss, such as l1 + ssim."""
    charts = [
        _training_chart(metrics, name, loss)
        for name in metrics.names()
        if name not in _SPEED and not name.startswith((TERMS, SETS, SET_SAMPLES))
    ]
    charts = [chart for chart in charts if any(series["x"] for series in chart["series"])]  # without text columns
    for id, prefix, title, note in (
        ("terms", TERMS, "Loss terms", "weighted, mean over all ranks"),
        ("sets", SETS, "Loss per training set", "mean over all ranks"),
    ):
        names = [name for name in metrics.names() if name.startswith(prefix)]
        if names:
            series = [_series(name.removeprefix(prefix), metrics.mean(name)) for name in names]
            charts.append({"id": id, "title": title, "x": "step", "log": True, "series": series, "note": note})
    return charts


def _training_chart(metrics: Metrics, name: str, loss: str) -> Chart:
    values, ranks = metrics.curves(name), sorted(metrics.ranks)
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
    if not metrics.ranks:
        return []
    note = "The first point after a validation includes the time of the validation."
    throughput = _rank_chart(metrics, "speed", "Throughput per rank (samples/s)", metrics.curves("speed"))
    wait = _rank_chart(metrics, "wait", "Waiting for data per rank (% of step time)", metrics.curves("wait"))
    return [{**throughput, "note": note, "unit": "samples/s"}, {**wait, "unit": "%"}]


def validation_charts(metrics: Metrics) -> list[Chart]:
    """Return a chart of each validation score, and one of the loss terms, over epochs from 1.

    With several sets, a score has a curve for the mean over sets, and one for each set.
    """
    scores, best = metrics.scores, metrics.best[0] if metrics.best is not None else None
    charts = []
    for name, curve in scores.items():
        if name.startswith(("input_", TERMS)) or not len(curve):
            continue
        series = [_series("mean of sets" if metrics.set_scores else "validation", curve.points())]
        series += [_series(of, found.get(name, Curve()).points()) for of, found in metrics.set_scores.items()]
        if name == "loss":
            is_adversarial = f"{TERMS}adversarial" in metrics.names()
            title = "training, with the adversarial term" if is_adversarial else "training"
            series.append(_series(title, metrics.train_loss.points()))
        elif len(inputs := scores.get(f"input_{name}", Curve())):
            series.append({**_series("input", inputs.points()), "dashed": True})
        chart = _epoch_chart(f"val_{name}", _SCORES.get(name, name), series, log=name == "loss")
        charts.append({**chart, "best": best, "unit": "dB" if name == "psnr" else ""})
    if terms := [name for name in scores if name.startswith(TERMS)]:
        series = [_series(name.removeprefix(TERMS), scores[name].points()) for name in terms]
        charts.append(_epoch_chart("val_terms", "Validation loss terms", series, log=True))
    return charts


def _epoch_chart(id: str, title: str, series: list[dict[str, Any]], log: bool) -> Chart:
    return {"id": id, "title": title, "x": "epoch", "log": log, "series": series}


def _rank_chart(metrics: Metrics, name: str, title: str, curves: dict[int, Curve]) -> Chart:
    limit = min(_MAX_POINTS, _MAX_CHART_POINTS // len(curves))
    series = [_series(f"rank {rank}", curve.points(), limit) for rank, curve in curves.items()]
    if len(curves) > MEAN_ABOVE and name != "lr":
        series.append({**_series("all ranks", metrics.mean(name)), "whole": True})
    return {"id": name, "title": title, "x": "step", "ranks": True, "series": series}


def _series(name: str, points: Points, limit: int = _MAX_POINTS) -> dict[str, Any]:
    x, y = thin(*points, limit)
    return {"name": name, "x": x, "y": y}
