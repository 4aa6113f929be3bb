"""Files in a run's folder that change during training: JSON-lines files such as metrics.jsonl, and status.json."""

import math
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic_core import from_json  # five times as fast as json; a run may write millions of lines

from accel_restore.errors import UserError
from accel_restore.utils.files import read_object, replace_file, to_json
from accel_restore.utils.redaction import redacted

_PIECE = 2**20  # bytes that are copied at a time
_SHOWN = 5  # of damaged lines that a message names
_START = re.compile(rb'(?=\{"(?:event|op)":)')  # of an object, where lines are joined
_INT: set[type] = {int}
_NUMBER: set[type] = {float, int, type(None)}  # JSON has no NaN, so null takes its place
# The keys that every version has written in all lines of an event, with the types of their values.
_FORMS: dict[str, dict[str, set[type]]] = {
    "train": {"epoch": _INT, "step": _INT, "rank": _INT, "samples": _INT, "loss": _NUMBER, "lr": _NUMBER},
    "epoch": {"epoch": _INT, "step": _INT, "train_loss": _NUMBER, "val_loss": _NUMBER, "is_best": {bool}},
    "memory": {"step": _INT, "rank": _INT, "memory": _INT},
    "skip": {"epoch": _INT, "step": _INT},
    "collapse": {"epoch": _INT, "step": _INT, "kind": {str}, "text": {str}},
}
_SETS = "val_sets"  # in an epoch's line
_AUDIT_FORM: dict[str, set[type]] = {"op": {str}, "epoch": _INT, "step": _INT}


class JsonlWriter:
    """Append JSON objects to a file, one per line.

    Lines that cannot be written, on a full disk, are kept in memory and written with the next line.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool], log: Callable[[str], None] = print):
        """Open the file, and drop the lines for which `keep` is false: those after the commit that is resumed.

        Damaged lines are moved to a file of their own, and reported.
        """
        self.path, self.unwritten = path, b""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, _intact_lines(path, keep, log))
        self.file = path.open("a+b", buffering=0)
        self.size = path.stat().st_size
        self.lock = threading.Lock()  # one thread writes lines while another one syncs or restores the file

    def write(self, line: dict[str, Any]) -> OSError | None:
        """Append a line; return the error if it could not be written yet."""
        with self.lock:
            self.unwritten += (to_json(line) + "\n").encode()
            try:
                self._write_all()
            except OSError as error:
                return error
        return None

    def _write_all(self) -> None:
        """Write the lines in memory; the lock is held."""
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
        with self.lock:
            self._write_all()
        os.fsync(self.file.fileno())  # may take long, so lines can be written meanwhile

    def restore(self) -> bool:
        """Write the file again if it was removed or replaced, and return whether it was.

        Raises: OSError.
        """
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self.file.fileno())):
                return False
        with self.lock:
            self.file.seek(0)
            replace_file(self.path, iter(partial(self.file.read, _PIECE), b""))
            file = self.path.open("a+b", buffering=0)  # if this fails, lines still go to the open file
            self.file.close()
            self.file = file
        return True

    def close(self) -> None:
        """Write the lines kept in memory, if possible, and close the file."""
        with self.lock, suppress(OSError):
            self._write_all()
        self.file.close()


def _intact_lines(path: Path, keep: Callable[[dict[str, Any]], bool], log: Callable[[str], None]) -> Iterator[bytes]:
    """Yield the lines to keep, one at a time, however many there are; then move the damaged ones to their own file."""
    tail = JsonlTail(path, has_form)
    for line in tail.to_the_end():
        if keep(line):
            yield (to_json(line) + "\n").encode()
    if tail.damaged:
        aside = path.with_name(f"{path.stem}.damaged.jsonl")
        former = aside.read_bytes() if aside.exists() else b""
        replace_file(aside, former + b"".join(text for _, text in tail.damaged))
        log(f"{tail.describe_damage()}; kept in {aside.name}")


class JsonlTail:
    """Iterate over the objects of a JSON-lines file that were appended since the last iteration.

    This is the only reader of such files. Only the damaged objects of a damaged line are lost, and no other line.

    Raises: UserError, while iterating, if the path is a folder, a pipe or a device.
    """

    def __init__(self, path: Path, accept: Callable[[dict[str, Any]], bool] = bool):
        """`accept`: whether an object is whole; a reader that tolerates missing keys needs none."""
        self.path, self.accept, self.position, self.number = path, accept, 0, 0
        self.damaged: list[tuple[int, bytes]] = []  # the number, from 1, and the content of each damaged line

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the object of each complete line; a partial last line is left for the next iteration."""
        for text in self._texts():
            if not text.endswith(b"\n"):  # it is being written, or was cut off by a crash
                return
            self.position, self.number = self.position + len(text), self.number + 1
            found = _parse(text)
            intact = [line for line in found if isinstance(line, dict) and self.accept(line)]
            if text.strip() and (len(found) != 1 or len(intact) != 1):
                self.damaged.append((self.number, text))
            yield from intact

    def last(self) -> list[dict[str, Any]]:
        """Return the object of a whole last line without a line break, as an editor may leave it; else nothing."""
        text = b"".join(self._texts())
        found = _parse(text) if b"\n" not in text else []
        return [line for line in found if isinstance(line, dict) and self.accept(line)]

    def to_the_end(self) -> Iterator[dict[str, Any]]:
        """Yield the objects of all lines, also of a last one without a line break."""
        yield from self
        yield from self.last()

    def describe_damage(self) -> str:
        """Return the file and its damaged lines in words."""
        numbers = [f"{number:,}" for number, _ in self.damaged]
        shown = ", ".join(numbers[:_SHOWN]) + (f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else "")
        return f"{self.path}: {f'line {shown} is' if len(numbers) == 1 else f'lines {shown} are'} damaged"

    def _texts(self) -> Iterator[bytes]:
        """Yield the lines from the current position on, with their line breaks."""
        if self.path.exists():
            if not self.path.is_file():  # reading a pipe would wait
                what = "a folder" if self.path.is_dir() else "not a regular file"
                raise UserError(f"{self.path}: is {what}; move it out of the run's folder")
            with self.path.open("rb") as file:
                file.seek(self.position)
                yield from file


