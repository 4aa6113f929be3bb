"""Learning-rate schedules. Each steps once per epoch, on every rank."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from accel_restore.config.optim import AnySchedule, OwnSchedule
from accel_restore.optim.eager import SGD
from accel_restore.optim.own import own_schedule


def constant(optimizer: Optimizer, epochs: int, *, min_lr: float) -> LRScheduler:
    """Keep one rate for all epochs."""
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def cosine(optimizer: Optimizer, epochs: int, *, min_lr: float, hold_epochs: int) -> LRScheduler:
    """Hold the initial rate for `hold_epochs` epochs, then follow half a cosine to `min_lr`.

    Source: Loshchilov, Hutter, 2017.
    """
    if hold_epochs == 0:
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=min_lr)
    end, span = min_lr / optimizer.param_groups[0]["lr"], max(1, epochs - hold_epochs)

    def factor(epoch: int) -> float:
        part = min(1.0, max(0, epoch - hold_epochs) / span)
        return end + (1 - end) * (1 + math.cos(math.pi * part)) / 2

    return lr_scheduler.LambdaLR(optimizer, factor)


def cosine_restarts(
    optimizer: Optimizer, epochs: int, *, min_lr: float, period: int, period_factor: int
) -> LRScheduler:
    """Follow cosines that restart from the initial rate. Source: Loshchilov, Hutter, SGDR, 2017."""
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=period, T_mult=period_factor, eta_min=min_lr)


def multistep(optimizer: Optimizer, epochs: int, *, min_lr: float, milestones: list[int], gamma: float) -> LRScheduler:
    """Multiply the rate by `gamma` at each milestone."""
    if min_lr == 0:
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    return _floored(optimizer, lambda epoch: gamma ** sum(epoch >= m for m in milestones), min_lr)


def step(optimizer: Optimizer, epochs: int, *, min_lr: float, step_size: int, gamma: float) -> LRScheduler:
    """Multiply the rate by `gamma` every `step_size` epochs."""
    if min_lr == 0:
        return lr_scheduler.StepLR(optimizer, step_size, gamma)
    return _floored(optimizer, lambda epoch: gamma ** (epoch // step_size), min_lr)


def exponential(optimizer: Optimizer, epochs: int, *, min_lr: float, gamma: float) -> LRScheduler:
    """Multiply the rate by `gamma` every epoch."""
    if min_lr == 0:
        return lr_scheduler.ExponentialLR(optimizer, gamma)
    return _floored(optimizer, lambda epoch: gamma**epoch, min_lr)


def plateau(optimizer: Optimizer, epochs: int, *, min_lr: float, factor: float, patience: int) -> LRScheduler:
    """Multiply the rate by `factor` when the monitored value has not improved for `patience` epochs.

    Any improvement counts. torch's default threshold is relative and has the wrong sign for a negated PSNR.
    """
    return ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=0.0, min_lr=min_lr)


def _floored(optimizer: Optimizer, factor: Callable[[int], float], min_lr: float) -> LRScheduler:
    """Return a schedule that multiplies the initial rate by factor(epoch) and never falls below `min_lr`."""
    base = optimizer.param_groups[0]["lr"]
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: max(factor(epoch), min_lr / base))


SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "constant": constant,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "multistep": multistep,
    "step": step,
    "exponential": exponential,
    "plateau": plateau,
}
# Their rates do not depend on the number of epochs, so a finished run may be extended.
OPEN_ENDED = set(SCHEDULES) - {"cosine"}


class WarmUp(LRScheduler):
    """A linear rise over the first `epochs` epochs, then the schedule `after`, which counts its epochs from there."""

    def __init__(self, after: LRScheduler, epochs: int):
        # The base class's __init__ would reset the rates that `after` has set, so it is not called.
        self.after, self.optimizer, self.epochs, self.last_epoch = after, after.optimizer, epochs, 0
        self.peak = [group["lr"] for group in self.optimizer.param_groups]
        self._rise()

    def _rise(self) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * min(1.0, (self.last_epoch + 1) / (self.epochs + 1))

    def step(self, metrics: float | None = None) -> None:  # type: ignore[override]  # as in ReduceLROnPlateau
        """Go to the next epoch; `metrics` is the monitored value."""
        self.last_epoch += 1
        if self.last_epoch <= self.epochs:
            self._rise()
        else:
            step_scheduler(self.after, metrics)

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the current rate of each parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the state of `after`."""
        return {"last_epoch": self.last_epoch, "after": self.after.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the rates are the optimizer's state."""
        self.last_epoch = state["last_epoch"]
        self.after.load_state_dict(state["after"])


def needs_monitored(schedule: LRScheduler) -> bool:
    """Return whether a schedule follows the monitored value, and so is not a function of the epoch."""
    return isinstance(schedule.after if isinstance(schedule, WarmUp) else schedule, ReduceLROnPlateau)


def step_scheduler(scheduler: LRScheduler, monitored: float | None) -> None:
    """Step a schedule once. Only plateau and classes derived from it use the monitored value; lower is better."""
    inner = getattr(scheduler, "scheduler", scheduler)  # the schedule inside Accelerate's wrapper
    arguments: list[Any] = [monitored] if isinstance(inner, WarmUp | ReduceLROnPlateau) else []
    scheduler.step(*arguments)


def get_scheduler(optimizer: Optimizer, config: AnySchedule, epochs: int) -> LRScheduler:
    """Return the configured schedule over `epochs` epochs, at epoch 0."""
    length = max(1, epochs - config.warmup_epochs)
    if isinstance(config, OwnSchedule):
        schedule = own_schedule(config, optimizer, length)
    else:
        arguments = config.model_dump(exclude={"name", "warmup_epochs"})
        schedule = SCHEDULES[config.name](optimizer, length, **arguments)
    return WarmUp(schedule, config.warmup_epochs) if config.warmup_epochs else schedule


def preview_learning_rates(
    config: AnySchedule, lr: float, epochs: int, at: list[int], optimizer: Optimizer | None = None
) -> list[float] | None:
    """Return the learning rates of the epochs `at`, found by running the schedule.

    A schedule of the user's own may need an `optimizer` of the run's kind, which must be a new one. Returns None for
    schedules whose rates depend on the training.
    """
    if optimizer is None:
        optimizer = SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    scheduler = get_scheduler(optimizer, config, epochs)
    if needs_monitored(scheduler):
        return None
    optimizer._opt_called = True  # type: ignore[attr-defined]  # torch warns if a schedule steps before its optimizer
    rates = []
    for _ in range(max(at) + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return [rates[epoch] for epoch in at]
