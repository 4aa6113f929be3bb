"""Alternating rounds of the trainer and the bare loop in one process, so that other load on the machine meets both."""

import time
from collections.abc import Callable, Generator, Iterator
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator

from accel_restore.commands.bench.phases import PhaseTimer
from accel_restore.engine import train_epoch
from accel_restore.state import Callback
from accel_restore.trainer.bare_loop import BareLoop
from accel_restore.trainer.run_context import RunContext


class Trainer:
    """The engine's loop, a given number of steps at a time, over epoch after epoch without validation."""

    def __init__(self, run: RunContext, callbacks: list[Callback]):
        self.run, self.callbacks = run, callbacks
        self.plan = run.loader.stages.plan(0)
        self.samples = self.micro_batches = 0  # of this rank so far; samples without padding
        self.endless = self._steps()

    def __call__(self, steps: int, timer: PhaseTimer | None = None) -> None:
        """Make `steps` optimizer steps, observed by `timer`."""
        run, callbacks, accelerator = self.run, self.callbacks, self.run.accelerator
        taken: Iterator[Iterator[dict]] = islice(self.endless, steps)
        if timer is not None:
            taken, callbacks = timer.steps_of(taken), timer.callbacks_of(callbacks)
            accelerator = timer.timed_accelerator()
        train_epoch(run.state, taken, run.loss_fn, accelerator, callbacks, run.config.train.max_grad_norm)

    def _steps(self) -> Generator[Iterator[dict]]:
        state = self.run.state
        while True:
            for micro_batches in self.run.loader.steps(state.epoch):
                yield self._counted(micro_batches)
            state.epoch, state.epoch_step = state.epoch + 1, 0
            state.epoch_sums.zero_()

    def _counted(self, micro_batches: Iterator[dict]) -> Iterator[dict]:
        for batch in micro_batches:
            self.samples += int(np.count_nonzero(batch["id"] >= 0))
            self.micro_batches += 1
            yield batch

    def close(self) -> None:
        """End the thread that reads ahead."""
        self.endless.close()


def compared(
    trainer: Trainer, bare: BareLoop, steps: int, skipped: int, accelerator: Accelerator, trainer_first: bool
) -> dict[str, float | int]:
    """Time `steps` steps of both, one after the other; each first makes `skipped` steps that are not timed."""
    figures: dict[str, float | int] = {"steps": steps, "bare_micro_batches": steps * bare.accumulation}
    order: list[tuple[str, Callable[[int], None]]] = [("trainer", trainer), ("bare", bare)]
    for name, loop in order if trainer_first else order[::-1]:
        loop(skipped)
        samples, micro_batches = trainer.samples, trainer.micro_batches
        figures[f"{name}_seconds"], figures[f"{name}_cpu_seconds"] = timed(loop, steps, accelerator)
        if loop is trainer:
            figures |= {"samples": trainer.samples - samples, "micro_batches": trainer.micro_batches - micro_batches}
    return figures


def timed(loop: Callable[[int], None], steps: int, accelerator: Accelerator) -> tuple[float, float]:
    """Return the seconds that the steps take, and the CPU seconds of this process's threads."""
    wait = torch.cuda.synchronize if accelerator.device.type == "cuda" else lambda: None
    wait()
    began, cpu_began = time.perf_counter(), time.process_time()
    loop(steps)
    wait()
    return time.perf_counter() - began, time.process_time() - cpu_began
