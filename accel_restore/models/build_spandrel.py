"""Construction of spandrel's architectures from scratch: the arguments of a name, and the module."""

import importlib
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from accel_restore.errors import UserError
from accel_restore.models import ImageSpec, architectures
from accel_restore.models.branches import keep_training_branches
from accel_restore.models.spandrel_models import (
    Fit,
    accept_any_size,
    call_in_batches_if_equal,
    find_fit,
    skeleton_device,
)
from accel_restore.utils.imports import check_arguments, describe_error

_LARGEST, _LONGEST = 2**16, 256  # of a number and a list; a file of weights must not claim more memory than there is
_SCALES = (1, 2, 3, 4)
# Types of a default, those of the values that may replace it, and their name. A size may be [height, width].
_TYPES: tuple[tuple[Any, tuple[type, ...], str], ...] = (
    (bool, (bool,), "true or false"),
    ((int, float), (int, float, list, tuple), "a number"),
    ((list, tuple), (list, tuple), "a list"),
    (str, (str, type(None)), "text"),
)
_NOISE_LEVEL = 15 / 255  # of DRUNet's noise map, as spandrel calls it; a constant, so the network is blind


def _with_noise_map(model: nn.Module, images: Tensor) -> Tensor:
    return model(torch.cat([images, torch.full_like(images[:, :1], _NOISE_LEVEL)], dim=1))


_CALLS = {"drunet": _with_noise_map}  # where spandrel's call is for one image alone


def build_architecture(name: str, arguments: dict[str, Any], images: ImageSpec) -> nn.Module:
    """Return a new network of the architecture, in training mode. It maps images to images of any size.

    Raises: UserError if the architecture cannot have these arguments, channels or scale, or needs more than an image.
    """
    if reason := architectures.refused_names().get(name):
        raise UserError(f"model.name: {reason}")
    keyword_arguments(name, find_class(name, images.scale), arguments, images)  # whose errors name keys
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as torch's of meshgrid, once per process
            return _build(name, arguments, images)
    except UserError:  # a file that claims to need much memory
        raise
    except Exception as error:  # of any type: the class checks little
        raise UserError(_explain(name, arguments, images, error)) from error


def _build(name: str, arguments: dict[str, Any], images: ImageSpec) -> nn.Module:
    model = build_plain(name, arguments, images)
    takes_any_input = data_arguments(name, type(model), images).keys() & {*architectures.INPUT_CHANNELS}
    if images.input_channels != 3 and not takes_any_input:  # HVI-CIDNet would read the first three alone
        raise ValueError("has no argument for the channels of its input")
    if torch.get_default_device().type == "meta":  # only the shapes of its tensors are wanted
        return model
    fit = find_fit(model.eval(), images.scale) or _published_fit(name, images.scale)
    network = accept_any_size(model, images, replace(fit, call=_CALLS.get(name, fit.call)))
    keep_training_branches(network, images.input_channels)
    call_in_batches_if_equal(network, images.input_channels)
    return network.train()


def build_plain(name: str, arguments: dict[str, Any], images: ImageSpec) -> nn.Module:
    """Return the network as its project wrote it."""
    model_class = find_class(name, images.scale)
    return model_class(**keyword_arguments(name, model_class, arguments, images))


def find_class(name: str, scale: int) -> type[nn.Module]:
    """Return the class of an architecture; of several, such as UpCunet2x and UpCunet3x, the one with this scale."""
    paths = architectures.find_architectures()[name]
    fitting = [path for path in paths if f"{scale}x" in path]
    module, _, attribute = (fitting or paths)[0].partition(":")
    return getattr(importlib.import_module(module), attribute)


def keyword_arguments(
    name: str, model_class: type[nn.Module], arguments: dict[str, Any], images: ImageSpec
) -> dict[str, Any]:
    """Return all keyword arguments of the class: those of the data, the given ones, and where it has none, ours.

    Raises: UserError for a key that the class does not have or that the data decides, for huge and negative numbers,
        and for values of another type than the default.
    """
    parameters = inspect.signature(model_class).parameters
    from_data = data_arguments(name, model_class, images)
    for key in arguments:
        if key in from_data:
            source = "scale" if key in architectures.SCALE else "channels"
            raise UserError(f"model.{key}: unknown key; set data.{source}, from which the model takes it")
        _check_size(f"model.{key}", arguments[key])
        if key in parameters:
            _check_type(f"model.{key}", arguments[key], parameters[key].default)
    defaults: dict[str, Any] = dict(architectures.DEFAULTS.get(name, {}))
    if images.scale > 1 and "upsampler" in parameters and parameters["upsampler"].default == "":
        defaults["upsampler"] = "pixelshuffle"  # without one, the transformers ignore the scale
    if images != ImageSpec.of(3, images.scale) and "norm" in parameters and parameters["norm"].default is True:
        defaults["norm"] = False  # it subtracts the mean of red, green and blue
    hidden = [key for key, parameter in parameters.items() if _is_code(parameter.default)]
    check_arguments(model_class, {**defaults, **arguments}, "model", skip={*from_data, *hidden})
    return {**defaults, **arguments, **from_data}


