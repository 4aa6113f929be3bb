"""Convolutions divided by their spectral norm, whose estimate changes once per optimizer step.

The norm of a weight W is estimated as u · W v. One step of the power iteration moves the vectors u and v towards the
first singular vectors of W. `torch.nn.utils` iterates in every forward. The number of forwards depends on gradient
accumulation, so the run would too. Here a forward only reads the vectors. `power_iteration` moves them, and the
training loop calls it once per step. The vectors depend on weights alone, so they are equal on all ranks.

Source: Miyato et al., "Spectral normalization for generative adversarial networks", 2018.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from accel_restore.errors import UserError
from accel_restore.models.parameters import keep_in_eval

_FIRST = 15  # iterations of a new module, as in torch
_EPS = 1e-12  # added to norms, as in torch


class SpectralConv2d(nn.Module):
    """A convolution with the weight `weight_orig` / (`weight_u` · `weight_orig` `weight_v`).

    The gradient passes through the norm; u and v are constants. Names are those of `torch.nn.utils.spectral_norm`, so
    state dicts of BasicSR fit. Padding is with zeros. The norm is computed in the precision of the weight, also under
    autocast.

    Shapes: (B, in_features, H, W) to (B, out_features, H', W').
    """

    weight_u: Tensor  # (out_features,), of norm 1
    weight_v: Tensor  # (in_features * kernel²,), of norm 1

    def __init__(
        self, in_features: int, out_features: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        layer = nn.Conv2d(in_features, out_features, kernel, stride, padding, bias=bias)  # for its initial values
        self.stride, self.padding = stride, padding
        self.weight_orig, self.bias = layer.weight, layer.bias
        matrix = layer.weight.detach().flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn_like(matrix[:, 0]), dim=0, eps=_EPS))
        self.register_buffer("weight_v", F.normalize(torch.randn_like(matrix[0]), dim=0, eps=_EPS))
        for _ in range(_FIRST):
            self.iterate()

    def normalized_weight(self) -> Tensor:
        """Return the weight divided by the estimate of its spectral norm."""
        # DDP may write to buffers between a forward and its backward, so the graph holds copies of the vectors.
        u, v = self.weight_u.clone(), self.weight_v.clone()
        with torch.autocast(self.weight_orig.device.type, enabled=False):
            return self.weight_orig / torch.dot(u, torch.mv(self.weight_orig.flatten(1), v))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normalized_weight(), self.bias, self.stride, self.padding)

    @torch.no_grad()
    def iterate(self) -> None:
        """Take one step of the power iteration."""
        matrix = self.weight_orig.flatten(1)
        with torch.autocast(matrix.device.type, enabled=False):
            self.weight_v.copy_(F.normalize(torch.mv(matrix.t(), self.weight_u), dim=0, eps=_EPS))
            self.weight_u.copy_(F.normalize(torch.mv(matrix, self.weight_v), dim=0, eps=_EPS))

    def extra_repr(self) -> str:
        """Return the shape of the weight, for printing."""
        out_features, in_features, kernel, _ = self.weight_orig.shape
        return f"{in_features}, {out_features}, {kernel}, stride={self.stride}, padding={self.padding}"


@torch.no_grad()
def power_iteration(module: nn.Module) -> None:
    """Take one step of the power iteration in all layers of a module that have spectral norm.

    Call it once per optimizer step on every rank, never between a forward and its backward. It also serves layers with
    `torch.nn.utils.parametrizations.spectral_norm`, after `freeze_vectors`.
    """
    for part in module.modules():
        if isinstance(part, SpectralConv2d):
            part.iterate()
    for norm, weight in _torchs(module):
        with torch.autocast(weight.device.type, enabled=False):
            norm.training = True
            norm(weight)
            norm.training = False


def freeze_vectors(module: nn.Module) -> None:
    """Keep torch's spectral norms of a module in eval mode, so that their forwards only read the vectors.

    Raises: UserError for layers with the older `torch.nn.utils.spectral_norm`, whose mode is that of the layer.
    """
    for name, part in module.named_modules():
        if any(isinstance(hook, SpectralNorm) for hook in part._forward_pre_hooks.values()):
            raise UserError(
                f"its part '{name}' has torch.nn.utils.spectral_norm, which changes in every forward, so the run would "
                "depend on gradient accumulation; use torch.nn.utils.parametrizations.spectral_norm"
            )
    for norm, _ in _torchs(module):
        keep_in_eval(norm)


def _torchs(module: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Provide each of torch's spectral norms in a module, with the weight that it divides."""
    for part in module.modules():
        holder: Any = part
        for chain in holder.parametrizations.values() if parametrize.is_parametrized(part) else ():
            steps: list[Any] = list(chain)
            place = next((i for i, step in enumerate(steps) if isinstance(step, _SpectralNorm)), None)
            if place is not None:
                weight = chain.original
                for step in steps[:place]:
                    weight = step(weight)
                yield steps[place], weight
