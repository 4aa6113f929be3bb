"""The files of a run's folder that are written as it goes: metrics.jsonl, the record of truth, and status.json."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json  # five times faster than json: a run may have millions of lines

from accel_restore.utils.files import replace_file, to_json
from accel_restore.utils.redaction import redacted


class JsonlWriter:
    """A file of one JSON object per line; opened at a commit, it first loses the lines that come after it.

    What cannot be written (a full disk) is kept and written with a later line.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool]):
        """`keep` tells the lines that the commit has seen."""
        self.path, self.unwritten = path, b""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if keep(line)]
        replace_file(path, "".join(to_json(line) + "\n" for line in kept).encode())
        self.file = path.open("ab", buffering=0)
        self.size = path.stat().st_size

    def write(self, line: dict[str, Any]) -> OSError | None:
        """Append a line; the error where it could not be written yet."""
        self.unwritten += (to_json(line) + "\n").encode()
        try:
            self._write_all()
        except OSError as error:
            return error
        return None

    def _write_all(self) -> None:
        try:
            rest = memoryview(self.unwritten)
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.file.fileno(), self.size)  # no half a line
            raise
        self.size, self.unwritten = self.size + len(self.unwritten), b""

    def sync(self) -> None:
        """Force what was written to the disk.

        Raises: OSError where that, or a line before, cannot be written.
        """
        self._write_all()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        with suppress(OSError):
            self._write_all()
        self.file.close()


class JsonlTail:
    """The objects of a JSON-lines file, those that have come since it was last looped over."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Half a line at the end is left for the next time; nothing comes of a file that is not there yet."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            for text in file:
                if not text.endswith(b"\n"):
                    break
                self.position += len(text)
                with suppress(ValueError):
                    if isinstance(line := from_json(text), dict):
                        yield line


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that a crash has cut off is left out."""
    lines = []
    if path.exists():
        for text in path.read_bytes().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def write_status(folder: Path, state: str, **fields: Any) -> None:
    """Replace status.json: `state` is running, finished, preempted, failed or diverged; and which process says so."""
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    status = redacted({"state": state, **fields, **owner})  # an error may name what a secret stands in
    replace_file(folder / "status.json", (to_json(status, indent=1) + "\n").encode())


def read_audit(folder: Path) -> dict[str, Any]:
    """The content of audit.json, empty where there is none, or one that is not as `--audit` writes it."""
    try:
        audit = json.loads((folder / "audit.json").read_bytes())
        rows = [row["operation"] for row in audit["table"]]
        is_whole = isinstance(audit["ok"], bool) and isinstance(audit["violations"], list)
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return audit if is_whole and all(isinstance(name, str) for name in rows) else {}


def read_status(folder: Path) -> dict[str, Any]:
    """The content of status.json, empty where there is none."""
    return read_object(folder / "status.json")


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds, empty where there is no such file or no object in it."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