def _parse(text: bytes) -> list[Any]:
    """Return the value in a line; of a damaged one, all objects that are intact in it, and None for the rest."""
    with suppress(ValueError):
        return [from_json(text)]
    found: list[Any] = [None]
    for piece in _START.split(text):  # a hole, or lines that lost the break between them
        with suppress(ValueError):
            found.append(from_json(piece[: piece.rfind(b"}") + 1]))
    return found


def has_form(line: dict[str, Any]) -> bool:
    """Return whether a line has the keys and types that every version has written for its event."""
    form = _AUDIT_FORM if "op" in line else _FORMS.get(str(line.get("event")), {"event": {str}, "step": _INT})
    return all(key in line and type(line[key]) in kinds for key, kinds in form.items())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; empty if there is no such file."""
    return list(JsonlTail(path, has_form).to_the_end())


def validation_scores(line: dict[str, Any]) -> dict[str, Any]:
    """Return the validation scores of an epoch's line by name: loss, psnr, input_psnr, terms (a mapping), …."""
    return {key.removeprefix("val_"): line[key] for key in line if key.startswith("val_") and key != _SETS}


def set_scores(line: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the validation scores of each named set in an epoch's line, in the form of `validation_scores`."""
    sets = line.get(_SETS)
    return {name: scores for name, scores in sets.items() if isinstance(scores, dict)} if isinstance(sets, dict) else {}


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
    """Return the fields of status.json that have the form `write_status` gives them; empty if the file is missing.

    Whoever reads it may rely on the types of the fields, but not on their presence.
    """
    status = {key: value for key, value in read_object(folder / "status.json").items() if _is_valid(key, value)}
    if "best" in status:
        sets = status["best"].get("sets")
        status["best"] = _valid_scores(status["best"])
        if isinstance(sets, dict):
            status["best"]["sets"] = {name: _valid_scores(one) for name, one in sets.items() if isinstance(one, dict)}
    return status


def _valid_scores(scores: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scores.items() if _is_score(key, value)}


def _is_valid(key: str, value: Any) -> bool:
    if key in ("epoch", "step", "world_size", "pid"):
        return is_number(value) and isinstance(value, int) and value >= 0
    return isinstance(value, dict if key == "best" else str)


def _is_score(key: str, value: Any) -> bool:
    if key in ("epoch", "step"):
        return _is_valid(key, value)
    return value is None or is_number(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a number of at most 64 bits and finite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < (2**63 if isinstance(value, int) else math.inf)
