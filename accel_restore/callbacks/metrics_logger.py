"""The hook that records a run: metrics.jsonl and W&B from values gathered of all ranks, pictures, progress."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.data.loader import TrainLoader
from accel_restore.metrics.format import format_score
from accel_restore.state import Callback, TrainState
from accel_restore.tracking.console import Console
from accel_restore.tracking.pictures import Samples, draw_curves, draw_samples
from accel_restore.tracking.report.page import Report
from accel_restore.tracking.run_files import JsonlWriter, write_status
from accel_restore.tracking.tensorboard_logger import TensorBoardLogger
from accel_restore.tracking.wandb_logger import WandbLogger

_FILES = "metrics.jsonl", "memory.jsonl"  # apart: a run that resumes repeats what stands in the first to the bit
_CURVES_SECONDS = 60.0
_OPTIONAL = ("lpips", "dists", "input_lpips", "input_dists")  # in metrics.jsonl only where they are measured
_PICTURE_SETS = 20  # about so many sets of validation pictures a run


class MetricsLogger(Callback):
    """Writes what every rank has seen from the main process."""

    def __init__(
        self,
        folder: Path,
        state: TrainState,
        accelerator: Accelerator,
        loader: TrainLoader,
        *,
        epochs: int,
        log_every_steps: int,
        console: Console,
        samples: Samples,
        dashboard: WandbLogger | None,
        report: Report | None,
        tensorboard: TensorBoardLogger | None,
    ):
        self.folder, self.accelerator, self.loader = folder, accelerator, loader
        self.epochs, self.log_every_steps = epochs, log_every_steps
        self.console, self.samples, self.report = console, samples, report
        self.dashboard, self.tensorboard = dashboard, tensorboard
        self.main = accelerator.is_main_process
        files = (
            [JsonlWriter(folder / name, lambda line: is_before(line, state)) for name in _FILES]
            if self.main
            else [None] * 2
        )
        self.lines, self.memory_lines = files
        self.unwritten = False  # whether the user has been told so
        self.schedule_position = state.scheduler.scheduler.last_epoch
        self.last_curves = time.monotonic()
        self.epoch_began = time.perf_counter()
        self.last_pictures = -epochs
        self._begin_window(state)  # its sums go on from the commit
        console.start(epochs, loader.stages.num_steps(epochs), state.step)

    def _begin_window(self, state: TrainState) -> None:
        self.window = (state.step, time.perf_counter(), self.loader.wait_seconds)

    def on_step(self, state: TrainState) -> None:
        self.console.advance(state.epoch, state.step)
        if state.step % self.log_every_steps:
            return
        first_step, began, waited = self.window
        steps = max(1, state.step - first_step)
        seconds = (time.perf_counter() - began) / steps
        own = [state.lr, seconds, (self.loader.wait_seconds - waited) / steps, self._memory()]
        norm = state.grad_norm.double().reshape(1)
        own = torch.tensor(own, dtype=torch.float64).to(norm.device, non_blocking=True)
        mine = torch.cat([state.window_sums, norm, own])
        ranks = self.accelerator.gather(mine[None]).tolist()
        state.window_sums.zero_()
        self._begin_window(state)
        if self.main:
            self._write_step(state, ranks)
        self._tell_dashboards()

    def _memory(self) -> int:
        """Bytes: on CUDA the most that tensors of this rank have taken so far, else what the process takes now."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.accelerator.device)
        return psutil.Process().memory_info().rss

    def _write_step(self, state: TrainState, ranks: list[list[float]]) -> None:
        for rank, (loss_sum, samples, *term_sums, norm, lr, seconds, waited, memory) in enumerate(ranks):
            self.memory_lines.write({"event": "memory", "step": state.step, "rank": rank, "memory": int(memory)})
            loss, *terms = (total / samples if samples else None for total in (loss_sum, *term_sums))
            self.record(
                {
                    "event": "train",
                    "epoch": state.epoch,
                    "step": state.step,
                    "rank": rank,
                    "loss": loss,
                    **({"terms": dict(zip(state.terms, terms, strict=True))} if terms else {}),
                    "lr": lr,
                    "grad_norm": norm,
                    "samples": int(samples),
                    "step_s": round(seconds, 6),
                    "wait_s": round(waited, 6),
                }
            )
        samples = sum(rank[1] for rank in ranks)
        loss = sum(rank[0] for rank in ranks) / samples if samples else float("nan")
        speed = self.loader.stages.plan(state.epoch).global_batch / max(rank[-3] for rank in ranks)
        self.console.update(state.epoch, state.step, loss, ranks[0][-4], speed)

    def on_epoch(self, state: TrainState, record: dict[str, Any]) -> None:
        position = state.scheduler.scheduler.last_epoch
        scheduler_steps, self.schedule_position = position - self.schedule_position, position
        seconds, self.epoch_began = time.perf_counter() - self.epoch_began, time.perf_counter()
        epoch, scores, last = record["epoch"], record["scores"], record["epoch"] + 1 == self.epochs
        if scores and (last or epoch - self.last_pictures >= self.epochs // _PICTURE_SETS):
            self.last_pictures = epoch
            self._write_pictures(epoch)
        if not self.main:
            return
        self.record(
            {
                "event": "epoch",
                "epoch": epoch,
                "step": record["step"],
                "train_loss": record["train_loss"],
                "lr": record["lr"],
                "val_loss": scores.get("loss"),
                **({"val_terms": {name: scores.get(f"term_{name}") for name in state.terms}} if state.terms else {}),
                "val_psnr": scores.get("psnr"),
                "val_ssim": scores.get("ssim"),
                "val_input_psnr": scores.get("input_psnr"),
                "val_input_ssim": scores.get("input_ssim"),
                **{f"val_{name}": scores[name] for name in _OPTIONAL if name in scores},
                "is_best": record["is_best"],
                "optimizer_steps": record["optimizer_steps"],
                "scheduler_steps": scheduler_steps,
                "seconds": round(seconds, 3),
            }
        )
        with self._tolerating_full_disks():
            self.lines.sync()
            write_status(
                self.folder,
                "running",
                epoch=state.epoch,
                step=state.step,
                world_size=self.accelerator.num_processes,
                best=state.best,
            )
        self._tell_dashboards()
        if scores:
            shown = (name for name in scores if not name.startswith(("input_", "term_")))
            figures = " · ".join(f"{name} {format_score(name, scores[name])}" for name in shown)
            mark = "  ← best" if record["is_best"] else ""
            self.console.scores(
                f"epoch {epoch + 1} · train {format_score('loss', record['train_loss'])} · val {figures}{mark}",
                always=last or record["is_best"],
            )
        if last or time.monotonic() - self.last_curves >= _CURVES_SECONDS:
            self.last_curves = time.monotonic()
            with self._tolerating_full_disks():
                draw_curves(self.folder / "metrics.jsonl", self.folder / "curves.png")
        if self.report is not None:
            self.report.update()

    def _tell_dashboards(self) -> None:
        for dashboard in (self.dashboard, self.tensorboard):
            if dashboard is not None:
                dashboard.update()

    def _write_pictures(self, epoch: int) -> None:
        """Gather the tiles of all ranks and draw them."""
        rows = {index: row for mine in gather_object([self.samples.tiles]) for index, row in mine.items()}
        if self.main and rows:
            path = self.folder / "samples" / f"epoch-{epoch:04d}.png"
            with self._tolerating_full_disks():
                draw_samples(path, [rows[index] for index in sorted(rows)])

    def record(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; on the main process."""
        error = self.lines.write(line)
        if error is not None and not self.unwritten:
            self.console.log(f"{self.lines.path}: cannot be written ({error.strerror}); its lines are kept in memory")
        self.unwritten = error is not None

    @contextmanager
    def _tolerating_full_disks(self) -> Iterator[None]:
        """Training goes on without what can be written again later."""
        try:
            yield
        except OSError as error:
            self.console.log(f"{error.filename or self.folder}: cannot be written ({error.strerror}); training goes on")

    def sync(self) -> None:
        """Force the lines written so far to the disk.

        Raises: OSError.
        """
        if self.lines is not None:
            self.lines.sync()

    def close(self, failed: bool) -> None:
        """Stop the progress display and close the files; W&B is finished too."""
        self.console.stop()
        if self.main:
            self.lines.close()
            self.memory_lines.close()
        if self.tensorboard is not None:
            self.tensorboard.end()  # while W&B ends
        if self.dashboard is not None:
            self.dashboard.finish(failed)
        if self.tensorboard is not None:
            self.tensorboard.finish()


def is_before(line: dict[str, Any], state: TrainState) -> bool:
    """Whether a line of metrics.jsonl or memory.jsonl was written before the commit that `state` was read from."""
    return line["step"] <= state.step and (line["event"] != "epoch" or line["epoch"] < state.epoch)
