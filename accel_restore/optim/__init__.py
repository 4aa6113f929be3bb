"""Optimizers and learning-rate schedules by name: torch's own, and Muon. A schedule's unit is the epoch."""

import copy
import math

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from accel_restore.config.schema import AnyOptimizer, AnySchedule
from accel_restore.models.parameters import without_decay
from accel_restore.optim.muon import Muon

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "muon": Muon, "sgd": torch.optim.SGD}


def get_optimizer(model: nn.Module, config: AnyOptimizer, fused: bool = False) -> Optimizer:
    """The configured optimizer over the model's trainable parameters; those of `no_decay` are a second group.

    `fused`: torch's kernels that update all of them at once.

    Raises: UserError for a pattern of `no_decay` that no parameter matches.
    """
    exempt = without_decay(model, config.no_decay)
    groups: tuple[list, list] = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in exempt].append(parameter)
    settings = ({}, {"weight_decay": 0.0})
    filled = [{"params": group, **own} for group, own in zip(groups, settings, strict=True) if group]
    kernels = {} if config.name == "muon" else {"fused": fused or None}
    return OPTIMIZERS[config.name](filled, **config.model_dump(exclude={"name", "no_decay"}), **kernels)


class Ema:
    """The exponential moving average of a model's weights; buffers are those of the model.

    Update t, counted from 0, has the decay `decay`, with `warm_up` at most (1 + t) / (10 + t), so that the first
    weights are soon forgotten; the first one copies the weights. torch's AveragedModel counts on the device, which
    every update would wait for.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`. Deviation: the copy at t = 0, as torch has it.
    """

    def __init__(self, model: nn.Module, decay: float, warm_up: bool):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.warm_up, self.num_updates = decay, warm_up, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        t = self.num_updates
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warm_up else self.decay
        averages, weights = list(self.module.parameters()), list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay if t else 1.0)
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
        self.num_updates = t + 1


def _floored(optimizer: Optimizer, factor, min_lr: float) -> LRScheduler:
    """A schedule that multiplies the first rate by factor(epoch) and never falls below `min_lr`."""
    base = optimizer.param_groups[0]["lr"]
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: max(factor(epoch), min_lr / base))


def constant(optimizer: Optimizer, epochs: int, *, min_lr: float) -> LRScheduler:
    """One rate for all epochs."""
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def cosine(optimizer: Optimizer, epochs: int, *, min_lr: float, hold_epochs: int) -> LRScheduler:
    """The first rate for `hold_epochs` epochs, then half a cosine to `min_lr`. Source: Loshchilov, Hutter, 2017."""
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
    """Cosines that start anew. Source: Loshchilov, Hutter, SGDR, 2017."""
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=period, T_mult=period_factor, eta_min=min_lr)


def multistep(optimizer: Optimizer, epochs: int, *, min_lr: float, milestones: list[int], gamma: float) -> LRScheduler:
    """The rate times `gamma` at each milestone."""
    if min_lr == 0:
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    return _floored(optimizer, lambda epoch: gamma ** sum(epoch >= m for m in milestones), min_lr)


def step(optimizer: Optimizer, epochs: int, *, min_lr: float, step_size: int, gamma: float) -> LRScheduler:
    """The rate times `gamma` every `step_size` epochs."""
    if min_lr == 0:
        return lr_scheduler.StepLR(optimizer, step_size, gamma)
    return _floored(optimizer, lambda epoch: gamma ** (epoch // step_size), min_lr)


def exponential(optimizer: Optimizer, epochs: int, *, min_lr: float, gamma: float) -> LRScheduler:
    """The rate times `gamma` every epoch."""
    if min_lr == 0:
        return lr_scheduler.ExponentialLR(optimizer, gamma)
    return _floored(optimizer, lambda epoch: gamma**epoch, min_lr)


def plateau(optimizer: Optimizer, epochs: int, *, min_lr: float, factor: float, patience: int) -> LRScheduler:
    """The rate times `factor` when the monitored value has not become better for `patience` epochs.

    Any improvement counts: torch's relative threshold would mistake the sign of a negated PSNR.
    """
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=0.0, min_lr=min_lr)


SCHEDULES = {
    schedule.__name__: schedule
    for schedule in (constant, cosine, cosine_restarts, multistep, step, exponential, plateau)
}
# Their rates do not depend on the number of epochs, so that a finished run may be lengthened.
OPEN_ENDED = {"constant", "cosine_restarts", "multistep", "step", "exponential", "plateau"}


class WarmUp(LRScheduler):
    """A linear rise over the first `epochs` epochs, then the schedule `after`, which counts its epochs from there."""

    def __init__(self, after: LRScheduler, epochs: int):
        # The base class would reset the rates that `after` has set: it is a type here, not an implementation.
        self.after, self.optimizer, self.epochs, self.last_epoch = after, after.optimizer, epochs, 0
        self.peak = [group["lr"] for group in self.optimizer.param_groups]
        self._rise()

    def _rise(self) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * min(1.0, (self.last_epoch + 1) / (self.epochs + 1))

    def step(self, metrics: float | None = None) -> None:
        self.last_epoch += 1
        if self.last_epoch <= self.epochs:
            self._rise()
        else:
            step_scheduler(self.after, metrics)

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict:
        return {"last_epoch": self.last_epoch, "after": self.after.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.last_epoch = state["last_epoch"]
        self.after.load_state_dict(state["after"])


def step_scheduler(scheduler: LRScheduler, monitored: float | None) -> None:
    """Step a schedule once; `plateau` looks at the monitored value (lower is better), the others do not."""
    inner = getattr(scheduler, "scheduler", scheduler)  # what accelerate has wrapped
    if isinstance(inner, WarmUp | lr_scheduler.ReduceLROnPlateau):
        scheduler.step(monitored)
    else:
        scheduler.step()


def get_scheduler(optimizer: Optimizer, config: AnySchedule, epochs: int) -> LRScheduler:
    """The configured schedule over `epochs` epochs, at epoch 0."""
    arguments = config.model_dump(exclude={"name", "warmup_epochs"})
    schedule = SCHEDULES[config.name](optimizer, max(1, epochs - config.warmup_epochs), **arguments)
    return WarmUp(schedule, config.warmup_epochs) if config.warmup_epochs else schedule


def preview_learning_rates(config: AnySchedule, lr: float, epochs: int, at: list[int]) -> list[float] | None:
    """The learning rates of the epochs `at`, found by running the schedule; None for `plateau`, unknown beforehand."""
    if config.name == "plateau":
        return None
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    scheduler = get_scheduler(optimizer, config, epochs)
    optimizer.step()  # torch warns about a schedule that steps before its optimizer
    rates = []
    for _ in range(max(at) + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return [rates[epoch] for epoch in at]
