"""Optimizers and schedules by import path: import them, check their arguments, build them."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from accel_restore.config.optim import OwnOptimizer, OwnSchedule
from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.optim.eager import Adam, AdamW
from accel_restore.utils.imports import check_arguments, describe_error, misspelt, resolve

_FUNCTION = "; if it needs more than parameters, name a function (params, ...) of your own that returns it"


def own_optimizer(config: OwnOptimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """Return the optimizer that `config` names, in its training mode, over groups of parameters.

    Raises: UserError if it cannot be built, or is not an optimizer of just these parameters.
    """
    target = resolve(config.name, {}, "optimizer.name")
    given = config.arguments if config.lr is None else {"lr": config.lr, **config.arguments}
    first, arguments = _fit(target, given, "optimizer", _FUNCTION)
    try:
        optimizer = target(groups, **arguments)
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
    except UserError:
        raise
    except PART_ERRORS as error:  # a user's own class may raise anything
        raise UserError(
            f"optimizer: {config.name} cannot be built from parameters: {describe_error(error)}{_FUNCTION}"
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"optimizer.name: {config.name} returns {type(optimizer).__name__}, not a torch.optim.Optimizer"
        )
    _check_groups(config, optimizer, [parameter for group in groups for parameter in group["params"]])
    named = inspect.signature(target).parameters
    for key in arguments.keys() - named.keys():
        if key not in optimizer.param_groups[0] and not hasattr(optimizer, key):
            raise UserError(
                f"optimizer.{key}: {config.name} takes it and ignores it; remove it, or choose from: "
                f"{', '.join(name for name in named if name != first and named[name].kind != named[name].VAR_KEYWORD)}"
            )
    return optimizer


def _check_groups(config: OwnOptimizer, optimizer: Optimizer, parameters: list[Tensor]) -> None:
    name, held = config.name, [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if sorted(map(id, held)) != sorted(map(id, parameters)):
        raise UserError(
            f"optimizer.name: {name} holds {len(held)} tensors, but the model has {len(parameters)} parameters to "
            "train; it must hold exactly these (train.freeze excludes parameters from training)"
        )
    for group in optimizer.param_groups:
        lr = group.get("lr")
        if isinstance(lr, bool) or not isinstance(lr, int | float) or not (math.isfinite(lr) and lr >= 0):
            remedy = "set optimizer.lr" if config.lr is None else "choose another optimizer, as no schedule can set it"
            raise UserError(f"optimizer.lr: {name} has the learning rate {lr!r} in its groups; {remedy}")
    if config.no_decay and "weight_decay" not in optimizer.param_groups[0]:
        raise UserError(f"optimizer.no_decay: {name} has no weight_decay; remove optimizer.no_decay")


def own_schedule(config: OwnSchedule, optimizer: Optimizer, epochs: int) -> LRScheduler:
    """Return the schedule that `config` names, for `epochs` epochs after warm-up.

    Raises: UserError if it cannot be built, or is not a schedule of this optimizer.
    """
    target = resolve(config.name, {}, "scheduler.name")
    _, arguments = _fit(target, config.arguments, "scheduler", "", skip=("epochs",))
    if "epochs" in inspect.signature(target).parameters:
        arguments["epochs"] = epochs
    try:
        schedule = target(optimizer, **arguments)
    except UserError:
        raise
    except PART_ERRORS as error:  # a user's own function may raise anything
        raise UserError(f"scheduler: {config.name} cannot be built: {describe_error(error)}") from error
    if not isinstance(schedule, LRScheduler) or schedule.optimizer is not optimizer:
        raise UserError(
            f"scheduler.name: {config.name} returns {type(schedule).__name__}, but must return a "
            "torch.optim.lr_scheduler.LRScheduler of the optimizer that it is given"
        )
    return schedule


def _fit(
    target: Callable[..., Any], given: dict[str, Any], key: str, hint: str, skip: tuple[str, ...] = ()
) -> tuple[str, dict[str, Any]]:
    """Return the name of the first parameter and the arguments, with tuples where parameters are tuples.

    Raises: UserError for unknown, misspelt and missing arguments.
    """
    if not callable(target):
        raise UserError(f"{key}.name: {target!r} is not callable; name a function or a class")
    parameters = inspect.signature(target).parameters
    first = next(iter(parameters), "")
    try:
        check_arguments(target, given, key, skip=(first, *skip))
    except UserError as error:
        raise UserError(f"{error}{hint}") from None
    settable = [name for name in parameters if name not in (first, *skip)]
    for name in given.keys() - set(settable):  # it has **kwargs
        if name in (first, *skip):
            raise UserError(f"{key}.{name}: unknown key; accel_restore passes it")
        if guess := misspelt(name, settable):
            raise UserError(f"{key}.{name}: unknown key; did you mean '{key}.{guess}'?")
    return first, {name: _as_tuple(value, parameters.get(name)) for name, value in given.items()}


def _as_tuple(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Return a list as a tuple if the parameter's default or annotation is one."""
    if not isinstance(value, list) or parameter is None:
        return value
    kind = str(parameter.annotation).lower()
    is_tuple = isinstance(parameter.default, tuple) or ("tuple" in kind and "list" not in kind)
    return tuple(value) if is_tuple else value


def has_modes(optimizer: Optimizer) -> bool:
    """Return whether an optimizer evaluates other weights than it trains: it has `train()` and `eval()`."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def is_fused_adam(optimizer: Optimizer) -> bool:
    """Return whether an optimizer is Adam or AdamW with fused kernels, torch's or ours, not a class of others."""
    return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW, Adam, AdamW) and all(
        group["fused"] for group in optimizer.param_groups
    )
