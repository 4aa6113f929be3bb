"""What a report tells in words and tables: how far the run is, its best scores, events, the audit, speed per rank."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from accel_restore.metrics.format import TITLES, format_score
from accel_restore.tracking.report.series import Metrics
from accel_restore.utils.files import to_json

_AUDIT = ("operation", "calls", "calls_per_epoch", "weights_changed", "lr_changed")


def progress(status: dict[str, Any], plan: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """Epochs and steps done, and to do where that is known; `train` is the configuration's section."""
    return {
        "epoch": status.get("epoch"),
        "epochs": plan.get("epochs") or train.get("epochs"),
        "step": status.get("step"),
        "steps": plan.get("steps"),
    }


def facts(status: dict[str, Any], metrics: Metrics) -> list[tuple[str, str, str]]:
    """The figures to see first, as (what, value, more)."""
    best = status.get("best") if isinstance(status.get("best"), dict) else {}
    rows = [("best epoch", _epoch(best), f"step {best.get('step')}")] if _epoch(best) else []
    for name in (*TITLES, "loss"):
        if isinstance(best.get(name), int | float):
            before = best.get(f"input_{name}")
            more = f"input {format_score(name, before)}" if isinstance(before, int | float) else "validation"
            rows.append((TITLES.get(name, name), format_score(name, best[name]), more))
    ranks = metrics.ranks()
    rows.append(("ranks", str(status.get("world_size") or len(ranks)), str(status.get("host") or "")))
    seconds = [line["seconds"] for line in metrics.epochs if isinstance(line.get("seconds"), int | float)]
    if seconds:
        rows.append(("training time", _time(sum(seconds)), f"{_time(float(np.median(seconds)))} per epoch"))
    return rows


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def pairs(rows: Any) -> list[dict[str, Any]]:
    """A table of (what, value): of a mapping, or of rows of two."""
    if isinstance(rows, dict):
        rows = list(rows.items())
    if not isinstance(rows, list):
        return []
    return _table((), [[str(cell) for cell in row] for row in rows if isinstance(row, list | tuple) and len(row) == 2])


def speed_tables(metrics: Metrics) -> list[dict[str, Any]]:
    """For each rank its number of lines, and medians."""
    rows = []
    for rank in metrics.ranks():
        times = (1000 * metrics.column(rank, name) for name in ("step_s", "wait_s"))
        figures = [_median(values) for values in (metrics.samples_per_second(rank), *times)]
        rows.append([str(rank), str(len(metrics.column(rank, "step"))), *figures])
    return _table(("rank", "lines", "samples/s (median)", "ms per step (median)", "of these waiting for data"), rows)


def _median(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    return f"{np.median(values):.4g}" if len(values) else ""


def event_tables(metrics: Metrics) -> list[dict[str, Any]]:
    """Skipped steps with the files to blame, and whatever else metrics.jsonl tells."""
    skips = [line for line in metrics.events if line.get("event") == "skip"]
    others = [line for line in metrics.events if line.get("event") != "skip"]
    rows = [[_epoch(line), str(line.get("step")), _blame(line.get("of"))] for line in skips]
    tables = _table(("epoch", "skipped step", "because of"), rows)
    tables += _table(("event", "line"), [[str(line.get("event")), to_json(line)] for line in others])
    if metrics.num_events > len(metrics.events):
        tables[-1]["note"] = f"{metrics.num_events - len(metrics.events):,} later ones stand in metrics.jsonl alone"
    return tables


def _epoch(line: dict[str, Any]) -> str:
    """The epoch of a line as people count, from 1."""
    return str(line["epoch"] + 1) if isinstance(line.get("epoch"), int) else ""


def _blame(found: Any) -> str:
    ranks = [rank for rank in found if isinstance(rank, dict)] if isinstance(found, list) else []
    told = (f"{_list(x.get('terms'))} on rank {x.get('rank')} of {_list(x.get('files'))}" for x in ranks)
    return "; ".join(told) or "the gradient, of losses that are numbers"


def _list(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values)


def audit_tables(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of audit.json, and what it has found."""
    cells = [[str(row.get(key, "")) for key in _AUDIT] for row in audit.get("table", [])]
    tables = _table([key.replace("lr", "learning rate").replace("_", " ") for key in _AUDIT], cells)
    violations = [[str(text)] for text in audit.get("violations", [])]
    if tables:
        verdict = "the flow is as it should be" if audit["ok"] else "the audit FAILED"
        tables[0]["note"] = f"{verdict}: {audit.get('epochs')} epochs, {audit.get('ranks')} ranks"
    return tables + _table(("violation",), violations)


def _table(head: Iterable[str], rows: list[list[str]]) -> list[dict[str, Any]]:
    return [{"head": list(head), "rows": rows}] if rows else []
