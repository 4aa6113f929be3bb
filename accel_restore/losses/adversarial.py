"""What a discriminator's logits cost: the terms of the generator and of the discriminator, and the penalty R1.

Shapes: logits (B, ...) of gt (`real`) and of the output (`fake`), to one value per sample, (B,): the mean over its
        logits. As with other losses, the training loop averages these values exactly over ranks, micro-batches and
        ragged batches.

| Name | Discriminator, real + fake | Generator | Source |
|---|---|---|---|
| `vanilla` | softplus(-real) + softplus(fake) | softplus(-fake) | Goodfellow et al. 2014, non-saturating |
| `lsgan` | (real - 1)² + fake² | (fake - 1)² | Mao et al. 2017 |
| `hinge` | relu(1 - real) + relu(1 + fake) | -fake | Lim and Ye 2017; Miyato et al. 2018 |
| `wgan` | -real + fake | -fake | Arjovsky et al. 2017, with R1 in place of clipped weights |
| `relativistic` | half of `vanilla` of real - mean(fake), fake - mean(real) | real and fake swapped | ESRGAN, 2018 |

A relativistic loss compares each logit with the mean of the paired image's logits; its gradient passes through the mean
too. The papers take the mean over a batch, so that their loss depends on how a batch is divided. Here each pair is
compared with itself alone. Where a network gives one logit per image, this is the papers' relativistic paired loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_restore.models.compile import force_eager
from accel_restore.utils.imports import unknown_choice

NAMES = ("vanilla", "lsgan", "hinge", "wgan", "relativistic")


@dataclass(frozen=True)
class Objective:
    """An adversarial loss. Logits of lower precision are converted to float32.

    Raises: ValueError for an unknown name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(unknown_choice(self.name, NAMES))

    @property
    def is_relativistic(self) -> bool:
        """Whether the logits of gt and output are compared."""
        return self.name == "relativistic"

    @property
    def chance(self) -> float:
        """The lowest loss of a discriminator that gives gt and output the same logit; with WGAN, 0."""
        same = torch.full((1, 1), 0.5 if self.name == "lsgan" else 0.0)
        return self.discriminator(same, same).item()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the generator's term (B,). It has a gradient with respect to `fake` alone."""
        fake = _at_least_float32(fake)
        if not self.is_relativistic:
            return _mean(-fake if self.name in ("hinge", "wgan") else self._target(fake, True))
        if real is None:
            raise ValueError("a relativistic objective compares with the logits of gt; give real too")
        return self._relative(fake, _at_least_float32(real).detach())

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's loss (B,)."""
        real, fake = _at_least_float32(real), _at_least_float32(fake)
        if self.is_relativistic:
            return self._relative(real, fake)
        return _mean(self._target(real, True)) + _mean(self._target(fake, False))

    def _relative(self, upper: Tensor, lower: Tensor) -> Tensor:
        """Return the relativistic loss (B,) of a network that wants `upper` to be above `lower`."""
        above = self._target(upper - _spread(lower), True)
        below = self._target(lower - _spread(upper), False)
        return (_mean(above) + _mean(below)) / 2

    @torch.no_grad()
    def accuracy(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return which share of each sample's logits is on the right side, (B,); 0.5 is guessing.

        The border is 0, for `lsgan` 0.5, and for a relativistic objective the mean of the other image's logits. The
        logits of `wgan` have no border: those of gt are compared with those of the output at the same place.
        """
        real, fake = _at_least_float32(real), _at_least_float32(fake)
        if self.name == "wgan":
            return _mean((real > fake).to(real.dtype))
        if self.is_relativistic:
            right = real > _spread(fake), fake < _spread(real)
        else:
            border = 0.5 if self.name == "lsgan" else 0.0
            right = real > border, fake < border
        return (_mean(right[0].to(real.dtype)) + _mean(right[1].to(real.dtype))) / 2

    def _target(self, logits: Tensor, is_real: bool) -> Tensor:
        """Return the cost of each logit, elementwise, if it should show gt (`is_real`) or an output."""
        if self.name == "lsgan":
            return (logits - float(is_real)).square()
        signed = -logits if is_real else logits
        if self.name == "wgan":
            return signed
        return F.relu(1 + signed) if self.name == "hinge" else F.softplus(signed)


def r1(discriminator: Callable[[Tensor], Tensor], gt: Tensor) -> Tensor:
    """Return the penalty R1 of each sample, (B,): half the squared norm of the gradient of its mean logit.

    The gradient is taken with respect to gt, (B, C, H, W), and is part of the graph. It is computed without autocast
    and without compiled code, which has no second derivative. With batch norm, samples depend on each other.

    Source: Mescheder et al., "Which training methods for GANs do actually converge?", 2018.
    """
    gt = gt.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast(gt.device.type, enabled=False), force_eager():
        logits = _mean(discriminator(gt))
        (gradient,) = torch.autograd.grad(logits.sum(), gt, create_graph=True)
        return gradient.square().flatten(1).sum(1) / 2


def logit_mean(logits: Tensor) -> Tensor:
    """Return the mean logit of each sample, (B,), without gradient."""
    return _mean(_at_least_float32(logits).detach())


def _mean(values: Tensor) -> Tensor:
    """Return the mean of each sample, (B,)."""
    return values.reshape(len(values), -1).mean(1)


def _spread(logits: Tensor) -> Tensor:
    """Return the mean of each sample, with the dimensions of `logits`."""
    return _mean(logits).reshape(-1, *[1] * (logits.dim() - 1))


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
