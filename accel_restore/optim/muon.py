"""Muon: AdamW, except that large kernels take steps of equal size in all directions."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from accel_restore.optim.eager import Eager

CHANNELS = 16  # kernels with fewer input or output channels are updated by AdamW
LONGEST = 9 * 64  # the longer side of a 3 x 3 kernel of 64 channels; the step size grows up to this side
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(Eager):
    """Muon for kernels and matrices with at least 16 input and output channels, AdamW for everything else.

    A kernel counts as a matrix: its first dimension times the product of the others. Its step is the momentum, made
    nearly orthogonal, times 0.2 * sqrt(longer side), with the longer side at most 576. Up to this side, the entries are
    as large as in AdamW's steps, so one learning rate and one weight decay serve both; in wider kernels they are
    smaller. AdamW updates everything else: layers with fewer than 16 input or output channels, usually the first and
    the last, depthwise kernels, norms and biases.

    Steps keep their size while gradients become small. Kernels therefore grow until the decay balances the steps, after
    about 1 / (lr * weight_decay) steps. With AdamW's usual decay of 0.01 that is longer than most runs, and a network
    without norms diverged on the way; with 0.3, the default, it did not (other values were not tried). The decay alone
    does not bound wide kernels, because the norm of steps with equal entries grows with the width: a network of 64 to
    256 channels diverged with 0.3, too. The limit on the longer side prevents that. See configs/experiments.md.

    Units: `momentum` is the decay of the average for kernels; `betas` and `eps` are AdamW's.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; step size and weight decay: Liu et al. 2025,
        "Muon is scalable for LLM training", with a decay of 0.1. Deviations: the limit on the longer side; the
        iteration uses the small matrix X X^T in float32, which takes a third of the products.
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
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # overloads
        """Update all parameters that have a gradient; return the loss of `closure` if it is given."""
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
        """Update kernels that are matrices of the same shape."""
        decay = group["momentum"]
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum_buffer"] = torch.zeros_like(kernel)
        averages = [self.state[kernel]["momentum_buffer"] for kernel in kernels]
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]  # each has one
        torch._foreach_lerp_(averages, gradients, 1 - decay)
        ahead = torch._foreach_lerp(gradients, averages, decay)  # Nesterov's momentum
        directions = orthogonal(torch.stack([matrix.flatten(1) for matrix in ahead]))
        size = 0.2 * min(max(directions.shape[1:]), LONGEST) ** 0.5
        torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
        steps = [direction.view_as(kernel) for direction, kernel in zip(directions, kernels, strict=True)]
        torch._foreach_add_(kernels, steps, alpha=-group["lr"] * size)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not (slot := self.state[parameter]):
                slot["step"] = torch.zeros((), dtype=torch.float32)
                slot["exp_avg"], slot["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        slots = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            grads=[parameter.grad for parameter in parameters if parameter.grad is not None],  # each has one
            exp_avgs=[slot["exp_avg"] for slot in slots],
            exp_avg_sqs=[slot["exp_avg_sq"] for slot in slots],
            max_exp_avg_sqs=[],
            state_steps=[slot["step"] for slot in slots],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_large(parameter: Tensor) -> bool:
    """Return whether a parameter is a kernel or matrix with at least 16 input and 16 output channels."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= CHANNELS


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return matrices with the same singular vectors, and with singular values of about 1 (0.7 to 1.2).

    This is the Newton-Schulz iteration X <- p(X X^T) X. Its factors commute, so X itself is needed only at the end, and
    each iteration takes four products of small matrices. Singular values below 1e-3 of the largest stay smaller.

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
