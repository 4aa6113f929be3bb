"""The text and tables of the report: progress, best scores, events, the audit, and the speed of each rank."""

from collections.abc import Iterable
from math import isfinite
from typing import Any

from accel_restore.metrics.format import TITLES, format_score, metrics_of
from accel_restore.tracking.report.series import Metrics
from accel_restore.tracking.run_files import is_number
from accel_restore.utils.files import to_json

_AUDIT = ("operation", "calls", "calls_per_epoch", "weights_changed", "lr_changed")


def progress(status: dict[str, Any], plan: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """Return completed epochs and steps, and their totals if known; `train` is a section of the configuration."""
    return {
        "epoch": status.get("epoch"),
        "epochs": plan.get("epochs") or train.get("epochs"),
        "step": status.get("step"),
        "steps": plan.get("steps"),
    }


def facts(status: dict[str, Any], metrics: Metrics) -> list[tuple[str, str, str]]:
    """Return the main results as (name, value, detail)."""
    best = _best(status)
    rows = [("best epoch", _epoch(best), f"step {best.get('step')}")] if _epoch(best) else []
    for name in (*metrics_of(best), "loss"):
        if isinstance(best.get(name), int | float):
            before = best.get(f"input_{name}")
            detail = f"input {format_score(name, before)}" if isinstance(before, int | float) else "validation"
            rows.append((TITLES.get(name, name), format_score(name, best[name]), detail))
    ranks, host = metrics.ranks, status.get("host")
    rows.append(("ranks", str(status.get("world_size") or len(ranks)), f"on {host}" if host else ""))
    if metrics.total_seconds:
        per_epoch = f"median {_time(metrics.seconds.median())} per epoch"
        rows.append(("training time", _time(metrics.total_seconds), per_epoch))
    return rows


def best_epoch(status: dict[str, Any]) -> int | None:
    """Return the epoch of the best weights, counted from 0, if there is one."""
    return _best(status).get("epoch")


def _best(status: dict[str, Any]) -> dict[str, Any]:
    return status.get("best") or {}


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def pairs(rows: Any) -> list[dict[str, Any]]:
    """Return a table of two columns, from a mapping or a list of pairs."""
    if isinstance(rows, dict):
        rows = list(rows.items())
    if not isinstance(rows, list):
        return []
    return _table((), [[str(cell) for cell in row] for row in rows if isinstance(row, list | tuple) and len(row) == 2])


def set_tables(status: dict[str, Any], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a table of the best weights' scores on each validation set, if the sets have names."""
    best, planned = _best(status), _sets_of(plan)
    sets: dict[str, dict[str, Any]] = best.get("sets") or {}
    names = [name for name in (*metrics_of(best), "loss") if is_number(best.get(name))]
    columns = [key for name in names for key in (f"input_{name}", name) if is_number(best.get(key))]
    heads = [_head(column) for column in columns]
    rows = []
    for name, scores in (sets | {"mean of sets": best} if len(sets) > 1 else sets).items():
        images = planned.get(name, {}).get("images")
        shown = (format_score(column, scores[column]) if column in scores else "" for column in columns)
        rows.append([name, str(len(images)) if isinstance(images, list) else "", *shown])
    return [{**table, "note": "Scores of the best weights"} for table in _table(("set", "images", *heads), rows)]


def _head(column: str) -> str:
    metric = column.removeprefix("input_")
    return f"{TITLES.get(metric, metric)}{' of input' if metric != column else ''}"


def protocol_tables(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a table of the protocol, and of what differs from it in each validation set."""
    common = plan.get("protocol")
    if not isinstance(common, dict):
        return []
    rows: dict[str, Any] = dict(common)
    for name, one in _sets_of(plan).items():
        protocol = one.get("protocol")
        for key, value in protocol.items() if isinstance(protocol, dict) else ():
            if value != common.get(key) and key != "average":
                rows[f"{name}: {key}"] = value
    return pairs(rows)


def _sets_of(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sets = plan.get("validation_sets")
    return {name: one for name, one in sets.items() if isinstance(one, dict)} if isinstance(sets, dict) else {}


def speed_tables(metrics: Metrics) -> list[dict[str, Any]]:
    """Return a table of medians per rank."""
    rows = []
    for number, rank in sorted(metrics.ranks.items()):
        speed, *times = (rank.samples[name].median() for name in ("speed", "step_s", "wait_s"))
        medians = [f"{value:.4g}" if isfinite(value) else "" for value in (speed, *(1000 * time for time in times))]
        rows.append([str(number), str(rank.num_lines), *medians])
    heads = ("rank", "logged steps", "samples/s (median)", "step time (median, ms)", "waiting for data (median, ms)")
    return _table(heads, rows)


def event_tables(metrics: Metrics) -> list[dict[str, Any]]:
    """Return tables of skipped steps, with their cause, of collapses, and of the other events in metrics.jsonl."""
    skips = [line for line in metrics.events if line.get("event") == "skip"]
    collapses = [line for line in metrics.events if line.get("event") == "collapse"]
    others = [line for line in metrics.events if line.get("event") not in ("skip", "collapse")]
    rows = [[_epoch(line), str(line.get("step")), _cause(line.get("of"))] for line in skips]
    tables = _table(("epoch", "skipped step", "cause"), rows)
    tables += _table(("step", "collapse"), [[str(line.get("step")), str(line.get("text"))] for line in collapses])
    tables += _table(("event", "line"), [[str(line.get("event")), to_json(line)] for line in others])
    if metrics.num_events > len(metrics.events):
        tables[-1]["note"] = f"metrics.jsonl contains {metrics.num_events - len(metrics.events):,} more events"
    return tables


def _epoch(line: dict[str, Any]) -> str:
    """Return the epoch of a line, counted from 1."""
    return str(line["epoch"] + 1) if isinstance(line.get("epoch"), int) else ""


def _cause(found: Any) -> str:
    ranks = [rank for rank in found if isinstance(rank, dict)] if isinstance(found, list) else []
    causes = (f"rank {x.get('rank')}: non-finite {_join(x.get('terms'))} of {_join(x.get('files'))}" for x in ranks)
    return "; ".join(causes) or "non-finite gradient; all losses were finite"


def _join(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values)


def audit_tables(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the table of audit.json and its violations."""
    cells = [[str(row.get(key, "")) for key in _AUDIT] for row in audit.get("table", [])]
    tables = _table([key.replace("lr", "learning rate").replace("_", " ") for key in _AUDIT], cells)
    violations = [[str(text)] for text in audit.get("violations", [])]
    if tables:
        verdict = "The audit passed" if audit["ok"] else "The audit FAILED"
        tables[0]["note"] = f"{verdict}: {audit.get('epochs')} epochs, {audit.get('ranks')} ranks."
    return tables + _table(("violation",), violations)


def _table(head: Iterable[str], rows: list[list[str]]) -> list[dict[str, Any]]:
    return [{"head": list(head), "rows": rows}] if rows else []
