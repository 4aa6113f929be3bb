"""TensorBoard, through Accelerate's tracker. A thread writes the rows of metrics.jsonl, as for W&B.

A resumed run rebuilds its folder from the first line of metrics.jsonl. TensorBoard could only purge everything after
one step number, but training uses steps and validation uses epochs.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import TensorBoardTracker
from PIL import Image

from accel_restore.errors import UserError
from accel_restore.tracking.rows import Rows
from accel_restore.utils.files import discard
from accel_restore.utils.redaction import redacted

FOLDER = "tensorboard"
_FINISH_SECONDS = 10.0


def check_tensorboard() -> None:
    """Raise `UserError` if TensorBoard cannot be imported."""
    try:
        from torch.utils import tensorboard  # noqa: F401
    except Exception as error:  # an incompatible package may raise anything
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise UserError(
            f"tracking.tensorboard: TensorBoard {reason}; pip install 'accel-restore[tensorboard]', or set "
            "tracking.tensorboard=false"
        ) from error


class TensorBoardLogger:
    """Writes the values and pictures of a run under the same keys as W&B. Its failures never stop training."""

    def __init__(self, folder: Path, config: dict[str, Any], ranks: int, log: Callable[[str], None]):
        """`config` is stored as hyperparameters, with secrets redacted."""
        self.folder, self.config, self.log = folder, redacted(config), log
        self.rows = Rows(folder, ranks)
        self.wake, self.finishing = threading.Event(), False
        self.thread = threading.Thread(target=self._work, name="accel-restore-tensorboard", daemon=True)
        self.thread.start()

    def update(self) -> None:
        """Write the new lines of metrics.jsonl."""
        self.wake.set()

    def end(self) -> None:
        """Start to write the remaining lines."""
        self.deadline, self.finishing = time.monotonic() + _FINISH_SECONDS, True
        self.wake.set()

    def finish(self) -> None:
        """Wait until they are written, at most 10 seconds after `end`."""
        self.thread.join(max(0.0, self.deadline - time.monotonic()))
        if self.thread.is_alive():
            self.log(f"{self.folder / FOLDER}: incomplete, because writing took too long; metrics.jsonl is complete")

    def _work(self) -> None:
        try:
            self.wake.wait()  # until the first update, metrics.jsonl may hold lines from after the commit
            discard(self.folder / FOLDER)
            tracker = TensorBoardTracker(FOLDER, self.folder)
            tracker.start()
            tracker.store_init_configuration(dict(_flat(self.config)))
            finished = False
            while not finished:
                self.wake.wait()
                self.wake.clear()
                finished = self.finishing
                for row in self.rows.read(flush=finished):
                    _log(tracker, row)
            tracker.finish()
        except Exception as error:  # must not stop training
            self.log(
                f"TensorBoard logging stopped ({type(error).__name__}: {error}); training and metrics.jsonl continue"
            )


def _log(tracker: TensorBoardTracker, row: dict[str, Any]) -> None:
    """Log a row at its step or epoch."""
    step = row.pop("train/step") if "train/step" in row else row.pop("epoch")
    for key, path in [(key, value) for key, value in row.items() if isinstance(value, Path)]:
        del row[key]
        try:
            with Image.open(path) as picture:
                tracker.log_images({key: np.asarray(picture)[None]}, step, dataformats="NHWC")
        except OSError:  # truncated by a full disk
            return
    tracker.log(row, step)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield (dotted key, value); values of other types than TensorBoard accepts become strings."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else str(value)
