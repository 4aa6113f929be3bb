"""TensorBoard, through Accelerate's tracker: written from metrics.jsonl by a thread of its own, as W&B is.

A resumed run writes its folder anew from the first line of metrics.jsonl: TensorBoard can only be told to forget all
that comes after one step, and scores are drawn over epochs.
"""

import threading
import time
from collections.abc import Callable
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
    """Raise `UserError` where TensorBoard cannot be used."""
    try:
        from torch.utils import tensorboard  # noqa: F401
    except Exception as error:  # of a package that does not fit the others, anything
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise UserError(
            f"tracking.tensorboard: TensorBoard {reason}; pip install 'accel-restore[tensorboard]', or set "
            "tracking.tensorboard=false"
        ) from error


class TensorBoardLogger:
    """Writes a run's figures and pictures, by the keys of W&B, over steps and epochs; it cannot stop training."""

    def __init__(self, folder: Path, config: dict[str, Any], ranks: int, log: Callable[[str], None]):
        """`config` is shown as hyperparameters, without secrets; every step has a line of each of `ranks`."""
        self.folder, self.config, self.log = folder, redacted(config), log
        self.rows = Rows(folder, ranks)
        self.wake, self.finishing = threading.Event(), False
        self.thread = threading.Thread(target=self._work, name="accel-restore-tensorboard", daemon=True)
        self.thread.start()

    def update(self) -> None:
        """Have the lines written that metrics.jsonl has now."""
        self.wake.set()

    def end(self) -> None:
        """Have the rest written, too."""
        self.deadline, self.finishing = time.monotonic() + _FINISH_SECONDS, True
        self.wake.set()

    def finish(self) -> None:
        """Wait until that is done, 10 seconds after `end` at most."""
        self.thread.join(max(0.0, self.deadline - time.monotonic()))
        if self.thread.is_alive():
            self.log(f"{self.folder / FOLDER}: ends early, as writing takes too long; metrics.jsonl has everything")

    def _work(self) -> None:
        try:
            self.wake.wait()  # until then metrics.jsonl may hold lines of after the commit
            discard(self.folder / FOLDER)
            tracker = TensorBoardTracker(FOLDER, self.folder)
            tracker.start()
            tracker.store_init_configuration(dict(_flat(self.config)))
            finished = False
            while not finished:
                self.wake.wait()
                self.wake.clear()
                finished = self.finishing
                for row in self.rows.read(rest=finished):
                    _log(tracker, row)
            tracker.finish()
        except Exception as error:  # whatever it raises: training matters more
            self.log(f"TensorBoard stopped ({type(error).__name__}: {error}); training and metrics.jsonl go on")


def _log(tracker: TensorBoardTracker, row: dict[str, Any]) -> None:
    """Log a row of W&B's at its own place on its own axis."""
    step = row.pop("train/step") if "train/step" in row else row.pop("epoch")
    path = row.pop("val/images", None)
    if path is not None:
        try:
            with Image.open(path) as picture:
                tracker.log_images({"val/images": np.asarray(picture)[None]}, step, dataformats="NHWC")
        except OSError:  # a full disk may have cut it off
            return
    tracker.log(row, step)


def _flat(tree: Any, prefix: str = "") -> Any:
    """(dotted key, value) of a configuration, of the types that hyperparameters may have."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else str(value)
