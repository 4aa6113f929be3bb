"""Models: plain modules that know nothing of training. A new one takes a file and a line in `registry.py`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.models.architectures import is_architecture
from accel_restore.registry import MODELS
from accel_restore.utils.imports import check_arguments, describe_error, resolve

if TYPE_CHECKING:  # names are checked before torch is imported
    from torch import nn


def build_model(name: str, arguments: dict[str, Any], channels: int, scale: int = 1) -> nn.Module:
    """Return a new module of the class that `name` stands for: a key of `MODELS`, an architecture
    of spandrel, or `package.module:Class`.

    `arguments` are its keyword parameters. A class with a parameter `channels` receives the number of image channels,
    and one with a parameter `scale` the factor by which it enlarges.

    Raises: UserError for a name that cannot be imported or is not a `torch.nn.Module`, and for invalid arguments.
    """
    from torch import nn

    if is_architecture(name):
        from accel_restore.models.build_spandrel import build_architecture

        return build_architecture(name, arguments, channels, scale)
    model_class = resolve(name, MODELS, "model.name")
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise UserError(f"model.name: '{name}' is not a torch.nn.Module class")
    parameters = inspect.signature(model_class).parameters
    given = dict(arguments)
    for key, value in (("channels", channels), ("scale", scale)):
        if key in arguments:
            raise UserError(f"model.{key}: unknown key; set data.{key}, from which the model takes it")
        if key in parameters:
            given[key] = value
    if scale > 1 and "scale" not in parameters:
        raise UserError(f"data.scale: {scale}, but the model '{name}' cannot enlarge (it has no parameter scale)")
    check_arguments(model_class, given, "model")
    try:
        return model_class(**given)
    except UserError:
        raise
    except PART_ERRORS as error:  # a user's own class may raise anything
        raise UserError(f"model: {name} cannot be built: {describe_error(error)}") from error
