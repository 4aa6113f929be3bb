"""Where the time of an optimizer step goes: the engine's own loop, observed from outside."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from accel_restore.callbacks.straggler import moment
from accel_restore.data.loader import LoaderObserver, TrainLoader
from accel_restore.state import Callback, TrainState

WAIT, BATCH, FORWARD, BACKWARD = (
    "waiting for data",
    "to the device, augmentation, degradation",
    "forward, loss",
    "backward",
)
EXCHANGE, OPTIMIZER, HOOKS = "gradient exchange", "optimizer, zero_grad, clipping, EMA", "logging, callbacks"
PHASES = (WAIT, BATCH, FORWARD, BACKWARD, EXCHANGE, OPTIMIZER, HOOKS)
DISCRIMINATOR = "discriminator's loss, backward"  # with adversarial training


class PhaseTimer(LoaderObserver):
    """Divides the seconds of `train_epoch` among `PHASES`, and `DISCRIMINATOR` if there is one.

    A phase ends where `train_epoch` calls one of its arguments: the steps, the callbacks or the accelerator. On a GPU,
    each phase ends with a synchronisation, so that the device's work counts in its own phase. Phases then cannot
    overlap, so their sum is slightly longer than a step that is not observed.

    The exchange is the time in the backward after this rank's last gradient: the part that the backward does not hide,
    and the wait for slower ranks. It starts where the last parameter's gradient is ready, before DDP waits for its
    reduction. (A second backward under `no_sync` would be another run.) FSDP2 exchanges within forward and backward,
    and its exchange counts there.
    """

    def __init__(self, state: TrainState, loader: TrainLoader, accelerator: Accelerator):
        self.state, self.loader, self.accelerator = state, loader, accelerator
        self.on_cuda = accelerator.device.type == "cuda"
        self.phases = PHASES if state.adversary is None else (*PHASES[:4], DISCRIMINATOR, *PHASES[4:])
        self.seconds = dict.fromkeys(self.phases, 0.0)
        self.callback_seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self.waited = 0.0  # for data, since the last micro-batch
        self.last = 0.0  # when the previous phase ended
        self.ready: Any = None  # when the last gradient was ready

    def steps_of(self, steps: Iterable[Iterator[dict]]) -> Iterator[Iterator[dict]]:
        """Yield the elements of `steps` for `train_epoch`."""
        self._begin()
        for micro_batches in steps:
            self.lap(WAIT)  # at the end of an epoch, the next one starts to read
            yield self._micro_batches(micro_batches)
            self.lap(HOOKS)
            self.steps += 1

    def callbacks_of(self, callbacks: Iterable[Callback]) -> list[Callback]:
        """Return the callbacks for `train_epoch`, each timed."""
        return [_TimedCallback(callback, self) for callback in callbacks]

    def timed_accelerator(self) -> Any:
        """Return the accelerator for `train_epoch`, whose backward is timed."""
        return _TimedAccelerator(self.accelerator, self)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Observe the loader and the gradients within this context."""
        parameters = [parameter for parameter in self.state.model.parameters() if parameter.requires_grad]
        handles = [parameter.register_post_accumulate_grad_hook(self._mark) for parameter in parameters]
        self.loader.observers.append(self)
        try:
            yield
        finally:
            self.loader.observers.remove(self)
            for handle in handles:
                handle.remove()

    def per_step(self) -> dict[str, float]:
        """Return the seconds per step of each phase, in order; they add up to the step."""
        return {phase: self.seconds[phase] / self.steps for phase in self.phases}

    def callbacks_per_step(self) -> dict[str, float]:
        """Return the seconds per step of each callback, by the name of its class, longest first."""
        longest = sorted(self.callback_seconds, key=lambda name: -self.callback_seconds[name])
        return {name: self.callback_seconds[name] / self.steps for name in longest}

    def on_batch(self, batch: dict[str, Any], waited: float) -> None:
        """Add up the time in seconds spent waiting for data."""
        self.waited += waited

    def lap(self, phase: str) -> float:
        """Add the time since the previous call to a phase, and return it."""
        former = self.last
        self._begin()
        self.seconds[phase] += (took := self.last - former)
        return took

    def add_exchange(self, end: Any, backward: float) -> None:
        """Move the time from the last gradient to `end` from the backward, which took `backward` s, to the exchange."""
        if self.accelerator.num_processes > 1 and self.ready is not None:
            exchange = self.ready.elapsed_time(end) / 1000 if self.on_cuda else end - self.ready
            exchange = min(max(0.0, exchange), backward)
            self.seconds[EXCHANGE] += exchange
            self.seconds[BACKWARD] -= exchange
        self.ready = None

    def _begin(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()
        self.last = time.perf_counter()

    def _micro_batches(self, micro_batches: Iterator[dict]) -> Iterator[dict]:
        self.lap(OPTIMIZER)  # zero_grad
        while True:
            self.waited = 0.0
            batch = next(micro_batches, None)
            self.lap(BATCH)
            self.seconds[WAIT] += self.waited
            self.seconds[BATCH] -= self.waited
            if batch is None:
                return
            yield batch
            # After the model's backward, losses are counted; that takes little next to a discriminator.
            self.lap(HOOKS if self.state.adversary is None else DISCRIMINATOR)

    def _mark(self, _: Tensor) -> None:
        self.ready = moment(self.on_cuda)  # the last gradient's remains


class _TimedAccelerator:
    """The accelerator, with a backward that is timed."""

    def __init__(self, accelerator: Accelerator, timer: PhaseTimer):
        self._accelerator, self._timer = accelerator, timer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def backward(self, loss: Tensor) -> None:
        self._timer.lap(FORWARD)
        self._accelerator.backward(loss)
        end = moment(self._timer.on_cuda)
        self._timer.add_exchange(end, self._timer.lap(BACKWARD))


class _TimedCallback(Callback):
    def __init__(self, callback: Callback, timer: PhaseTimer):
        self.callback, self.timer = callback, timer

    def on_step(self, state: TrainState) -> None:
        self.timer.lap(OPTIMIZER)  # before the first callback; between callbacks there is nothing
        self.callback.on_step(state)
        self.timer.callback_seconds[type(self.callback).__name__] += self.timer.lap(HOOKS)
