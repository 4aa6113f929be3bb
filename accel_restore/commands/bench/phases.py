"""Where the time of an optimizer step goes: the engine's own loop, observed from outside."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from accel_restore.callbacks.straggler import moment
from accel_restore.data.loader import LoaderObserver, TrainLoader
from accel_restore.state import Callback, TrainState

WAIT, BATCH, FORWARD, BACKWARD = (
    "waiting for data",
    "to the device, augmentation, degradation",
    "forward, loss",
    "backward",
)
EXCHANGE, OPTIMIZER, HOOKS = "gradient exchange", "optimizer, zero_grad, clipping, EMA", "logging, hooks"
PHASES = (WAIT, BATCH, FORWARD, BACKWARD, EXCHANGE, OPTIMIZER, HOOKS)


class PhaseTimer(LoaderObserver):
    """Divides the seconds of `train_epoch` among `PHASES`, at the places where it calls something: the loader, the
    backward, the hooks.

    On a GPU the device is waited for at the end of each phase, so that its work counts where it belongs. Phases then do
    not overlap, so their sum is a little more than a step takes when it is not observed.

    The exchange is what follows this rank's last gradient within the backward: the part of it that the backward does
    not hide, and the wait for slower ranks. The time is taken where a parameter's gradient is ready, before DDP's
    reduction is waited for (no second backward under `no_sync`, which would be another run). FSDP2, which has no such
    place, exchanges within forward and backward, and its exchange counts there.
    """

    def __init__(self, state: TrainState, loader: TrainLoader, accelerator: Accelerator):
        self.state, self.loader, self.accelerator = state, loader, accelerator
        self.on_cuda = accelerator.device.type == "cuda"
        self.seconds, self.hook_seconds, self.steps = Counter(), Counter(), 0
        self.waited = 0.0  # for data, since the last micro-batch
        self.last = 0.0  # when the phase before has ended
        self.ready: Any = None  # when the last gradient was

    def steps_of(self, steps: Iterable[Iterator[dict]]) -> Iterator[Iterator[dict]]:
        """The elements of `steps`, for `train_epoch`; what is done between them is timed."""
        self._begin()
        for micro_batches in steps:
            self._lap(WAIT)  # the end of an epoch, where its loader ends and the next begins to read
            yield self._micro_batches(micro_batches)
            self._lap(HOOKS)
            self.steps += 1

    def hooks_of(self, callbacks: Iterable[Callback]) -> list[Callback]:
        """The hooks, for `train_epoch`, each timed by its name."""
        return [_Timed(callback, self) for callback in callbacks]

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Time the backward, and what is counted after it, as long as this lasts."""
        count, backward = self.state.count, self.accelerator.backward
        parameters = [parameter for parameter in self.state.model.parameters() if parameter.requires_grad]
        callbacks = [parameter.register_post_accumulate_grad_hook(self._mark) for parameter in parameters]
        self.loader.observers.append(self)
        self.state.count, self.accelerator.backward = self._then(count, HOOKS), self._backward(backward)
        try:
            yield
        finally:
            self.loader.observers.remove(self)
            del self.state.count, self.accelerator.backward  # the classes' own are seen again
            for callback in callbacks:
                callback.remove()

    def per_step(self) -> dict[str, float]:
        """Seconds a step of each phase, in the order of `PHASES`; they add up to the step."""
        return {phase: self.seconds[phase] / self.steps for phase in PHASES}

    def hooks_per_step(self) -> dict[str, float]:
        """Seconds a step of each hook, by the name of its class, the longest first."""
        return {name: seconds / self.steps for name, seconds in self.hook_seconds.most_common()}

    def _begin(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()
        self.last = time.perf_counter()

    def _lap(self, phase: str) -> float:
        """Add the time since the last call to a phase, and return it."""
        former = self.last
        self._begin()
        self.seconds[phase] += (took := self.last - former)
        return took

    def _micro_batches(self, micro_batches: Iterator[dict]) -> Iterator[dict]:
        self._lap(OPTIMIZER)  # zero_grad
        while True:
            self.waited = 0.0
            batch = next(micro_batches, None)
            self._lap(BATCH)
            self.seconds[WAIT] += self.waited
            self.seconds[BATCH] -= self.waited
            if batch is None:
                return
            yield batch

    def on_batch(self, batch: dict[str, Any], waited: float) -> None:
        self.waited += waited

    def _backward(self, backward: Callable) -> Callable:
        def timed(*arguments: Any, **options: Any) -> None:
            self._lap(FORWARD)
            self.ready = None
            backward(*arguments, **options)
            end = moment(self.on_cuda)
            took = self._lap(BACKWARD)
            if self.accelerator.num_processes > 1 and self.ready is not None:
                exchange = self.ready.elapsed_time(end) / 1000 if self.on_cuda else end - self.ready
                exchange = min(max(0.0, exchange), took)
                self.seconds[EXCHANGE] += exchange
                self.seconds[BACKWARD] -= exchange

        return timed

    def _mark(self, _: torch.Tensor) -> None:
        self.ready = moment(self.on_cuda)  # the last one stays

    def _then(self, function: Callable, phase: str) -> Callable:
        def timed(*arguments: Any) -> None:
            function(*arguments)
            self._lap(phase)

        return timed

    def before_hook(self) -> None:
        self._lap(OPTIMIZER)

    def after_hook(self, callback: Callback) -> None:
        self.hook_seconds[type(callback).__name__] += self._lap(HOOKS)


class _Timed(Callback):
    def __init__(self, callback: Callback, split: PhaseTimer):
        self.callback, self.split = callback, split

    def on_step(self, state: TrainState) -> None:
        self.split.before_hook()  # for the first hook the optimizer's step; between hooks nothing
        self.callback.on_step(state)
        self.split.after_hook(self.callback)
