"""Models: plain modules that know nothing of training. A new one is a file of its own and a line in `MODELS`."""

import inspect
from typing import Any

from accel_restore.errors import UserError
from accel_restore.naming import check_arguments, resolve

# Import paths, so that names are checked without importing torch.
MODELS = {"unet": "accel_restore.models.unet:UNet", "dncnn": "accel_restore.models.dncnn:DnCNN"}


def build_model(name: str, arguments: dict[str, Any], channels: int):
    """The float module of that name, `MODELS` or `package.module:Class`; its keyword parameters are its configuration.

    A class with a parameter `channels` is given the number of image channels.

    Raises: UserError for a name that cannot be imported, is no `torch.nn.Module`, or arguments it does not take.
    """
    from torch import nn

    model_class = resolve(name, MODELS, "model.name")
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise UserError(f"model.name: '{name}' is no torch.nn.Module class")
    if "channels" in arguments:
        raise UserError("model.channels: unknown key; set data.channels, which the model follows")
    follows = "channels" in inspect.signature(model_class).parameters
    given = {**arguments, "channels": channels} if follows else arguments
    check_arguments(model_class, given, "model")
    try:
        return model_class(**given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model: {name} cannot be built: {error}") from error
