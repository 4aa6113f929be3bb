"""Hooks that record a run: metrics.jsonl and W&B from values gathered of all ranks, pictures, progress; commits."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.checkpoint import save_commit
from accel_restore.config import Checkpoint
from accel_restore.console import Screen
from accel_restore.dashboard import Dashboard
from accel_restore.data.loader import TrainLoader
from accel_restore.engine import Hook, TrainState
from accel_restore.pictures import Samples, draw_curves, draw_samples
from accel_restore.records import Lines, write_status

_CURVES_SECONDS = 60.0
_PICTURE_SETS = 20  # about so many sets of validation pictures a run


class Tracker(Hook):
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
        screen: Screen,
        samples: Samples,
        dashboard: Dashboard | None,
    ):
        self.folder, self.accelerator, self.loader = folder, accelerator, loader
        self.epochs, self.log_every_steps = epochs, log_every_steps
        self.screen, self.samples, self.dashboard = screen, samples, dashboard
        self.main = accelerator.is_main_process
        self.lines = Lines(folder / "metrics.jsonl", state.step) if self.main else None
        self.schedule_position = state.scheduler.scheduler.last_epoch
        self.last_curves = time.monotonic()
        self.epoch_began = time.perf_counter()
        self.last_pictures = -epochs
        self._begin_window(state)  # its sums go on from the commit
        screen.start(epochs * loader.plan.steps_per_epoch, state.step)

    def _begin_window(self, state: TrainState) -> None:
        self.window = (state.step, time.perf_counter(), self.loader.wait_seconds)

    def after_step(self, state: TrainState) -> None:
        self.screen.advance(state.step)
        if state.step % self.log_every_steps:
            return
        first_step, began, waited = self.window
        steps = max(1, state.step - first_step)
        seconds = (time.perf_counter() - began) / steps
        times = [state.lr, seconds, (self.loader.wait_seconds - waited) / steps]
        norm = state.grad_norm if state.grad_norm is not None else _grad_norm(state)
        mine = torch.cat(
            [state.window_sums, norm.double().reshape(1), torch.tensor(times, dtype=torch.float64).to(norm.device)]
        )
        ranks = self.accelerator.gather(mine[None]).tolist()
        state.window_sums.zero_()
        self._begin_window(state)
        if self.main:
            self._write_step(state, ranks)

    def _write_step(self, state: TrainState, ranks: list[list[float]]) -> None:
        row: dict[str, Any] = {"train/step": state.step}
        for rank, (loss_sum, samples, norm, lr, seconds, waited) in enumerate(ranks):
            loss = loss_sum / samples if samples else None
            self.lines.write(
                {
                    "event": "train",
                    "epoch": state.epoch,
                    "step": state.step,
                    "rank": rank,
                    "loss": loss,
                    "lr": lr,
                    "grad_norm": norm,
                    "samples": int(samples),
                    "step_s": round(seconds, 6),
                    "wait_s": round(waited, 6),
                }
            )
            row[f"train/lr/rank_{rank}"] = lr
            if loss is not None:
                row[f"train/loss/rank_{rank}"] = loss
        samples = sum(rank[1] for rank in ranks)
        row["train/loss"], row["train/lr"] = sum(rank[0] for rank in ranks) / samples, ranks[0][3]
        if self.dashboard is not None:
            self.dashboard.log(row)
        speed = self.loader.plan.global_batch / max(rank[4] for rank in ranks)
        self.screen.update(state.epoch, state.step, row["train/loss"], row["train/lr"], speed)

    def after_epoch(self, state: TrainState, record: dict[str, Any]) -> None:
        position = state.scheduler.scheduler.last_epoch
        scheduler_steps, self.schedule_position = position - self.schedule_position, position
        seconds, self.epoch_began = time.perf_counter() - self.epoch_began, time.perf_counter()
        epoch, scores, last = record["epoch"], record["scores"], record["epoch"] + 1 == self.epochs
        if scores and (last or epoch - self.last_pictures >= self.epochs // _PICTURE_SETS):
            self.last_pictures = epoch
            self._write_pictures(epoch)
        if not self.main:
            return
        self.lines.write(
            {
                "event": "epoch",
                "epoch": epoch,
                "step": record["step"],
                "train_loss": record["train_loss"],
                "lr": record["lr"],
                "val_loss": scores.get("loss"),
                "val_psnr": scores.get("psnr"),
                "val_ssim": scores.get("ssim"),
                "val_input_psnr": scores.get("input_psnr"),
                "val_input_ssim": scores.get("input_ssim"),
                "is_best": record["is_best"],
                "optimizer_steps": record["optimizer_steps"],
                "scheduler_steps": scheduler_steps,
                "seconds": round(seconds, 3),
            }
        )
        self.lines.sync()
        write_status(
            self.folder,
            "running",
            epoch=state.epoch,
            step=state.step,
            world_size=self.accelerator.num_processes,
            best=state.best,
        )
        if self.dashboard is not None:
            self.dashboard.log({"epoch": epoch, **{f"val/{name}": value for name, value in scores.items()}})
        if scores:
            figures = " · ".join(f"{name} {scores[name]:.4f}" for name in scores if not name.startswith("input_"))
            mark = "  ← best" if record["is_best"] else ""
            self.screen.scores(
                f"epoch {epoch} · train {record['train_loss']:.4f} · val {figures}{mark}",
                always=last or record["is_best"],
            )
        if last or time.monotonic() - self.last_curves >= _CURVES_SECONDS:
            self.last_curves = time.monotonic()
            draw_curves(self.folder / "metrics.jsonl", self.folder / "curves.png")

    def _write_pictures(self, epoch: int) -> None:
        """Gather the tiles of all ranks and draw them."""
        rows = {index: row for mine in gather_object([self.samples.tiles]) for index, row in mine.items()}
        if self.main and rows:
            path = self.folder / "samples" / f"epoch-{epoch:04d}.png"
            draw_samples(path, [rows[index] for index in sorted(rows)])
            if self.dashboard is not None:
                self.dashboard.log_picture(path, epoch)

    def sync(self) -> None:
        """Force the lines written so far to the disk."""
        if self.lines is not None:
            self.lines.sync()

    def close(self, failed: bool) -> None:
        """Stop the progress display and close the files; W&B is finished too."""
        self.screen.stop()
        if self.lines is not None:
            self.lines.close()
        if self.dashboard is not None:
            self.dashboard.finish(failed)


def _grad_norm(state: TrainState) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])


class Saver(Hook):
    """Commits at the end of epochs and, where asked for, within them; runs after the Tracker."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        schedule: Checkpoint,
        loader: TrainLoader,
        epochs: int,
        tracker: Tracker,
        extra: Callable[[], dict[str, Any]],
    ):
        self.folder, self.accelerator, self.schedule, self.epochs = folder, accelerator, schedule, epochs
        self.steps_per_epoch, self.tracker, self.extra = loader.plan.steps_per_epoch, tracker, extra

    def after_step(self, state: TrainState) -> None:
        every = self.schedule.every_steps
        if every and state.step % every == 0 and state.epoch_step < self.steps_per_epoch:
            self._commit(state)

    def after_epoch(self, state: TrainState, record: dict[str, Any]) -> None:
        due = self.schedule.every_steps and state.step % self.schedule.every_steps == 0
        if due or state.epoch % self.schedule.every_epochs == 0 or state.epoch == self.epochs:
            self._commit(state)

    def _commit(self, state: TrainState) -> None:
        self.tracker.sync()  # a commit is never newer than the lines before it
        save_commit(self.folder / "checkpoints", state, self.accelerator, self.extra(), self.schedule.keep)
