"""Models that Python code gives as objects, in place of a name in the configuration."""

import copy
import inspect
from typing import Any

import torch
from torch import nn

from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.models import ImageSpec, build_model
from accel_restore.utils.imports import check_arguments, describe_error


def build_object(own: Any, name: str, images: ImageSpec) -> nn.Module:
    """Return a copy of a module on the CPU, with its weights, or the module that a function or class builds.

    A parameter `channels`, `scale` or `input_channels` receives that of the images.

    Raises: UserError if the module cannot be copied or built.
    """
    try:
        if isinstance(own, nn.Module):
            return copy.deepcopy(own).cpu()
        given = {key: value for key, value in images._asdict().items() if key in inspect.signature(own).parameters}
        check_arguments(own, given, "model")
        built = own(**given)
    except UserError:
        raise
    except PART_ERRORS as error:  # a user's own code may raise anything
        if isinstance(own, nn.Module):
            kind = type(own).__name__
            raise UserError(
                f"model: the {kind} cannot be copied ({describe_error(error)}), which training has to do; give fit a "
                f"function that builds it, such as model=lambda: {kind}(...)"
            ) from error
        raise UserError(f"model: '{name}' cannot be built: {describe_error(error)}") from error
    if not isinstance(built, nn.Module):
        raise UserError(f"model: '{name}' returns a {type(built).__name__}, not a torch.nn.Module")
    return built


@torch.no_grad()
def is_built_by_name(model: nn.Module, name: str, images: ImageSpec, side: int) -> bool:
    """Return whether the class that `name` imports, without arguments, does with these weights what `model` does.

    Tried on an image of `side` pixels. Leaves the model in eval mode.
    """
    module = name.partition(":")[0]
    if module == "__main__":  # another program
        return False
    channels = images.input_channels
    image = torch.linspace(0, 1, channels * side * side).reshape(1, channels, side, side)
    try:
        with torch.random.fork_rng(devices=[]):
            other = build_model(name, {}, *images)
        other.load_state_dict(model.state_dict())
        return bool(torch.equal(model.eval()(image), other.eval()(image)))
    except PART_ERRORS:  # whatever the reason: it cannot be built by its name
        return False
