"""Try an optimizer and a schedule of the user's own before the run writes anything: they must continue exactly."""

import copy
import json
import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from accel_restore.checkpoint.network_state import load_schedule, schedule_state
from accel_restore.checkpoint.optimizer_state import Expressed, StateError, express, restore
from accel_restore.checkpoint.state_dict import serialize
from accel_restore.config.optim import OwnOptimizer, OwnSchedule
from accel_restore.config.schema import Config
from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.optim import get_optimizer
from accel_restore.optim.ema import EvalWeights
from accel_restore.optim.own import has_modes
from accel_restore.optim.schedules import get_scheduler, needs_monitored, step_scheduler
from accel_restore.utils.files import decode_floats, encode_floats, to_json
from accel_restore.utils.imports import describe_error

_BEFORE, _AFTER = 4, 12  # steps of the trial before and after the continuation; some optimizers act every tenth step
_SHARED = 1000  # a seed
_SHAPES, _SIDE = 12, 24  # the most shapes that are tried, and the most entries in each dimension


class Small(nn.Module):
    """A few parameters with the shapes of a model's parameters, cut to a few entries in each dimension."""

    def __init__(self, model: nn.Module, device: torch.device, layout: torch.memory_format):
        super().__init__()
        trained = sorted((own.shape for own in model.parameters() if own.requires_grad), key=math.prod)
        shapes = list(dict.fromkeys(tuple(min(side, _SIDE) for side in shape) for shape in trained))
        shapes = shapes[:: -(-len(shapes) // _SHAPES) or 1]
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ParameterList([torch.randn(shape, generator=generator) for shape in shapes])
        self.to(device).to(memory_format=layout)

    def set_gradients(self, seed: int) -> None:
        """Give each parameter a random gradient, with a direction that all seeds share, as in a training."""
        own_seed, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(_SHARED)
        for own in self.all:
            gradient, common = (torch.randn(own.shape, generator=given) for given in (own_seed, shared))
            own.grad = torch.empty_like(own).copy_(0.3 * gradient + common)


def small_optimizer(config: Config, model: nn.Module, device: torch.device) -> tuple[Small, Optimizer]:
    """Return a small stand-in for a model, and the configured optimizer of its parameters."""
    small = Small(model, device, torch.channels_last if config.train.channels_last else torch.preserve_format)
    no_decay = ["all.0"] if config.optimizer.no_decay else []
    return small, get_optimizer(small, config.optimizer.model_copy(update={"no_decay": no_decay}))


def try_optimizer(config: Config, model: nn.Module, device: torch.device) -> None:
    """Make steps with an optimizer of the user's own, commit its state, and continue with a second one.

    Raises: UserError if it cannot be used, or does not continue bit-identically.
    """
    if not isinstance(config.optimizer, OwnOptimizer):
        return
    name, keys = config.optimizer.name, config.optimizer.model_dump().keys() | {"weight_decay"}
    (one, first), (other, second) = (small_optimizer(config, model, device) for _ in range(2))
    with _kept_random(device), _reporting("optimizer", name):
        for optimizer in (first, second):
            optimizer.load_state_dict(optimizer.state_dict())  # as Accelerate does when it prepares one
        for seed in range(_BEFORE):
            _step(config, one, first, seed)
        other.load_state_dict(one.state_dict())
        restore(other, second, _through_files(express(one, first)), keys)
        for seed in range(_BEFORE, _BEFORE + _AFTER):
            if has_modes(first):  # must change nothing, so the second goes without
                average = EvalWeights(copy.deepcopy(one), first)
                average.update(one)
                _ = average.module
            for small, optimizer in ((one, first), (other, second)):
                _step(config, small, optimizer, seed)
            if any(not a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True)):
                raise UserError(
                    f"optimizer.name: {name} makes other steps after its state was loaded, so a run could not be "
                    "continued bit-identically; its state_dict() must hold all that its steps depend on"
                )


def _step(config: Config, small: Small, optimizer: Optimizer, seed: int) -> None:
    name = config.optimizer.name
    small.set_gradients(seed)
    rates, drawn = [group["lr"] for group in optimizer.param_groups], _random_states(small)
    try:
        optimizer.step()
    except PART_ERRORS as error:
        plain = config.model_copy(update={"train": config.train.model_copy(update={"channels_last": False})})
        if _can_step(plain, small, with_closure=False):
            raise UserError(
                f"optimizer.name: {name} fails for convolutions with train.channels_last ({describe_error(error)}); "
                "set train.channels_last=false"
            ) from error
        if _can_step(plain, small, with_closure=True):
            raise UserError(
                f"optimizer.name: {name} needs a closure that computes the loss several times in a step; a step here "
                "has one forward and backward pass: choose another optimizer"
            ) from error
        raise
    if [group["lr"] for group in optimizer.param_groups] != rates:
        raise UserError(
            f"optimizer.name: {name} changes the learning rate in step(), but only a schedule may; turn that off, or "
            "choose another optimizer"
        )
    if _random_states(small) != drawn:
        raise UserError(
            f"optimizer.name: {name} draws random numbers in step(), so ranks would get different weights, and a run "
            "could not be continued bit-identically; turn that off, or choose another optimizer"
        )


def _can_step(config: Config, model: nn.Module, with_closure: bool) -> bool:
    small, optimizer = small_optimizer(config, model, next(model.parameters()).device)

    def closure() -> Tensor:
        with torch.enable_grad():
            loss = torch.stack([own.square().sum() for own in small.parameters()]).sum()
            optimizer.zero_grad()
            loss.backward()
        return loss

    try:
        for _ in range(_BEFORE):
            closure()
            optimizer.step(*([closure] if with_closure else []))  # type: ignore[arg-type]  # ours returns a tensor
    except PART_ERRORS:
        return False
    return True


def _through_files(state: Expressed) -> Expressed:
    """Return the state as a commit gives it back."""
    plain = decode_floats(json.loads(to_json(encode_floats({"groups": state.groups, "extra": state.extra}))))
    return Expressed(safetensors.torch.load(serialize(state.tensors)), **plain)


def known_epochs(config: Config) -> int | None:
    """Return the number of epochs of a run; None if it depends on the number of images."""
    train = config.train
    if train.max_steps is None:
        return train.epochs
    return None if train.steps_per_epoch is None else -(-train.max_steps // train.steps_per_epoch)


def try_schedule(config: Config, model: nn.Module, epochs: int | None, device: torch.device) -> None:
    """Run a schedule of the user's own over `epochs` epochs, and continue it from some of them.

    If `epochs` is None, it is only built.

    Raises: UserError if it cannot be used, gives a wrong rate, or does not continue with the same rates.
    """
    section = config.scheduler
    if not isinstance(section, OwnSchedule):
        return
    with _kept_random(device), _reporting("scheduler", section.name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schedules that step without their optimizer
        optimizer, schedule = _scheduled(config, model, epochs or config.train.max_steps or 1, device)
        if needs_monitored(schedule) and config.validation.every_epochs != 1:
            raise UserError(
                f"scheduler.name: {section.name} needs a validation in every epoch; set validation.every_epochs=1"
            )
        if epochs is None:
            return
        seen, states = list[list[dict[str, Any]]](), []
        for epoch in range(epochs):
            seen.append(_settings(optimizer))
            states.append(json.dumps(encode_floats(schedule_state(schedule, section.name))))
            if wrong := [group["lr"] for group in seen[-1] if not _is_rate(group["lr"])]:
                raise UserError(
                    f"scheduler.name: {section.name} gives the learning rate {wrong[0]!r} in epoch {epoch + 1}; rates "
                    "must be finite numbers of at least 0"
                )
            step_scheduler(schedule, _made_up(epoch))
        for start in {1, epochs // 2} & set(range(1, epochs)):
            optimizer, schedule = _scheduled(config, model, epochs, device)
            stored = decode_floats(json.loads(states[start]))
            load_schedule(schedule, start, stored)
            for epoch in range(start, epochs):
                if epoch == start and stored is not None:
                    _set_rates(optimizer, seen[start])
                if _settings(optimizer) != seen[epoch]:
                    raise UserError(
                        f"scheduler.name: {section.name} gives other rates when it continues from epoch {start} than "
                        "without a stop; they must follow from the epoch, or from state_dict() alone"
                    )
                step_scheduler(schedule, _made_up(epoch))


def _scheduled(config: Config, model: nn.Module, epochs: int, device: torch.device) -> tuple[Optimizer, LRScheduler]:
    _, optimizer = small_optimizer(config, model, device)
    return optimizer, get_scheduler(optimizer, config.scheduler, epochs)


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _set_rates(optimizer: Optimizer, settings: list[dict[str, Any]]) -> None:
    """Set the rates, as the optimizer's state in a commit does."""
    for group, stored in zip(optimizer.param_groups, settings, strict=True):
        group["lr"] = stored["lr"]


def _made_up(epoch: int) -> float:
    """Return a monitored value that improves for some epochs only."""
    return 1 / (1 + min(epoch, 3))


def _is_rate(lr: Any) -> bool:
    return isinstance(lr, int | float) and not isinstance(lr, bool) and math.isfinite(lr) and lr >= 0


@contextmanager
def _reporting(key: str, name: str) -> Iterator[None]:
    """Convert whatever the user's part raises to a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except StateError as error:
        raise UserError(
            f"{key}.name: {name} keeps a state that cannot be stored as tensors and numbers by parameter name "
            f"({error}); choose another one"
        ) from error
    except PART_ERRORS as error:
        raise UserError(f"{key}.name: {name} cannot be used: {describe_error(error)}") from error


@contextmanager
def _kept_random(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _random_states(model: nn.Module) -> tuple[object, ...]:
    """Return the states of the generators of torch, Python and NumPy, which can be compared."""
    device = next(model.parameters()).device
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    _, numbers, *rest = np.random.get_state()  # noqa: NPY002  the generator that optimizers draw from
    return *(state.numpy().tobytes() for state in states), random.getstate(), np.asarray(numbers).tobytes(), *rest
