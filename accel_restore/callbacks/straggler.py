"""The callback that names a rank that is slower than the others, which all wait for it."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from accel_restore.data.loader import TrainLoader, WaitTime
from accel_restore.state import Callback, EpochRecord, TrainState

_WINDOW_STEPS = 20
_WINDOWS = 3  # consecutive ones, before a rank is called slow
_SLOW = 1.5  # times the others' median


def moment(on_cuda: bool) -> Any:
    """Now: seconds, or an event in the GPU's queue, which nobody waits for."""
    if not on_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class StragglerDetector(Callback):
    """Compares each rank's own time for a step: from the end of the last step until its last gradient is ready.

    In the exchange that follows, the fast ranks wait for the slow one, so whole steps take equally long. First in the
    list, so that the other callbacks' time counts as this rank's own. On a GPU it is device time; augmentation is left
    out if the next batch was ready.
    """

    def __init__(self, accelerator: Accelerator, loader: TrainLoader, state: TrainState, warn: Callable[[str], None]):
        self.accelerator, self.warn, self.wait = accelerator, warn, WaitTime()
        self.on_cuda = accelerator.device.type == "cuda"
        self.start = self.ready = moment(self.on_cuda)
        self.own, self.steps, self.waited = 0.0, 0, 0.0
        self.slow: list[int | None] = []  # the slow rank of each window
        self.warned: int | None = None
        if accelerator.num_processes > 1:
            loader.observers.append(self.wait)
            first = next(parameter for parameter in state.model.parameters() if parameter.requires_grad)
            first.register_post_accumulate_grad_hook(self._mark)  # next to the input: its gradient is the last

    def _mark(self, _: torch.Tensor) -> None:
        self.ready = moment(self.on_cuda)

    def on_step(self, state: TrainState) -> None:
        if self.accelerator.num_processes == 1:
            return
        took = self.start.elapsed_time(self.ready) / 1000 if self.on_cuda else self.ready - self.start
        self.own, self.steps = self.own + max(0.0, took), self.steps + 1
        self.start = moment(self.on_cuda)
        if self.steps == _WINDOW_STEPS:
            waited, self.waited = self.wait.seconds - self.waited, self.wait.seconds
            mine = torch.tensor([[self.own, waited]], dtype=torch.float64, device=self.accelerator.device)
            self._compare((self.accelerator.gather(mine) / self.steps).tolist(), state.step)
            self.own, self.steps = 0.0, 0

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        self.start = moment(self.on_cuda)  # validation is not part of the next step

    def _compare(self, ranks: list[list[float]], step: int) -> None:
        slowest = max(range(len(ranks)), key=lambda rank: ranks[rank][0])
        others = [rank for position, rank in enumerate(ranks) if position != slowest]
        own, waited = (statistics.median(values) for values in zip(*others, strict=True))
        is_slow = ranks[slowest][0] > _SLOW * own
        self.slow = [*self.slow, slowest if is_slow else None][-_WINDOWS:]
        if is_slow and self.slow == [slowest] * _WINDOWS and self.warned != slowest:
            self.warned = slowest
            self.warn(
                f"step {step}: rank {slowest} is slow, and the others wait for it: its own part of a step takes "
                f"{ranks[slowest][0]:.3f} s ({ranks[slowest][1]:.3f} s waiting for data), the others' {own:.3f} s "
                f"({waited:.3f} s)"
            )