def _is_code(default: Any) -> bool:
    """Return whether a parameter's default is a class or function, which a configuration cannot give."""
    return callable(default) and default is not inspect.Parameter.empty


def data_arguments(name: str, model_class: type[nn.Module], images: ImageSpec) -> dict[str, Any]:
    """Return the arguments of the class that follow from data.channels, data.input_channels and data.scale."""
    found: dict[str, Any] = {}
    outputs = {*architectures.OUTPUT_CHANNELS, *(key for model, key in architectures.MISNAMED if model == name)}
    for key, parameter in inspect.signature(model_class).parameters.items():
        if key in architectures.SCALE:
            found[key] = [images.scale] if isinstance(parameter.default, list) else images.scale
        elif key in (*architectures.INPUT_CHANNELS, *outputs):
            channels = images.channels if key in outputs else images.input_channels
            found[key] = channels + architectures.EXTRA_CHANNELS.get((name, key), 0)
    return found


def describe_architecture(name: str, arguments: dict[str, Any], images: ImageSpec) -> dict[str, Any]:
    """Return the name and all arguments, also those with defaults, so that later defaults change no stored model."""
    model_class = find_class(name, images.scale)
    given = keyword_arguments(name, model_class, arguments, images)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(model_class).parameters.items()
        if parameter.default is not parameter.empty and not _is_code(parameter.default)
    }
    from_data = data_arguments(name, model_class, images)
    chosen = {key: value for key, value in {**defaults, **given}.items() if key not in from_data}
    return {
        "name": model_class.__name__.lower() if len(architectures.find_architectures()[name]) > 1 else name,
        "arguments": chosen,
    }


def _check_size(key: str, value: Any) -> None:
    """Raise `UserError` for numbers and lists with which a network would take all memory."""
    if isinstance(value, (int, float)) and abs(value) > _LARGEST:
        raise UserError(f"{key}: {value} is too large; use at most {_LARGEST}")
    if isinstance(value, int) and value < 0:  # a class may take it for 0, as range does
        raise UserError(f"{key}: {value} is negative; use at least 0")
    if isinstance(value, (Sequence, dict)) and len(value) > _LONGEST:
        raise UserError(f"{key}: has {len(value)} entries; use at most {_LONGEST}")
    if isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            _check_size(key, part)


def _check_type(key: str, value: Any, default: Any) -> None:
    """Raise `UserError` if the class, which checks little, expects a value of another type by its default."""
    for kind, allowed, what in _TYPES:
        if isinstance(default, kind):
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                raise UserError(f"{key}: {value!r:.100} is not {what}, such as its default, {default!r:.100}")
            return


def _published_fit(name: str, scale: int) -> Fit:
    """Return how the published network is called, where spandrel does not recognise the given arguments."""
    try:
        with skeleton_device():
            published = build_plain(name, {}, ImageSpec.of(3, scale))
    except Exception:  # of any type: RCAN reads values while it is built
        return Fit(scale=scale)
    return find_fit(published, scale) or Fit(scale=scale)


def _explain(name: str, arguments: dict[str, Any], images: ImageSpec, error: Exception) -> str:
    """Return why the network cannot be built: the scale or the channels if others work, or else what its class says."""
    reason = describe_error(error) or type(error).__name__

    def is_possible(**other: int) -> bool:
        return _is_possible(name, arguments, images._replace(**other))

    scales = [scale for scale in _SCALES if scale != images.scale and is_possible(scale=scale)]
    if scales:
        of_data = data_arguments(name, find_class(name, images.scale), images)
        is_free = bool(of_data.keys() & set(architectures.SCALE)) and bool(arguments)  # an argument may be the cause
        cause = f" with these arguments ({reason})" if is_free else ""
        between = "" if images.keeps_channels else f" from {images.input_channels} to {images.channels} channels"
        has_only = f"has only {', '.join(map(str, scales))}"
        return f"data.scale: {images.scale}, but the model '{name}' {has_only}{between}{cause}"
    if not images.keeps_channels and is_possible(input_channels=images.channels):
        only = f"only {images.channels}, as many as data.channels"
        return f"data.input_channels: {images.input_channels}, but the model '{name}' can have {only}"
    if is_possible(channels=3, input_channels=3):
        return f"data.channels: {images.channels}, but the model '{name}' has only 3"
    return f"model: {name} cannot be built: {reason}; accel-restore models {name} shows its arguments"


def _is_possible(name: str, arguments: dict[str, Any], images: ImageSpec) -> bool:
    try:
        _build(name, arguments, images)
    except Exception:  # of any type: the class checks little
        return False
    return True
