"""Models: plain modules that know nothing of training. A new one is a file of its own and a line in `registry.py`."""

import inspect
from typing import Any

from accel_restore.errors import UserError
from accel_restore.registry import MODELS
from accel_restore.utils.imports import check_arguments, describe_error, resolve


def build_model(name: str, arguments: dict[str, Any], channels: int, scale: int = 1):
    """The float module of that name, `MODELS` or `package.module:Class`; its keyword parameters are its configuration.

    A class with a parameter `channels` is given the number of image channels; one with `scale`, how much it enlarges.

    Raises: UserError for a name that cannot be imported, is no `torch.nn.Module`, or arguments it does not take.
    """
    from torch import nn

    model_class = resolve(name, MODELS, "model.name")
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise UserError(f"model.name: '{name}' is no torch.nn.Module class")
    parameters = inspect.signature(model_class).parameters
    given = dict(arguments)
    for key, value in (("channels", channels), ("scale", scale)):
        if key in arguments:
            raise UserError(f"model.{key}: unknown key; set data.{key}, which the model follows")
        if key in parameters:
            given[key] = value
    if scale > 1 and "scale" not in parameters:
        raise UserError(f"data.scale: {scale}, but the model '{name}' cannot enlarge (it has no parameter scale)")
    check_arguments(model_class, given, "model")
    try:
        return model_class(**given)
    except UserError:
        raise
    except Exception as error:  # of a user's own class, anything
        raise UserError(f"model: {name} cannot be built: {describe_error(error)}") from error
