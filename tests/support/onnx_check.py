"""Whether a network can be exported to ONNX, within a limit of time."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from accel_restore.inference import export
from accel_restore.inference.restorer import Restorer

LIMIT = 60  # seconds of CPU time for an export: that of some networks does not end in any useful time
SIZE = 32, 48  # height and width


class LimitError(Exception):
    """A block took too long."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `LimitError` if the block takes more CPU time; other programs do not count."""

    class Stop(BaseException):  # not an Exception: the block catches those
        pass

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except Stop:
        raise LimitError(f"the export takes more than {seconds} s of CPU time") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measure_onnx(model: nn.Module, name: str, scale: int, folder: Path) -> tuple[str, str]:
    """Compare onnxruntime with torch, for other sizes and batches than the traced one if possible.

    Returns: "yes", "fixed size" or "no"; the reason why not "yes".
    """
    restorer = Restorer(model, {"data": {"channels": 3, "scale": scale}, "model": {"name": name}}, torch.device("cpu"))
    try:
        return _compared(restorer, folder, None, [(1, 24, 32), (2, 41, 19)])
    except Exception as error:
        reason = _root(error)
    try:
        cell, difference = _compared(restorer, folder, SIZE, [(1, *SIZE)])
    except Exception as error:
        return "no", _root(error)
    return (cell, difference) if cell == "no" else ("fixed size", f"for one image size only ({reason})")


def _compared(
    restorer: Restorer, folder: Path, size: tuple[int, int] | None, shapes: list[tuple[int, int, int]]
) -> tuple[str, str]:
    """Export for one size or any, and compare for images of `shapes` (B, H, W)."""
    file = folder / "model.onnx"
    with time_limit(LIMIT):
        export.write_onnx(export.trace(restorer, size, False), file, {}, None, size is None)
        run = export.open_onnx(file)
    for shape in shapes:
        difference = export.difference(run, restorer, shape, False)
        if not difference < 1e-3:
            return "no", f"the output differs by {difference:.1g} from torch's"
    return "yes", ""


def _root(error: BaseException) -> str:
    """Return the first sentence of the first of the errors that led to `error`."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.split(r"[.!] ", line)[0][:160]
