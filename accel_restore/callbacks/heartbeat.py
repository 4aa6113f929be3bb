"""The callback that informs the rank monitor where this rank is in the loop."""

from typing import Any

import torch

from accel_restore.data.loader import LoaderObserver, TrainLoader
from accel_restore.distributed.heartbeat import Phase, RankMonitor
from accel_restore.state import Callback, EpochRecord, TrainState


class Heartbeat(Callback, LoaderObserver):
    """Sets `monitor.place` to (steps completed, what this rank is doing now)."""

    def __init__(self, monitor: RankMonitor, loader: TrainLoader, state: TrainState):
        self.monitor, self.state = monitor, state
        monitor.is_training = True
        loader.observers.append(self)
        if monitor.world_size > 1:  # the parameter next to the input has its gradient last
            first = next(parameter for parameter in state.model.parameters() if parameter.requires_grad)
            first.register_post_accumulate_grad_hook(self._on_last_gradient)

    def _reach(self, phase: Phase) -> None:
        self.monitor.place = (self.state.step, phase)

    def _on_last_gradient(self, _: torch.Tensor) -> None:
        self._reach(Phase.EXCHANGE)

    def on_step_begin(self) -> None:
        self._reach(Phase.DATA)

    def on_batch(self, batch: dict[str, Any], waited: float) -> None:
        self._reach(Phase.COMPUTE)

    def on_epoch_end(self) -> None:
        self._reach(Phase.VALIDATE)

    def on_step(self, state: TrainState) -> None:
        self._reach(Phase.SAVE)

    def on_validation(self, state: TrainState) -> None:
        self._reach(Phase.VALIDATE)

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        self._reach(Phase.SAVE)
