"""The discriminator that a configuration names, and weights for it from a file of this or another project."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.registry import DISCRIMINATORS
from accel_restore.utils.imports import check_arguments, describe_error, resolve

if TYPE_CHECKING:  # names are checked before torch is imported
    from torch import Tensor, nn

_KEY = "adversarial.discriminator"
_NEW = "parametrizations.weight."  # torch.nn.utils.parametrizations.spectral_norm
_OLD = {f"{_NEW}original": "weight_orig", f"{_NEW}0._u": "weight_u", f"{_NEW}0._v": "weight_v"}


def build_discriminator(
    name: str, arguments: Mapping[str, Any], channels: int, patch_sizes: Mapping[str, int], key: str = _KEY
) -> nn.Module:
    """Return a new discriminator of the class that `name` stands for: a key of `DISCRIMINATORS`, or
    `package.module:Class`.

    `arguments` are its keyword parameters. A class with a parameter `channels` receives the number of image channels,
    and one with a parameter `size` the side of the crops of gt in pixels. `patch_sizes` maps configuration keys to
    these sides. Forwards of the result never change its spectral norms; `power_iteration` does.

    Raises: UserError for a name that cannot be imported or is not a `torch.nn.Module`, for invalid arguments, and for
        crops that it does not accept.
    """
    from torch import nn

    from accel_restore.models.spectral_norm import freeze_vectors

    target = resolve(name, DISCRIMINATORS, f"{key}.name")
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise UserError(f"{key}.name: '{name}' is not a torch.nn.Module class")
    given = _with_images(target, name, arguments, channels, patch_sizes, key)
    check_arguments(target, given, key)
    try:
        module = target(**given)
    except UserError:
        raise
    except PART_ERRORS as error:  # a user's own class may raise anything
        raise UserError(f"{key}: {name} cannot be built: {describe_error(error)}") from error
    try:
        freeze_vectors(module)
    except UserError as error:
        raise UserError(f"{key}: '{name}' cannot be used: {error}") from error
    for source, size in patch_sizes.items():
        least = getattr(module, "smallest_side", 1)
        if size < least:
            raise UserError(
                f"{key}: '{name}' needs images of at least {least} pixels a side, but {source} is {size}; raise it, or "
                "choose another discriminator"
            )
    for size in sorted(set(patch_sizes.values())):
        _try(module, name, channels, size, key)
    return module


def _with_images(
    target: type, name: str, arguments: Mapping[str, Any], channels: int, patch_sizes: Mapping[str, int], key: str
) -> dict[str, Any]:
    """Return the arguments with `channels` and `size`, if the class has them."""
    parameters, given = inspect.signature(target).parameters, dict(arguments)
    for argument, source in (("channels", "data.channels"), ("size", "data.patch_size")):
        if argument in given and argument in parameters:
            raise UserError(f"{key}.{argument}: unknown key; set {source}, from which the discriminator takes it")
    if "channels" in parameters:
        given["channels"] = channels
    if "size" in parameters:
        sizes = set(patch_sizes.values())
        if len(sizes) > 1:
            listed = ", ".join(f"{source}={size}" for source, size in patch_sizes.items())
            raise UserError(
                f"{key}: '{name}' works with crops of one size, but there are several ({listed}); set them to the same "
                "value, or use unet_sn or patch"
            )
        given["size"] = sizes.pop()
    return given


def _try(module: nn.Module, name: str, channels: int, size: int, key: str) -> None:
    """Raise `UserError` unless two images give logits (2, ...). Nothing of the module changes."""
    import torch

    was_training = module.training
    try:
        with torch.no_grad():
            found = module.eval()(torch.zeros(2, channels, size, size))
    except PART_ERRORS as error:
        raise UserError(
            f"{key}: '{name}' does not work with images of {channels} channels and {size}x{size} pixels: "
            f"{describe_error(error)}"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(found, torch.Tensor) or found.dim() == 0 or len(found) != 2 or not found.is_floating_point():
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise UserError(
            f"{key}: '{name}' returns {what} for 2 images, but must return logits, a tensor of shape (2, ...); do not "
            "average over the images"
        )


def load_discriminator(module: nn.Module, path: Path) -> None:
    """Load the weights of a file into a discriminator: of accel_restore, or a `net_d` of BasicSR and its relatives.

    Spectral norms may have the names of either function of torch. Where `weight_v` is missing, it follows from the
    weight and `weight_u`.

    Raises: UserError, without the path, if the file cannot be read or holds other tensors.
    """
    from accel_restore.models.pretrained import read_weights

    weights, wanted = _with_names(read_weights(path), module), module.state_dict()
    optional = [name for name in wanted if name.endswith("num_batches_tracked")]  # old files have none
    missing = [name for name in wanted if name not in weights and name not in optional]
    unexpected = [name for name in weights if name not in wanted]
    other = [
        f"{name} {list(weights[name].shape)}, not {list(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("other shapes", other))
    if listed := "; ".join(f"{what}: {_first(names)}" for what, names in problems if names):
        raise UserError(
            f"does not fit the discriminator and its arguments ({listed}); set name, its arguments and data.channels "
            "as in the file, or use another file"
        )
    module.load_state_dict({**wanted, **weights})


def _with_names(weights: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the weights by the names of a module, where those of its spectral norms differ."""
    from torch.nn import functional as F

    wanted = module.state_dict()
    pairs = [*_OLD.items(), *((old, new) for new, old in _OLD.items())]

    def own(name: str) -> str:
        others = (name.removesuffix(before) + after for before, after in pairs if name.endswith(before))
        return name if name in wanted else next((other for other in others if other in wanted), name)

    renamed = {own(name): value for name, value in weights.items()}
    for name in wanted:
        if name.endswith("weight_v") and name not in renamed:
            stem = name.removesuffix("v")
            if f"{stem}orig" in renamed and f"{stem}u" in renamed:
                matrix, u = renamed[f"{stem}orig"].flatten(1), renamed[f"{stem}u"]
                if u.shape == matrix.shape[:1]:
                    renamed[name] = F.normalize(matrix.t() @ u, dim=0, eps=1e-12)
    return renamed


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name:.100}" for name in names[:3]) + more
