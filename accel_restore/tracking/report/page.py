"""report.html: a self-contained page about a run, built from the files in the run's folder."""

import base64
import hashlib
import html
import time
from pathlib import Path
from string import Template
from typing import Any

import yaml

from accel_restore.errors import UserError
from accel_restore.tracking.report.charts import speed_charts, training_charts, validation_charts
from accel_restore.tracking.report.pictures import PREVIEWS, read_pictures
from accel_restore.tracking.report.series import Metrics
from accel_restore.tracking.report.tables import (
    audit_tables,
    best_epoch,
    event_tables,
    facts,
    pairs,
    progress,
    protocol_tables,
    set_tables,
    speed_tables,
)
from accel_restore.tracking.run_files import read_audit, read_status
from accel_restore.utils.files import read_object, to_json
from accel_restore.utils.utf8 import printable

REPORT, PLAN = "report.html", "plan.json"
_PARTS = Path(__file__).parent


class Page:
    """The page of a run's folder. Metrics and pictures that were read once are kept for the next page."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.tiles: dict[Path, list] = {}

    def build(self) -> str:
        """Return the page's HTML from the current files.

        Raises: UserError if the folder contains no run.
        """
        status = read_status(self.folder)
        if not (self.folder / "status.json").is_file():
            raise UserError(f"{self.folder}: not a run's folder (no status.json); pass one such as runs/demo")
        self.metrics.read()
        name = self.folder.resolve().name
        status.setdefault("state", "unknown")  # the file is damaged
        return fill(f"{name} · {status['state']}", self._content(name, status))

    def _content(self, name: str, status: dict[str, Any]) -> dict[str, Any]:
        plan = read_object(self.folder / PLAN)
        configuration = _read_text(self.folder / "config.yaml")
        terms = [*_section(configuration, "loss"), *["adversarial"] * bool(_section(configuration, "adversarial"))]
        loss = " + ".join(terms) or "loss"
        metrics, best = self.metrics, best_epoch(status)
        return {
            "name": name,
            "state": status.get("state"),
            "error": status.get("error"),
            "written": time.strftime("%Y-%m-%d %H:%M %Z"),
            "progress": progress(status, plan, _section(configuration, "train")),
            "facts": facts(status, metrics),
            "skipped": [line["step"] for line in metrics.events if line.get("event") == "skip" and "step" in line],
            "sections": [
                {"title": "Training", "charts": training_charts(metrics, loss)},
                {"title": "Validation", "charts": validation_charts(metrics), "tables": set_tables(status, plan)},
                {"title": "Pictures", "pictures": read_pictures(self.folder, best, self.tiles)},
                {"title": "Previews", "pictures": read_pictures(self.folder, best, self.tiles, PREVIEWS)},
                {"title": "Speed", "charts": speed_charts(metrics), "tables": speed_tables(metrics)},
                {"title": "Events", "tables": event_tables(metrics)},
                {"title": "Audit", "tables": audit_tables(read_audit(self.folder))},
                {"title": "Plan", "tables": pairs(plan.get("plan"))},
                {"title": "Scores", "note": "How validation scores are computed.", "tables": protocol_tables(plan)},
                {"title": "Configuration", "text": configuration},
                {"title": "Versions", "tables": pairs(plan.get("versions"))},
            ],
        }


def fill(title: str, content: dict[str, Any]) -> str:
    """Return the HTML. `content` stays data: the page's policy allows no script but its own."""
    style, script = ((_PARTS / file).read_text(encoding="utf-8") for file in ("page.css", "page.js"))
    return Template((_PARTS / "page.html").read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        title=html.escape(printable(title)),
        style=style,
        script=script,
        data=escape_json(to_json(content)),
    )


def escape_json(text: str) -> str:
    """Escape JSON for a script element, so that it can neither end the element nor start a comment."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def _section(configuration: str, name: str) -> dict[str, Any]:
    try:
        section = (yaml.safe_load(configuration) or {}).get(name)
    except (yaml.YAMLError, AttributeError):
        return {}
    return section if isinstance(section, dict) else {}
