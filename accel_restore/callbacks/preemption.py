"""The callback that ends a run on request, after the same step on all ranks."""

from datetime import timedelta

import torch
from accelerate import Accelerator
from torch import distributed

from accel_restore.errors import PreemptedError
from accel_restore.state import Callback, EpochRecord, TrainState
from accel_restore.utils.signals import StopRequest


class PreemptionCallback(Callback):
    """If one rank is asked to stop, all raise `PreemptedError` after the same step.

    Each step starts an all-reduce (gloo, so no GPU waits) and reads the result of the step before: a request takes
    effect one step later. The end of an epoch waits for the result. A single process stops after the current step.
    """

    def __init__(self, accelerator: Accelerator, stop: StopRequest, stop_after: int | None, timeout: float):
        self.stop, self.stop_after = stop, stop_after
        self.group: distributed.ProcessGroup | None = None
        if accelerator.num_processes > 1:
            self.group = distributed.new_group(  # type: ignore[assignment]  # -100 only for ranks outside the group
                backend="gloo", timeout=timedelta(seconds=timeout)
            )
        self.answer: torch.Tensor | None = None
        self.pending: distributed.Work | None = None

    def on_step(self, state: TrainState) -> None:
        asked = self._last_answer() if self.group is not None else bool(self.stop)
        if asked or state.step == self.stop_after:
            self._raise(state)
        self._exchange()

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        if state.epoch == state.epochs:  # the run is finished
            return
        asked = self._last_answer()
        self._exchange()
        if self._last_answer() or asked or state.step == self.stop_after:
            self._raise(state)

    def on_exit(self, state: TrainState, error: BaseException | None) -> None:
        if error is None:
            self._last_answer()  # complete the last exchange, which all ranks have started

    def _exchange(self) -> None:
        """Start to ask all ranks whether one of them is to stop."""
        self.answer = torch.tensor([float(bool(self.stop))])
        if self.group is not None:
            self.pending = distributed.all_reduce(
                self.answer, op=distributed.ReduceOp.MAX, group=self.group, async_op=True
            )

    def _last_answer(self) -> bool:
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        answer, self.answer = self.answer, None
        return answer is not None and bool(answer.item())

    def _raise(self, state: TrainState) -> None:
        raise PreemptedError(f"{self.stop} after step {state.step}")
