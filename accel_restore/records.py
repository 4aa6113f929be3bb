"""The files of a run's folder that are written as it goes: metrics.jsonl, the record of truth, and status.json."""

import json
import os
from pathlib import Path
from typing import Any

from accel_restore.files import replace_file, to_json


class Lines:
    """A file of one JSON object per line; opened at a commit, it first loses the lines that come after it."""

    def __init__(self, path: Path, step: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if line["step"] <= step]
        replace_file(path, "".join(to_json(line) + "\n" for line in kept).encode())
        self.file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        self.file.write(to_json(line) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Force what was written to the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that a crash has cut off is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def write_status(folder: Path, state: str, **fields: Any) -> None:
    """Replace status.json: `state` is running, finished, preempted, failed or diverged."""
    replace_file(folder / "status.json", (to_json({"state": state, **fields}, indent=1) + "\n").encode())


def read_status(folder: Path) -> dict[str, Any]:
    """The content of status.json, empty where there is none."""
    try:
        return json.loads((folder / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
