"""Losses: each takes output and gt of shape (B, C, H, W) and returns one value per sample, shape (B,).

Keyword parameters are configuration: `loss: {charbonnier: {weight: 1.0, eps: 0.001}}`. Values per sample, not a mean of
the batch, are what lets the engine average exactly over ranks, micro-batches and a ragged last batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accel_restore.errors import UserError
from accel_restore.naming import check_arguments, resolve

if TYPE_CHECKING:  # the names are checked before torch is imported
    from torch import Tensor

LossFunction = Callable[["Tensor", "Tensor"], "Tensor"]  # (output, gt) → (B,)


def l1(output: Tensor, gt: Tensor) -> Tensor:
    """The mean absolute error of each sample."""
    return (output - gt).abs().flatten(1).mean(1)


def mse(output: Tensor, gt: Tensor) -> Tensor:
    """The mean squared error of each sample."""
    return (output - gt).square().flatten(1).mean(1)


def charbonnier(output: Tensor, gt: Tensor, *, eps: float = 1e-3) -> Tensor:
    """The mean of sqrt(error² + eps²) of each sample: l1 that is smooth around zero.

    Source: Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed imaging", 1994;
    eps = 1e-3 as in Lai et al., LapSRN, 2017.
    """
    return ((output - gt).square() + eps**2).sqrt().flatten(1).mean(1)


LOSSES = {"l1": l1, "mse": mse, "charbonnier": charbonnier}


def build_loss(terms: dict[str, float | dict[str, Any]]) -> Loss:
    """The weighted sum of the configured terms.

    Raises: UserError for arguments that a term does not have.
    """
    import torch

    parts = []
    for name, setting in terms.items():
        arguments = dict(setting) if isinstance(setting, dict) else {"weight": setting}
        weight = arguments.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise UserError(f"loss.{name}.weight: must be a number above 0, not {weight!r}")
        function = resolve(name, LOSSES, "loss")
        check_arguments(function, arguments, f"loss.{name}", skip=("output", "gt"))
        try:  # on a small image, for the arguments' values
            function(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"loss.{name}: cannot work with {arguments}: {error}") from error
        parts.append((name, float(weight), function, arguments))

    return Loss(parts)


class Loss:
    """(output, gt) → (B,): the weighted sum of named terms."""

    def __init__(self, parts: list[tuple[str, float, Callable, dict[str, Any]]]):
        self.parts = parts

    def __call__(self, output: Tensor, gt: Tensor) -> Tensor:
        return sum(self.terms(output, gt).values())

    def terms(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """The weighted value (B,) of each term."""
        return {name: weight * function(output, gt, **given) for name, weight, function, given in self.parts}
