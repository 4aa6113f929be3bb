"""report.html: one page of a run that opens from disk, made of the files in the run's folder alone."""

import base64
import hashlib
import html
import json
import time
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import yaml

from accel_restore.errors import UserError
from accel_restore.tracking.report.charts import speed_charts, training_charts, validation_charts
from accel_restore.tracking.report.pictures import read_pictures
from accel_restore.tracking.report.series import Metrics
from accel_restore.tracking.report.tables import audit_tables, event_tables, facts, pairs, progress, speed_tables
from accel_restore.tracking.run_files import read_audit, read_status
from accel_restore.utils.files import replace_file, to_json

REPORT, PLAN = "report.html", "plan.json"
_PARTS = Path(__file__).parent
_SECONDS = 60.0  # between two pages of a run that trains
_SHARE = 0.01  # of the time, at most, goes into them


class Report:
    """Keeps a run's report.html up to date while it trains; what goes wrong with it is told, and nothing more."""

    def __init__(self, folder: Path, log: Callable[[str], None]):
        self.folder, self.log = folder, log
        self.page = Page(folder)
        self.due = time.monotonic() + _SECONDS

    def update(self) -> None:
        """Write the page, unless the last one is too recent."""
        if time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        """Write the page as the files are now."""
        began = time.monotonic()
        try:
            replace_file(self.folder / REPORT, self.page.build().encode())
        except Exception as error:  # a page is not worth a run, whatever is wrong
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self.log(f"{self.folder / REPORT}: cannot be written ({reason}); accel-restore report makes it later")
        now = time.monotonic()
        self.due = now + max(_SECONDS, (now - began) / _SHARE)


class Page:
    """The page of a run's folder; what has been read once of metrics and pictures is not read again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.tiles: dict[Path, list] = {}

    def build(self) -> str:
        """The page as it is now.

        Raises: UserError where the folder holds no run.
        """
        status = read_status(self.folder)
        if not status:
            raise UserError(f"{self.folder}: holds no run (no status.json); name a run's folder, such as runs/demo")
        self.metrics.read()
        name = self.folder.resolve().name
        return fill(f"{name} · {status.get('state')}", self._content(name, status))

    def _content(self, name: str, status: dict[str, Any]) -> dict[str, Any]:
        plan = _read_object(self.folder / PLAN)
        configuration = _read_text(self.folder / "config.yaml")
        loss = " + ".join(_section(configuration, "loss")) or "loss"
        metrics = self.metrics
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
                {"title": "Validation", "charts": validation_charts(metrics)},
                {"title": "Pictures", "pictures": read_pictures(self.folder, self.tiles)},
                {"title": "Speed", "charts": speed_charts(metrics), "tables": speed_tables(metrics)},
                {"title": "Events", "tables": event_tables(metrics)},
                {"title": "Flow of weights", "tables": audit_tables(read_audit(self.folder))},
                {"title": "Plan", "tables": pairs(plan.get("plan"))},
                {"title": "Scores", "note": "How they were measured:", "tables": pairs(plan.get("protocol"))},
                {"title": "Configuration", "text": configuration},
                {"title": "Versions", "tables": pairs(plan.get("versions"))},
            ],
        }


def fill(title: str, content: dict[str, Any]) -> str:
    """The page's HTML. Whatever `content` holds stays data: no script but the page's own may run."""
    style, script = ((_PARTS / file).read_text() for file in ("page.css", "page.js"))
    return Template((_PARTS / "page.html").read_text()).substitute(
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        title=html.escape(title),
        style=style,
        script=script,
        data=escape_json(to_json(content)),
    )


def escape_json(text: str) -> str:
    """JSON that may stand in a page's script element: nothing in it ends that, or begins a comment."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where there is none, or half of one."""
    try:
        value = json.loads(_read_text(path))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _section(configuration: str, name: str) -> dict[str, Any]:
    try:
        section = (yaml.safe_load(configuration) or {}).get(name)
    except (yaml.YAMLError, AttributeError):
        return {}
    return section if isinstance(section, dict) else {}
