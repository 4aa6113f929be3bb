"""Metrics of the user's own, named by import path: functions, classes, objects, and functions that build objects.

They take (output, gt) or, without reference, (output), and return one value per image. Classes of torchmetrics, which
have `update`, `compute` and `reset`, work too: each image is a set of its own.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accel_restore.errors import UserError
from accel_restore.metrics import Metric
from accel_restore.utils.imports import check_arguments
from accel_restore.utils.own_code import reporting
from accel_restore.utils.rng import seed_forward

_SECOND = ("gt", "ref", "reference", "target")  # a second parameter with a default takes gt if it has such a name
_OF_SETS = "scores a set of images, as FID does, but each image must have a score of its own"


def own_metric(path: str, target: Any, arguments: dict[str, Any], key: str) -> Metric:
    """Return the metric that the object `target`, imported from `path`, stands for.

    `key` is the configuration key of the entry.

    Raises: UserError if it cannot be built with these arguments.
    """
    where = f"{key}: '{path}'"
    if isinstance(target, Metric):
        check_arguments(lambda: None, arguments, key)
        return replace(target, build=lambda weights: partial(_measure, where, target.build(weights)), prepares=False)
    with reporting(f"{where} cannot be built"):
        function, count = _build(target, arguments, key, where)

    def attribute(name: str, kind: type, default: Any) -> Any:
        value = getattr(function, name, getattr(target, name, None))
        if value is not None and type(value) is not kind:
            raise UserError(f"{where} has the attribute {name}: {value!r}; it must be of type {kind.__name__}")
        return default if value is None else value

    lower_better = attribute("lower_better", bool, None)  # pyiqa's name
    shown = ", ".join(f"{name}={value}" for name, value in arguments.items())
    version = getattr(sys.modules.get(path.partition(".")[0].partition(":")[0]), "__version__", None)
    return Metric(
        lambda _: partial(_measure, where, partial(_call, function, count)),
        f"{path}{f'({shown})' * bool(shown)}{f', version {version}' * bool(version)}, in float32",
        attribute("smallest_side", int, 1),
        attribute("higher_is_better", bool, None if lower_better is None else not lower_better),
        attribute("of_luma", bool, True),
    )


def _build(target: Any, arguments: dict[str, Any], key: str, where: str) -> tuple[Callable, int]:
    """Return what scores images, and the number of images that it takes."""
    if not inspect.isclass(target) and (images := _images(target, arguments)):
        is_made = isinstance(target, nn.Module) or _accumulates(target)
        check_arguments((lambda: None) if is_made else target, arguments, key, skip=images)
        return _ready(partial(target, **arguments) if arguments else target), len(images)
    if inspect.isclass(target) and "real" in inspect.signature(getattr(target, "update", target)).parameters:
        raise UserError(f"{where} {_OF_SETS}")
    check_arguments(target, arguments, key)
    made = target(**arguments)
    images = _images(made, {})
    if not images:
        raise UserError(
            f"{where} gives {_a(made)}, which takes no images; it must be called with (output, gt) or (output)"
        )
    return _ready(made), len(images)


def _images(function: Any, arguments: dict[str, Any]) -> list[str]:
    """Return the names of the parameters that take images, in order; empty if `function` needs none."""
    if not callable(function):
        return []
    called = (
        function.update if _accumulates(function) else function.forward if isinstance(function, nn.Module) else function
    )
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):  # it is not written in Python
        return ["output", "gt"]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return ["output", "gt"]
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    free = [p for p in parameters if p.kind in kinds and p.name not in arguments]
    needed = [p.name for p in free if p.default is p.empty]
    if len(needed) == 1 and len(free) > 1 and free[1].name in _SECOND:
        needed.append(free[1].name)
    return needed[:2]


def _accumulates(function: Any) -> bool:
    return all(callable(getattr(function, name, None)) for name in ("update", "compute", "reset"))


def _ready(function: Any) -> Callable:
    if isinstance(function, nn.Module):
        function.eval().requires_grad_(False)
    if hasattr(function, "distributed_available_fn"):
        function.distributed_available_fn = bool  # false: torchmetrics would wait for ranks, which score other images
    return function


def _call(function: Any, count: int, output: Tensor, gt: Tensor) -> Any:
    """Return the score of images (1, C, H, W), converted to float32, which most metrics need."""
    images = [image.float() for image in (output, gt)[:count]]
    if isinstance(function, nn.Module):
        function.to(output.device)
    if not _accumulates(function):
        return function(*images)
    function.reset()
    function.update(*images)
    return function.compute()


def _measure(where: str, function: Callable, output: Tensor, gt: Tensor) -> Tensor:
    """Return the score of an image (1, C, H, W), with shape (1,). Random numbers are the same for each image."""
    device = output.device
    devices = [] if device.type == "cpu" else [device]
    with reporting(f"{where} cannot score an image of {gt.shape[-1]}x{gt.shape[-2]}"), torch.random.fork_rng(devices):
        seed_forward(0, device)
        value = function(output, gt)
    if isinstance(value, int | float | np.number | np.ndarray):
        value = torch.as_tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else _a(value)
        raise UserError(
            f"{where} returns {given} for one image; it must return one number per image, shape (1,): average over all "
            "dimensions but the first, for example value.flatten(1).mean(1)"
        )
    return value.detach().reshape(1)


def _a(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
