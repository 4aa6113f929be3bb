"""Callbacks that draw a run: validation images side by side; curves and the report."""

import time

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from accel_restore.callbacks.metrics_logger import RunLog
from accel_restore.state import Callback, EpochRecord, TrainState
from accel_restore.tracking.pictures import Samples, draw_curves, draw_samples
from accel_restore.tracking.report.page import Report

_CURVES_SECONDS = 60.0  # between two drawings of the curves
_PICTURE_SETS = 20  # about this many sets of validation pictures per run


class ValidationPictures(Callback):
    """Draws `samples/epoch-….png`; runs before the MetricsLogger, after whose line W&B looks for the picture."""

    def __init__(self, log: RunLog, samples: Samples, accelerator: Accelerator, epochs: int):
        self.log, self.samples, self.accelerator = log, samples, accelerator
        self.epochs, self.last_drawn = epochs, -epochs

    def on_validation_image(self, state: TrainState, index: int, input: Tensor, output: Tensor, gt: Tensor) -> None:
        self.samples.add(index, input, output, gt)

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        is_due = record.epoch + 1 == self.epochs or record.epoch - self.last_drawn >= self.epochs // _PICTURE_SETS
        if record.scores is None or not is_due:
            return
        self.last_drawn = record.epoch
        rows = {index: row for tiles in gather_object([self.samples.tiles]) for index, row in tiles.items()}
        if self.accelerator.is_main_process and rows:
            path = self.log.folder / "samples" / f"epoch-{record.epoch:04d}.png"
            with self.log.tolerating_full_disks():
                draw_samples(path, [rows[index] for index in sorted(rows)])


class Curves(Callback):
    """Draws curves.png and report.html from metrics.jsonl; runs after the MetricsLogger."""

    def __init__(self, log: RunLog, report: Report | None, epochs: int):
        """`report` is there on the main process only."""
        self.log, self.report, self.epochs = log, report, epochs
        self.last_drawn = time.monotonic()

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        if self.report is None:
            return
        if record.epoch + 1 == self.epochs or time.monotonic() - self.last_drawn >= _CURVES_SECONDS:
            self.last_drawn = time.monotonic()
            with self.log.tolerating_full_disks():
                draw_curves(self.log.folder / "metrics.jsonl", self.log.folder / "curves.png")
        self.report.update()
