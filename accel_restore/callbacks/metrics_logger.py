"""The callback that writes metrics.jsonl from the values of all ranks, and updates W&B, TensorBoard and the bar."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from accel_restore.data.loader import TrainLoader, WaitTime
from accel_restore.metrics.format import format_score
from accel_restore.optim.adversary import COLUMNS
from accel_restore.state import Callback, EpochRecord, Scores, TrainState, sum_names
from accel_restore.tracking.console import Console
from accel_restore.tracking.run_files import JsonlWriter, write_status
from accel_restore.tracking.tensorboard_logger import TensorBoardLogger
from accel_restore.tracking.wandb_logger import WandbLogger

_ALWAYS = ("psnr", "ssim")  # metrics that every epoch line has, null where they were not measured


@dataclass(frozen=True)
class Trackers:
    """What shows the lines of metrics.jsonl while a run trains; each is optional."""

    wandb: WandbLogger | None = None
    tensorboard: TensorBoardLogger | None = None

    def update(self) -> None:
        """Make each tracker read the new lines, without waiting for it."""
        for tracker in (self.wandb, self.tensorboard):
            if tracker is not None:
                tracker.update()

    def close(self, failed: bool) -> None:
        """Finish both; TensorBoard ends while W&B uploads."""
        if self.tensorboard is not None:
            self.tensorboard.end()
        if self.wandb is not None:
            self.wandb.finish(failed)
        if self.tensorboard is not None:
            self.tensorboard.finish()


class RunLog:
    """Writes metrics.jsonl and memory.jsonl on the main process; does nothing on others.

    Memory has its own file because it differs when a run is repeated; metrics.jsonl differs in times alone.
    """

    def __init__(self, folder: Path, state: TrainState, is_main: bool, console: Console):
        self.folder, self.console = folder, console
        self.metrics = self.memory = None
        if is_main:
            self.metrics = JsonlWriter(folder / "metrics.jsonl", lambda line: is_before(line, state), console.log)
            self.memory = JsonlWriter(folder / "memory.jsonl", lambda line: is_before(line, state), console.log)
        self.has_warned = False  # that lines cannot be written

    def write(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if self.metrics is None:
            return
        error = self.metrics.write(line)
        if error is not None and not self.has_warned:
            self.console.log(f"{self.metrics.path}: cannot be written ({error.strerror}); its lines are kept in memory")
        self.has_warned = error is not None

    def write_memory(self, step: int, rank: int, memory: int) -> None:
        """Append a line to memory.jsonl."""
        if self.memory is not None:
            self.memory.write({"event": "memory", "step": step, "rank": rank, "memory": memory})

    def sync(self) -> None:
        """Force the lines written so far to the disk, into new files if someone has removed the files.

        The checkpointer's thread calls it before each commit. Raises: OSError.
        """
        for file in (self.metrics, self.memory):
            if file is not None and file.restore():
                self.console.log(f"{file.path}: was removed or replaced by someone else; it is written again")
        if self.metrics is not None:
            self.metrics.sync()

    def close(self) -> None:
        """Close both files."""
        for file in (self.metrics, self.memory):
            if file is not None:
                file.close()

    @contextmanager
    def tolerating_full_disks(self) -> Iterator[None]:
        """Log an `OSError` and go on: the file can be written again later."""
        try:
            yield
        except OSError as error:
            place = error.filename or self.folder
            self.console.log(f"{place}: cannot be written ({error.strerror}); training continues")


class MetricsLogger(Callback):
    """Writes what every rank measured, from the main process."""

    def __init__(
        self,
        log: RunLog,
        state: TrainState,
        accelerator: Accelerator,
        loader: TrainLoader,
        trackers: Trackers,
        *,
        every_steps: int,
        window_sums: Tensor,
        monitor: str = "loss",
    ):
        """`window_sums` are this rank's sums since the last logged line, where a run continues within a window.

        `monitor` is `validation.monitor`.
        """
        self.log, self.accelerator, self.trackers, self.console = log, accelerator, trackers, log.console
        self.schedule, self.wait = loader.stages, WaitTime()
        loader.observers.append(self.wait)
        self.every_steps, self.monitor = every_steps, monitor
        self.window_sums = window_sums.to(state.epoch_sums.device)
        self.schedule_position = state.scheduler.scheduler.last_epoch
        self.epoch_start = time.perf_counter()
        self.first_step = state.step + 1
        self._begin_window(state)
        self.console.start(state.epochs, self.schedule.num_steps(state.epochs), state.step)

    def _begin_window(self, state: TrainState) -> None:
        self.window = (state.step, time.perf_counter(), self.wait.seconds)

    def on_step(self, state: TrainState) -> None:
        for micro_batch in state.micro_batches:
            self.window_sums += micro_batch.sums
        self.console.advance(state.epoch, state.step)
        if state.step == self.first_step:
            self.trackers.update()  # W&B starts
        if state.step % self.every_steps:
            return
        first_step, start, waited = self.window
        steps = max(1, state.step - first_step)
        seconds = (time.perf_counter() - start) / steps
        rates = [network.lr for network in state.networks]
        own = [*rates, seconds, (self.wait.seconds - waited) / steps, self._memory()]
        norms = torch.stack([network.grad_norm for network in state.networks]).double()
        timings = torch.tensor(own, dtype=torch.float64).to(norms.device, non_blocking=True)
        mine = torch.cat([self.window_sums, norms, timings])
        ranks = self.accelerator.gather(mine[None]).tolist()
        self.window_sums.zero_()
        self._begin_window(state)
        if self.accelerator.is_main_process:
            self._write_step(state, ranks)
        self.trackers.update()

    def _memory(self) -> int:
        """Bytes: on CUDA the peak of this rank's tensors so far, otherwise what the process uses now."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.accelerator.device)
        return psutil.Process().memory_info().rss

    def _write_step(self, state: TrainState, ranks: list[list[float]]) -> None:
        names = sum_names(state.terms, state.judged, state.sets)
        for rank, values in enumerate(ranks):
            sums = dict(zip(names, values[: len(names)], strict=True))
            *more, seconds, waited, memory = values[len(names) :]
            norms, rates = more[: len(more) // 2], more[len(more) // 2 :]
            self.log.write_memory(state.step, rank, int(memory))
            samples = sums["samples"]
            loss, *terms = (sums[name] / samples if samples else None for name in ("loss", *state.terms))
            of_sets = {name: (sums[f"loss of {name}"], sums[f"samples of {name}"]) for name in state.sets}
            self.log.write(
                {
                    "event": "train",
                    "epoch": state.epoch,
                    "step": state.step,
                    "rank": rank,
                    "loss": loss,
                    **({"terms": dict(zip(state.terms, terms, strict=True))} if terms else {}),
                    "lr": rates[0],
                    "grad_norm": norms[0],
                    **(_discriminator_entries(sums, norms[1], rates[1]) if state.judged else {}),
                    "samples": int(samples),
                    **(_set_entries(of_sets) if of_sets else {}),
                    "step_s": round(seconds, 6),
                    "wait_s": round(waited, 6),
                }
            )
        samples = sum(rank[1] for rank in ranks)
        mean = sum(rank[0] for rank in ranks) / samples if samples else float("nan")
        speed = self.schedule.plan(state.epoch).global_batch / max(rank[-3] for rank in ranks)
        self.console.update(state.epoch, state.step, mean, state.lr, speed)

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        position = state.scheduler.scheduler.last_epoch
        scheduler_steps, self.schedule_position = position - self.schedule_position, position
        seconds, self.epoch_start = time.perf_counter() - self.epoch_start, time.perf_counter()
        if not self.accelerator.is_main_process:
            return
        scored = state.loss_terms
        self.log.write(
            {
                "event": "epoch",
                "epoch": record.epoch,
                "step": record.step,
                "train_loss": record.train_loss,
                "lr": record.lr,
                **score_entries(record.scores, scored, "val_"),
                **_entries_of_sets(record.scores, scored),
                "is_best": record.is_best,
                "optimizer_steps": record.optimizer_steps,
                "scheduler_steps": scheduler_steps,
                "seconds": round(seconds, 3),
            }
        )
        with self.log.tolerating_full_disks():
            progress = {"epoch": state.epoch, "step": state.step, "best": state.best}
            write_status(self.log.folder, "running", world_size=self.accelerator.num_processes, **progress)
        self.trackers.update()
        if record.scores is not None:
            self._show(record, record.scores, is_last=state.epoch == state.epochs)

    def _show(self, record: EpochRecord, scores: Scores, is_last: bool) -> None:
        shown = {"loss": scores.loss, **scores.metrics}
        figures = " · ".join(f"{name} {format_score(name, value)}" for name, value in shown.items())
        of_set, name = scores.find(self.monitor)
        if of_set is not scores:
            figures += f" · {self.monitor} {format_score(name, {'loss': of_set.loss, **of_set.metrics}[name])}"
        mark = "  ← best" if record.is_best else ""
        self.console.scores(
            f"epoch {record.epoch + 1} · train {format_score('loss', record.train_loss)} · val {figures}{mark}",
            always=record.is_best or is_last,
        )

    def on_exit(self, state: TrainState, error: BaseException | None) -> None:
        self.console.stop()


def _set_entries(sums: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """The samples and the mean loss of each training set in a rank's line of metrics.jsonl."""
    return {
        "set_samples": {name: int(count) for name, (_, count) in sums.items()},
        "set_loss": {name: total / count if count else None for name, (total, count) in sums.items()},
    }


def _discriminator_entries(sums: dict[str, float], norm: float, lr: float) -> dict[str, Any]:
    """The discriminator's values in a rank's line; a mean is null if nothing was measured since the last line."""
    means = {
        name: sums[name] / sums[count] if sums[count] else None
        for name, count in (*((name, "d_samples") for name in COLUMNS[:4]), ("g_share", "g_samples"))
    }
    return {**means, "d_lr": lr, "d_grad_norm": norm}


def score_entries(scores: Scores | None, terms: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    """The scores in an epoch's line of metrics.jsonl; null where the epoch was not validated."""
    flat = scores.flat() if scores is not None else {}
    others = [name for name in (scores.metrics if scores is not None else ()) if name not in _ALWAYS]
    entries = {
        "loss": flat.get("loss"),
        **({"terms": {name: flat.get(f"term_{name}") for name in terms}} if terms else {}),
        **{name: flat.get(name) for name in _ALWAYS},
        **{f"input_{name}": flat.get(f"input_{name}") for name in _ALWAYS},
        **{name: flat[name] for name in others},
        **{f"input_{name}": flat.get(f"input_{name}") for name in others},
    }
    return {f"{prefix}{name}": value for name, value in entries.items()}


def _entries_of_sets(scores: Scores | None, terms: tuple[str, ...]) -> dict[str, Any]:
    sets = scores.sets if scores is not None else {}
    return {"val_sets": {name: score_entries(one, terms) for name, one in sets.items()}} if sets else {}


def is_before(line: dict[str, Any], state: TrainState) -> bool:
    """Whether a line of metrics.jsonl or memory.jsonl was written before the commit that `state` was read from."""
    if line["step"] > state.step:
        return False
    # Two kinds of lines may follow the commit of a run that was stopped in the validation after this step.
    if line["event"] == "collapse":  # found in the validation, it counts for the next epoch
        return line["epoch"] <= state.epoch
    return line["event"] != "epoch" or line["epoch"] < state.epoch
