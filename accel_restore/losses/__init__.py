"""Losses by name: each takes output and gt of shape (B, C, H, W) in [0, 1] and returns one value per sample, (B,).

Keyword parameters are configuration: `loss: {charbonnier: {weight: 1.0, eps: 0.001}}`. Values per sample, not a mean of
the batch, are what lets the engine average exactly over ranks, micro-batches and a ragged last batch.

A loss is a function of (output, gt, its parameters), or a class whose objects, made of the parameters, are called with
(output, gt). Where one needs images of some size, its attribute `smallest_side` says so, in pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from accel_restore.errors import UserError
from accel_restore.registry import LOSSES
from accel_restore.utils.imports import check_arguments, describe_error, resolve

if TYPE_CHECKING:  # the names are checked before torch is imported
    from torch import Tensor


def build_loss(
    terms: dict[str, float | dict[str, Any]], channels: int = 3, patch_sizes: Mapping[str, int] | None = None
) -> Loss:
    """The weighted sum of the configured terms, for images of so many channels and crops of `Data.patch_sizes`.

    Raises: UserError for arguments that a term does not have or cannot work with, and for crops that are too small.
    """
    parts = []
    for name, setting in terms.items():
        arguments = dict(setting) if isinstance(setting, dict) else {"weight": setting}
        weight = arguments.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise UserError(f"loss.{name}.weight: must be a number above 0, not {weight!r}")
        target = resolve(name, LOSSES, "loss")
        check_arguments(target, arguments, f"loss.{name}", skip=("output", "gt"))
        term = _build_term(name, target, arguments, channels)
        for key, size in (patch_sizes or {}).items():
            if size < _smallest_side(term):
                raise UserError(
                    f"loss.{name}: needs images of at least {_smallest_side(term)} pixels a side, and {key} is {size}: "
                    f"raise it, or leave loss.{name} out"
                )
        parts.append((name, float(weight), term))
    return Loss(parts)


def _build_term(name: str, target: Callable, arguments: dict[str, Any], channels: int) -> Callable:
    """(output, gt) → (B,); it has been tried on two small images."""
    import torch

    try:
        if inspect.isclass(target):
            term = target(**arguments)
        else:
            term = partial(target, **arguments)
            term.smallest_side = _smallest_side(target)
        side = max(8, _smallest_side(term))
        output = torch.zeros(2, channels, side, side, requires_grad=True)
        values = term(output, torch.zeros(2, channels, side, side))
    except UserError:
        raise
    except Exception as error:  # of a user's own loss, anything
        raise UserError(f"loss.{name}: cannot work with {arguments}: {describe_error(error)}") from error
    shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
    if shape != (2,):
        raise UserError(
            f"loss.{name}: gives {shape} for 2 samples, where one value per sample is needed, shape (2,); average over "
            "all dimensions but the first, as value.flatten(1).mean(1) does"
        )
    if not values.requires_grad:
        raise UserError(f"loss.{name}: has no gradient by the output, so nothing can be trained with it")
    return term


def _smallest_side(term: Callable) -> int:
    return getattr(term, "smallest_side", 1)


class Loss:
    """(output, gt) → (B,): the weighted sum of named terms."""

    def __init__(self, parts: list[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]]):
        self.parts = parts

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.parts]

    @property
    def smallest_side(self) -> int:
        """The least height and width, in pixels, of an image that all terms can judge."""
        return max(_smallest_side(term) for _, _, term in self.parts)

    def __call__(self, output: Tensor, gt: Tensor) -> Tensor:
        return sum(self.terms(output, gt).values())

    def terms(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """The weighted value (B,) of each term; in gt's precision where the output's is lower, also under autocast."""
        import torch

        output = output.to(torch.promote_types(output.dtype, gt.dtype))
        with torch.autocast(gt.device.type, enabled=False):
            return {name: weight * term(output, gt) for name, weight, term in self.parts}
