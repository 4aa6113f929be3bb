"""Loading of a module from a file of weights. Nothing in the file is trusted before it has been checked."""

import math
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from accel_restore.errors import UserError
from accel_restore.models import ImageSpec, build_model
from accel_restore.models.architectures import model_names
from accel_restore.models.spandrel_models import RECOGNISED, recognise, skeleton_device
from accel_restore.models.weights_file import digest, image_spec, read_header, read_metadata


def load_module(path: Path, own: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the float32 module of a best.safetensors file, in eval mode on the CPU, and the file's metadata.

    The module is `own`, which the weights must fit, or it is built as the file describes it.

    Raises: UserError, without the file's name, if the file is damaged or was not written by accel_restore.
    """
    stored, header = read_header(path)
    info = read_metadata(stored)
    name, data = info["model"]["name"], info["data"]
    if own is not None:
        _compare(type(own).__name__, own, header)
        own.load_state_dict(_read_weights(path, stored))
        return own.float().cpu().eval(), {**stored, **info}
    if info["model"].get("object"):
        kind = name.rpartition(":")[2]
        raise UserError(
            f"its model '{name}' was given to fit as an object, and cannot be built from this file; load it in Python "
            f"with accel_restore.load(path, model={kind}(...))"
        )
    arguments, images = info["model"]["arguments"], image_spec(data)
    _refuse_standard_library(name)
    with as_user_error(name), limited(header):
        if name != RECOGNISED:
            _check_skeleton(name, arguments, images, header)
        weights = _read_weights(path, stored)
        if name == RECOGNISED:
            model, own_images = recognise(weights)
            if arguments or own_images != images:
                raise UserError(f"gives {images.in_words}, but its weights have {own_images.in_words}")
        else:
            model = build_model(name, arguments, *images)
        _compare(name, model, header)
        model.load_state_dict(weights)
    return model.float().eval(), {**stored, **info}


def build_stored(
    name: str, arguments: dict[str, Any], images: ImageSpec, header: dict[str, tuple[list[int], bool]]
) -> nn.Module:
    """Return a new module of the model that a file with these tensors names, for other images than the file's.

    Raises: UserError, without the file's name.
    """
    _refuse_standard_library(name)
    with as_user_error(name), limited(header):
        return build_model(name, arguments, *images)


def _refuse_standard_library(name: str) -> None:
    if name not in model_names() and re.split("[.:]", name)[0] in sys.stdlib_module_names:
        raise UserError(f"names '{name}' as its model, but Python's standard library has no torch.nn.Module class")


def _read_weights(path: Path, stored: dict[str, str]) -> dict[str, Tensor]:
    weights = safetensors.torch.load_file(path)
    if digest(weights) != stored["sha256"]:
        raise UserError("is damaged (sha256 of the weights differs); copy it again")
    return weights


@contextmanager
def as_user_error(name: str) -> Iterator[None]:
    """Convert whatever a model's class raises, also while its module is imported, to a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"its model '{name}' cannot be built here ({type(error).__name__}: {reason:.200})") from error


def _check_skeleton(
    name: str, arguments: dict[str, Any], images: ImageSpec, header: dict[str, tuple[list[int], bool]]
) -> None:
    """Compare the model with the header before it takes memory, so that absurd arguments cost none."""
    try:
        with skeleton_device():
            skeleton = build_model(name, arguments, *images)
    except _AbsurdSizeError:
        raise
    except Exception:  # it may need values while it is built; other errors are reported when it is built with memory
        return
    _compare(name, skeleton, header)


def _compare(name: str, model: nn.Module, header: dict[str, tuple[list[int], bool]]) -> None:
    """Raise `UserError` unless the model's tensors match the header."""
    wanted = {key: (list(tensor.shape), tensor.is_floating_point()) for key, tensor in model.state_dict().items()}
    for key in (*header, *wanted):
        if header.get(key) != wanted.get(key):
            here, there = (
                f"{'float' if entry[1] else 'non-float'} of shape {entry[0]}" if entry else "missing"
                for entry in (header.get(key), wanted.get(key))
            )
            raise UserError(
                f"the weights do not fit the model '{name}': '{key:.100}' is {here} here and {there} in the model"
            )


class _AbsurdSizeError(UserError):
    """The model is much larger than its file of weights."""

    def __init__(self) -> None:
        super().__init__("its arguments describe a model much larger than the weights in it; it is damaged or hostile")


class _FewRates(TorchFunctionMode):
    """Refuse lists of rates that are longer than a model has parts. Networks make them before their first part."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace and (args[2] if len(args) > 2 else kwargs["steps"]) > self.most:
            raise _AbsurdSizeError
        return func(*args, **kwargs)


@contextmanager
def limited(header: dict[str, tuple[list[int], bool]]) -> Iterator[None]:
    """Prevent this thread from building a model with many times more modules or values than the header's tensors.

    The margins leave room for modules that a class creates and discards, such as a head of 1000 classes.
    """
    thread, parts, values = threading.get_ident(), count(), 0
    most_parts = 1000 + 100 * len(header)
    most_values = 2**24 + 4 * sum(math.prod(shape) for shape, _ in header.values())

    def registered(module: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        nonlocal values
        if threading.get_ident() != thread:
            return
        if isinstance(part, Tensor) and not nn.parameter.is_lazy(part):
            values += part.numel()
        if next(parts) > most_parts or values > most_values:
            raise _AbsurdSizeError

    with _FewRates(most_parts), ExitStack() as callbacks:
        for register in (register_module_module_registration_hook, register_module_parameter_registration_hook,
                         register_module_buffer_registration_hook):  # fmt: skip
            callbacks.callback(register(registered).remove)
        yield
