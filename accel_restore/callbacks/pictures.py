"""Callbacks that draw a run: validation images and previews side by side; curves and the report."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from accel_restore.callbacks.metrics_logger import RunLog
from accel_restore.data.previews import Previews
from accel_restore.engine import model_to_validate
from accel_restore.metrics.protocol import Protocol
from accel_restore.models.blocks import upscale
from accel_restore.models.compile import force_eager
from accel_restore.state import Callback, EpochRecord, TrainState
from accel_restore.tracking.drawings import Drawings
from accel_restore.tracking.pictures import Samples, Tile, draw_samples, preview_row
from accel_restore.tracking.report.pictures import PREVIEWS, remove_best_sheets, sheet_path
from accel_restore.utils.memory import is_out_of_memory
from accel_restore.utils.stoppable import stoppable

_PICTURE_SETS = 20  # about this many sets of validation pictures per run
_BEST_SECONDS = 30.0  # between two drawings of the best epoch: early in training, every epoch is the best


class Sheets(Callback):
    """Draws `samples/KIND/epoch-….png`; runs before the MetricsLogger, whose line makes W&B look for the picture.

    If the best epoch is not one of those that are drawn, its picture is `samples/KIND/best-epoch-….png`.
    """

    def __init__(self, log: RunLog, accelerator: Accelerator, epochs: int, kind: str = ""):
        """`epochs` are the configured ones."""
        self.log, self.accelerator, self.kind = log, accelerator, kind
        self.epochs, self.last_drawn = epochs, -epochs
        self.best: tuple[int, list[list[Tile]]] | None = None  # epoch and tiles that are not drawn yet
        self.best_drawn = time.monotonic()

    def rows(self, state: TrainState) -> dict[int, list[Tile]]:
        """Return this rank's rows by their places; called on all ranks."""
        raise NotImplementedError

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        is_due = record.epoch + 1 == state.epochs or record.epoch - self.last_drawn >= self.epochs // _PICTURE_SETS
        if record.scores is None or not (is_due or record.is_best):
            return
        found = {index: row for tiles in gather_object([self.rows(state)]) for index, row in tiles.items()}
        rows = [found[index] for index in sorted(found)]
        if record.is_best:
            self.best = record.epoch, rows
        if is_due:
            self.last_drawn = record.epoch
            self._draw(sheet_path(self.log.folder, record.epoch, kind=self.kind), rows)
        if time.monotonic() - self.best_drawn >= _BEST_SECONDS:
            self._draw_best()

    def on_exit(self, state: TrainState, error: BaseException | None) -> None:
        self._draw_best()

    def _draw_best(self) -> None:
        """Draw the best epoch unless it has a picture, and remove the pictures of epochs that were the best before."""
        if self.best is None or not self.accelerator.is_main_process:
            return
        (epoch, rows), self.best, self.best_drawn = self.best, None, time.monotonic()
        path = sheet_path(self.log.folder, epoch, best=True, kind=self.kind)
        if not sheet_path(self.log.folder, epoch, kind=self.kind).exists():
            self._draw(path, rows)
        with self.log.tolerating_full_disks():
            remove_best_sheets(path)

    def _draw(self, path: Path, rows: list[list[Tile]]) -> None:
        if self.accelerator.is_main_process and rows:
            with self.log.tolerating_full_disks():
                draw_samples(path, rows)


class ValidationPictures(Sheets):
    """Draws validation images: input, output and gt."""

    def __init__(self, log: RunLog, samples: Samples, accelerator: Accelerator, epochs: int):
        """`epochs` are the configured ones."""
        super().__init__(log, accelerator, epochs)
        self.samples = samples

    def on_validation_image(self, state: TrainState, index: int, input: Tensor, output: Tensor, gt: Tensor) -> None:
        self.samples.add(index, input, output, gt)

    def rows(self, state: TrainState) -> dict[int, list[Tile]]:
        return self.samples.tiles()


class PreviewPictures(Sheets):
    """Restores the images of `data.preview` as validation does, each on one rank, and draws input and output."""

    def __init__(
        self,
        log: RunLog,
        previews: Previews,
        protocol: Protocol,
        accelerator: Accelerator,
        epochs: int,
        should_stop: Callable[[], bool] = bool,
    ):
        """`epochs` are the configured ones. Once `should_stop` returns true, the rest of the images is left out."""
        super().__init__(log, accelerator, epochs, PREVIEWS)
        self.previews, self.protocol, self.should_stop = previews, protocol, should_stop

    @torch.no_grad()
    def rows(self, state: TrainState) -> dict[int, list[Tile]]:
        model = model_to_validate(state, self.accelerator).eval()
        found: dict[int, list[Tile]] = {}
        with stoppable(self.should_stop):
            for index in range(self.accelerator.process_index, len(self.previews), self.accelerator.num_processes):
                try:
                    found[index] = self._restored(model, index)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    name = self.previews.names[index]
                    self.log.console.log(
                        f"data.preview: {name} does not fit in memory; set validation.tile, such as 512"
                    )
        return found

    def _restored(self, model: nn.Module, index: int) -> list[Tile]:
        input = self.previews[index].to(self.accelerator.device)
        with self.accelerator.autocast(), force_eager():
            output = self.protocol.output(model, input, self.previews.scale)
        return preview_row(self.previews.names[index], upscale(input, self.previews.scale), output.to(input.dtype))


class Curves(Callback):
    """Updates curves.png and report.html from metrics.jsonl, on the main process; runs after the MetricsLogger."""

    def __init__(self, drawings: Drawings | None):
        """`drawings` is None except on the main process."""
        self.drawings = drawings

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        if self.drawings is not None:
            self.drawings.update(is_last=record.epoch + 1 == state.epochs)
