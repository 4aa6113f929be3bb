"""Muon: AdamW in which the large kernels take steps of equal size in all directions."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

CHANNELS = 16  # a kernel between fewer channels than these, on either side, is left to AdamW
LONGEST = 9 * 64  # the longer side of a 3 x 3 kernel of 64 channels, beyond which steps grow no larger
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Muon for kernels and matrices between at least 16 channels, AdamW for everything else.

    The step of a kernel, seen as a matrix of its first side times the others, is its momentum made (nearly) orthogonal,
    times 0.2 * sqrt(the longer side, at most 576): entries as large as those of AdamW's steps, so that one rate and one
    decay serve both, and smaller ones in wider kernels. Layers with fewer than 16 channels on a side, as the first and
    last mostly are, depthwise kernels, norms and biases are AdamW's.

    Steps keep their size while gradients become small, so kernels grow until decay holds them, which takes about
    1 / (lr * weight_decay) steps. With AdamW's usual 0.01 that is longer than most runs, and a network without norms
    broke down on the way; with 0.3, the default here, it did not (other decays were not tried). Decay alone does not
    hold wide kernels, as the norm of steps of equal entries grows with the width: a network of 64 to 256 channels broke
    down with 0.3, too. Hence the limit. Both are in configs/experiments.md.

    Units: `momentum` is the average's decay for kernels, `betas` and `eps` are AdamW's for the others.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; size of the step and weight decay: Liu et al.
        2025, "Muon is scalable for LLM training", where the decay is 0.1. Deviations: the limit of the longer side; the
        iteration is made on the small matrix X X^T, in float32, which takes a third of the products.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.001,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.3,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient; returns the loss of `closure` where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike, others = defaultdict(list), []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if is_large(parameter):
                    alike[parameter.flatten(1).shape, parameter.dtype, parameter.device].append(parameter)
                else:
                    others.append(parameter)
            for kernels in alike.values():
                self._step_orthogonally(kernels, group)
            if others:
                self._step_adamw(others, group)
        return loss

    def _step_orthogonally(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        """The step of kernels that are matrices of the same shape."""
        decay = group["momentum"]
        gradients = [kernel.grad for kernel in kernels]
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum_buffer"] = torch.zeros_like(kernel)
        averages = [self.state[kernel]["momentum_buffer"] for kernel in kernels]
        torch._foreach_lerp_(averages, gradients, 1 - decay)
        ahead = torch._foreach_lerp(gradients, averages, decay)  # Nesterov's momentum
        steps = orthogonal(torch.stack([matrix.flatten(1) for matrix in ahead]))
        size = 0.2 * min(max(steps.shape[1:]), LONGEST) ** 0.5
        torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
        steps = [step.view_as(kernel) for step, kernel in zip(steps, kernels, strict=True)]
        torch._foreach_add_(kernels, steps, alpha=-group["lr"] * size)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not (slots := self.state[parameter]):
                slots["step"] = torch.zeros((), dtype=torch.float32)
                slots["exp_avg"], slots["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        slots = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            *([slot[name] for slot in slots] for name in ("exp_avg", "exp_avg_sq")),
            [],
            [slot["step"] for slot in slots],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_large(parameter: Tensor) -> bool:
    """Whether a parameter is a kernel or matrix between at least 16 channels on both sides."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= CHANNELS


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices with the singular vectors of the given ones and singular values of about 1 (0.7 to 1.2).

    A Newton-Schulz iteration X <- p(X X^T) X. Its factors commute, so X itself is needed at the end alone, and each
    iteration is of four products of small matrices. Directions that are weaker than the strongest by 1e-3 and more stay
    smaller.

    Shapes: (N, H, W) to the same, in float32 or wider.
    Source: Jordan et al. 2024, with their quintic polynomial.
    """
    a, b, c = _QUINTIC
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    gram, product = x @ x.mT, torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    for _ in range(iterations):
        odd = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # the polynomial's factor is a I + odd
        product = torch.baddbmm(product, odd, product, beta=a)
        half = torch.baddbmm(gram, odd, gram, beta=a)
        gram = torch.baddbmm(half, half, odd, beta=a)
    return (product @ x).mT if tall else product @ x
