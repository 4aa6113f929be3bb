"""What a discriminator's logits cost: the terms of the generator and of the discriminator, and the penalty R1.

Shapes: logits (B, ...) of gt (`real`) and of the output (`fake`), to one value per sample, (B,): the mean over its
        logits. As with other losses, the training loop averages these values exactly over ranks, micro-batches and
        ragged batches.

| Name | Discriminator: real + fake | Generator | Source |
|---|---|---|---|
| `vanilla` | softplus(-real) + softplus(fake) | softplus(-fake) | Goodfellow et al. 2014, non-saturating |
| `lsgan` | (real - 1)² + fake² | (fake - 1)² | Mao et al. 2017 |
| `hinge` | relu(1 - real) + relu(1 + fake) | -fake | Lim and Ye 2017; Miyato et al. 2018 |
| `wgan` | -real + fake | -fake | Arjovsky et al. 2017; R1 takes the place of clipped weights |

`relativistic` is the relativistic average of `vanilla` (Jolicoeur-Martineau 2018), as in ESRGAN (Wang et al. 2018): the
discriminator's loss is half of that of real - mean(fake) and fake - mean(real), the generator's is the same with real
and fake swapped. The halves are those of the authors' code; the paper has the sum.

A relativistic average compares each logit with a mean over all samples of an optimizer step, on all ranks. Its gradient
passes through the means too. `Objective.statistics` has what makes that exact, however the step is divided.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_restore.utils.imports import unknown_choice

NAMES = ("vanilla", "lsgan", "hinge", "wgan", "relativistic")
_RELATIVE = ("vanilla", "lsgan", "relativistic")


class Statistics(NamedTuple):
    """What a relativistic objective takes from all samples of a step: scalars, equal on all ranks.

    `real` and `fake` are the mean logits. The others are derivatives with respect to them: `d_real` and `d_fake` of the
    discriminator's loss, `g_fake` of the generator's.
    """

    real: Tensor
    fake: Tensor
    d_real: Tensor
    d_fake: Tensor
    g_fake: Tensor


@dataclass(frozen=True)
class Objective:
    """An adversarial loss. `relativistic` turns `vanilla` or `lsgan` into a relativistic average.

    Logits of lower precision are converted to float32. Methods that need `Statistics` raise ValueError without it.

    Raises: ValueError for an unknown name, and for a relativistic average of another loss.
    """

    name: str
    relativistic: bool = False

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(unknown_choice(self.name, NAMES))
        if self.relativistic and self.name not in _RELATIVE:
            raise ValueError(f"relativistic is for the losses vanilla and lsgan, not for {self.name}")

    @property
    def is_relativistic(self) -> bool:
        """Whether the terms need `Statistics`."""
        return self.relativistic or self.name == "relativistic"

    def generator(self, fake: Tensor, real: Tensor | None = None, statistics: Statistics | None = None) -> Tensor:
        """Return the generator's term (B,). It has a gradient with respect to `fake` alone."""
        fake = _at_least_float32(fake)
        if not self.is_relativistic:
            return _mean(-fake if self.name in ("hinge", "wgan") else self._target(fake, True))
        if real is None:
            raise ValueError("a relativistic objective compares with the logits of gt; give real too")
        means = self._require(statistics)
        real = _at_least_float32(real).detach()
        of_fake, of_real = self._target(fake - means.real, True), self._target(real - means.fake, False)
        return (_mean(of_fake) + _mean(of_real)) / 2 + means.g_fake * _without_value(fake)

    def discriminator(self, real: Tensor, fake: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Return the discriminator's loss (B,): the sum of `real_term` and `fake_term`."""
        return self.real_term(real, statistics) + self.fake_term(fake, statistics)

    def real_term(self, real: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Return the part (B,) of the discriminator's loss that depends on the logits of gt."""
        real = _at_least_float32(real)
        if not self.is_relativistic:
            return _mean(self._target(real, True))
        means = self._require(statistics)
        return _mean(self._target(real - means.fake, True)) / 2 + means.d_real * _without_value(real)

    def fake_term(self, fake: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Return the part (B,) of the discriminator's loss that depends on the logits of the output."""
        fake = _at_least_float32(fake)
        if not self.is_relativistic:
            return _mean(self._target(fake, False))
        means = self._require(statistics)
        return _mean(self._target(fake - means.real, False)) / 2 + means.d_fake * _without_value(fake)

    def statistics(self, pairs: Sequence[tuple[Tensor, Tensor]], average: Callable[[Tensor], Tensor]) -> Statistics:
        """Return what a relativistic objective needs of all samples of the step.

        `pairs` has the logits of gt and of the output for each micro-batch of this rank. They need no gradient.
        `average` maps values of this rank's samples, (n, K), to their mean (K,) over the samples of all ranks. It is
        called twice on every rank, with K = 2 and K = 3.
        """
        pairs = [(_at_least_float32(real).detach(), _at_least_float32(fake).detach()) for real, fake in pairs]
        means = average(_stack([(_mean(real), _mean(fake)) for real, fake in pairs], 2)).detach()
        slopes = average(_stack([self._slopes(real, fake, means) for real, fake in pairs], 3)).detach()
        return Statistics(means[0], means[1], slopes[0], slopes[1], slopes[2])

    @torch.no_grad()
    def accuracy(self, real: Tensor, fake: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Return which share of each sample's logits is on the right side, (B,); 0.5 is guessing.

        The border is 0, for `lsgan` 0.5, and for a relativistic objective the mean of the other logits. The logits of
        `wgan` have no border: those of gt are compared with those of the output at the same place.
        """
        real, fake = _at_least_float32(real), _at_least_float32(fake)
        if self.is_relativistic:
            means = self._require(statistics)
            right = real > means.fake, fake < means.real
        elif self.name == "wgan":
            return _mean((real > fake).to(real.dtype))
        else:
            border = 0.5 if self.name == "lsgan" else 0.0
            right = real > border, fake < border
        shares = [_mean(values.to(real.dtype)) for values in right]
        return (shares[0] + shares[1]) / 2

    def _target(self, logits: Tensor, is_real: bool) -> Tensor:
        """Return what logits cost the discriminator, elementwise, if they are of gt or not."""
        if self.name == "lsgan":
            return (logits - float(is_real)).square()
        signed = -logits if is_real else logits
        if self.name == "wgan":
            return signed
        return F.relu(1 + signed) if self.name == "hinge" else F.softplus(signed)

    def _slopes(self, real: Tensor, fake: Tensor, means: Tensor) -> tuple[Tensor, ...]:
        """Return each sample's derivatives, (B,): of the discriminator's loss with respect to the mean of the real and
        of the fake logits, and of the generator's with respect to the fake one.
        """
        with torch.enable_grad():
            shape = (len(real), *[1] * (real.dim() - 1))
            of_real, of_fake = (mean.expand(shape).clone().requires_grad_() for mean in means)
            d_loss = (_mean(self._target(real - of_fake, True)) + _mean(self._target(fake - of_real, False))) / 2
            d_real, d_fake = torch.autograd.grad(d_loss.sum(), (of_real, of_fake))
            g_loss = _mean(self._target(real - of_fake, False)) / 2
            (g_fake,) = torch.autograd.grad(g_loss.sum(), of_fake)
        return d_real.flatten(), d_fake.flatten(), g_fake.flatten()

    def _require(self, statistics: Statistics | None) -> Statistics:
        if statistics is None:
            raise ValueError("a relativistic objective needs the statistics of the whole step")
        return statistics


def r1(discriminator: Callable[[Tensor], Tensor], gt: Tensor) -> Tensor:
    """Return the penalty R1 of each sample, (B,): half the squared norm of the gradient of its mean logit.

    The gradient is taken with respect to gt, (B, C, H, W), and is part of the graph. It is computed without autocast
    and without compiled code, which has no second derivative. With batch norm, samples depend on each other.

    Source: Mescheder et al., "Which training methods for GANs do actually converge?", 2018.
    """
    gt = gt.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast(gt.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
        logits = _mean(discriminator(gt))
        (gradient,) = torch.autograd.grad(logits.sum(), gt, create_graph=True)
        return gradient.square().flatten(1).sum(1) / 2


def logit_mean(logits: Tensor) -> Tensor:
    """Return the mean logit of each sample, (B,), without gradient."""
    return _mean(_at_least_float32(logits).detach())


def _mean(values: Tensor) -> Tensor:
    """Return the mean of each sample, (B,)."""
    return values[:, None].flatten(1).mean(1)


def _stack(values: Sequence[tuple[Tensor, ...]], count: int) -> Tensor:
    """Return the values of all micro-batches as (n, count); without any, (0, count)."""
    if not values:
        return torch.zeros(0, count)
    return torch.cat([torch.stack(columns, 1) for columns in values])


def _without_value(logits: Tensor) -> Tensor:
    """Return zeros (B,) with the gradient of the mean of each sample's logits."""
    means = _mean(logits)
    return means - means.detach()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
