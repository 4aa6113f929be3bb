"""Losses by name: each maps output and gt, (B, C, H, W) in [0, 1], to one value per sample, (B,).

A loss is a function of (output, gt) with keyword parameters, or a class whose objects are called with (output, gt). The
keyword parameters are the configuration: `loss: {charbonnier: {weight: 1.0, eps: 0.001}}`. A loss that needs images of
a minimum size has the attribute `smallest_side`, in pixels.

Losses return one value per sample because the engine then averages exactly over ranks, micro-batches and a ragged last
batch. The mean of a batch would not allow that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.registry import LOSSES
from accel_restore.utils.imports import check_arguments, describe_error, resolve

if TYPE_CHECKING:  # names are checked before torch is imported
    import torch
    from torch import Tensor

    LossFunction = Callable[[Tensor, Tensor], Tensor]


class Term(NamedTuple):
    """A term of a `Loss`."""

    name: str
    weight: float
    function: LossFunction
    smallest_side: int  # of the images, in pixels


class Loss:
    """The weighted sum of named terms, called with (output, gt); shape (B,)."""

    def __init__(self, parts: list[Term]):
        self.parts = parts

    @property
    def names(self) -> list[str]:
        """The names of the terms, in order."""
        return [part.name for part in self.parts]

    @property
    def smallest_side(self) -> int:
        """The smallest height and width, in pixels, that all terms accept."""
        return max(part.smallest_side for part in self.parts)

    def to(self, device: torch.device) -> None:
        """Move the terms that are modules to the device."""
        from torch import nn

        for part in self.parts:
            if isinstance(part.function, nn.Module):
                part.function.to(device)

    def __call__(self, output: Tensor, gt: Tensor) -> Tensor:
        """Return the loss of each sample, (B,)."""
        return reduce(add, self.terms(output, gt).values())

    def terms(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """Return the weighted value (B,) of each term.

        An output of lower precision is converted to gt's precision first, also under autocast.
        """
        import torch

        output = output.to(torch.promote_types(output.dtype, gt.dtype))
        with torch.autocast(gt.device.type, enabled=False):
            return {part.name: part.weight * part.function(output, gt) for part in self.parts}


def build_loss(
    terms: Mapping[str, float | dict[str, Any]],
    channels: int = 3,
    patch_sizes: Mapping[str, int] | None = None,
    own: LossFunction | None = None,
) -> Loss:
    """Return the weighted sum of the configured terms, for images of `channels` channels.

    `patch_sizes` maps configuration keys to crop sizes in pixels. `own` is the function of the only term, which is
    then not imported by its name.

    Raises: UserError for unknown or invalid arguments of a term, and for crops that are smaller than a term needs.
    """
    parts = [_build_term(name, setting, channels, own) for name, setting in terms.items()]
    for part in parts:
        for key, size in (patch_sizes or {}).items():
            if size < part.smallest_side:
                raise UserError(
                    f"loss.{part.name}: needs images of at least {part.smallest_side} pixels a side, but {key} is "
                    f"{size}; raise it, or remove loss.{part.name}"
                )
    return Loss(parts)


def _build_term(name: str, setting: float | dict[str, Any], channels: int, own: LossFunction | None) -> Term:
    arguments = dict(setting) if isinstance(setting, dict) else {"weight": setting}
    weight = arguments.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise UserError(f"loss.{name}.weight: must be a number above 0, not {weight!r}")
    target: Any = own if own is not None else resolve(name, LOSSES, "loss")
    needed = getattr(target, "image_channels", None) if name in LOSSES else None
    if needed is not None and channels not in needed:
        only = " or ".join(map(str, needed))
        raise UserError(
            f"loss.{name}: needs images of {only} channels, but gt has {channels} (data.channels); remove it"
        )
    is_class = inspect.isclass(target)
    check_arguments(target, arguments, f"loss.{name}", positional=0 if is_class else 2)  # output and gt
    try:
        function = target(**arguments) if is_class else partial(target, **arguments)
        smallest_side = getattr(function if is_class else target, "smallest_side", 1)
        values, has_gradient, changes = _try(function, channels, max(8, smallest_side))
    except UserError:
        raise
    except PART_ERRORS as error:  # a user's own loss may raise anything
        raise UserError(f"loss.{name}: cannot work with {arguments}: {describe_error(error)}") from error
    if values != (2,):
        raise UserError(
            f"loss.{name}: returns {values} for 2 samples, but must return one value per sample, shape (2,); average "
            "over all dimensions but the first, for example value.flatten(1).mean(1)"
        )
    if changes:
        raise UserError(f"loss.{name}: changes {changes} in place, so scores would be wrong; compute with copies of it")
    if not has_gradient:
        raise UserError(f"loss.{name}: has no gradient with respect to the output, so it cannot train a model")
    return Term(name, float(weight), function, smallest_side)


def _try(function: LossFunction, channels: int, side: int) -> tuple[tuple[int, ...] | str, bool, str | None]:
    """Return what a loss does with 2 images.

    It is: the shape (or else the type) of the result, whether it has a gradient, and which image is changed in place.
    """
    import torch

    images = {"output": torch.zeros(2, channels, side, side), "gt": torch.zeros(2, channels, side, side)}
    output = images["output"].requires_grad_()
    versions = {name: image._version for name, image in images.items()}
    values = function(output, images["gt"])
    changed = next((name for name, image in images.items() if image._version != versions[name]), None)
    if not isinstance(values, torch.Tensor):
        return type(values).__name__, False, changed
    return tuple(values.shape), values.requires_grad, changed
