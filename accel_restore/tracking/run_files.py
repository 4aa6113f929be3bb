"""Files in a run's folder that change during training: JSON-lines files such as metrics.jsonl, and status.json."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json  # five times as fast as json; a run may write millions of lines

from accel_restore.utils.files import replace_file, to_json
from accel_restore.utils.redaction import redacted


class JsonlWriter:
    """Append JSON objects to a file, one per line.

    Lines that cannot be written, on a full disk, are kept in memory and written with the next line.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool]):
        """Open the file, and drop the lines for which `keep` is false: those after the commit that is resumed."""
        self.path, self.unwritten = path, b""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if keep(line)]
        replace_file(path, "".join(to_json(line) + "\n" for line in kept).encode())
        self.file = path.open("ab", buffering=0)
        self.size = path.stat().st_size

    def write(self, line: dict[str, Any]) -> OSError | None:
        """Append a line; return the error if it could not be written yet."""
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
                os.ftruncate(self.file.fileno(), self.size)  # remove a partial line
            raise
        self.size, self.unwritten = self.size + len(self.unwritten), b""

    def sync(self) -> None:
        """Write all lines and force them to the disk.

        Raises: OSError if that fails.
        """
        self._write_all()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Write the lines kept in memory, if possible, and close the file."""
        with suppress(OSError):
            self._write_all()
        self.file.close()


class JsonlTail:
    """Iterate over the objects of a JSON-lines file that were appended since the last iteration."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield each complete line that is a JSON object; a partial last line is left for the next iteration."""
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
    """Return the objects of a JSON-lines file; empty if there is no such file."""
    return list(JsonlTail(path))


def validation_scores(line: dict[str, Any]) -> dict[str, Any]:
    """Return the validation scores of an epoch's line by name: loss, psnr, input_psnr, terms (a mapping), …."""
    return {key.removeprefix("val_"): value for key, value in line.items() if key.startswith("val_")}


def write_status(folder: Path, state: str, **fields: Any) -> None:
    """Replace status.json. `state` is running, finished, preempted, failed or diverged; host and pid are added."""
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    status = redacted({"state": state, **fields, **owner})  # an error message may quote a secret
    replace_file(folder / "status.json", (to_json(status, indent=1) + "\n").encode())


def read_audit(folder: Path) -> dict[str, Any]:
    """Return the content of audit.json; empty if it is missing or does not have the form that `--audit` writes."""
    audit = read_object(folder / "audit.json")
    try:
        names = [row["operation"] for row in audit["table"]]
        is_valid = isinstance(audit["ok"], bool) and isinstance(audit["violations"], list)
    except (LookupError, TypeError):
        return {}
    return audit if is_valid and all(isinstance(name, str) for name in names) else {}


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json; empty if it is missing."""
    return read_object(folder / "status.json")


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if the file is missing or holds no object."""
    try:
        found = from_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
