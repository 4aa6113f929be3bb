"""Adversarial training: the model is the generator, and a second network, the discriminator, judges its output.

    every epoch   as without a discriminator, and the discriminator's scheduler.step()
    every batch   zero_grad of both → output = model(input)
                  → the generator's loss, with the adversarial term, in which the discriminator is fixed → backward
                  → the discriminator's loss on gt and on the detached output → backward
                  → optimizer.step() of the generator → optimizer.step() of the discriminator

The discriminator's losses are per sample and weighted like the generator's, so a step is the same on any number of
ranks and for any accumulation. Source: Goodfellow et al., Generative adversarial nets, 2014.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_restore.config.adversarial import Adversarial
from accel_restore.config.schema import Config
from accel_restore.distributed import fsdp
from accel_restore.distributed.accelerator import second_accelerator
from accel_restore.distributed.collective import warm_up_ddp_buckets
from accel_restore.errors import UserError
from accel_restore.losses import Loss
from accel_restore.losses.adversarial import Objective, logit_mean, r1
from accel_restore.models.build_discriminator import build_discriminator, load_discriminator
from accel_restore.models.compile import compile_blocks
from accel_restore.models.parameters import unwrapped
from accel_restore.models.spectral_norm import power_iteration
from accel_restore.optim import get_optimizer, gradient_norm, propagate_nan, step_unless
from accel_restore.optim.schedules import get_scheduler
from accel_restore.state import TrainState

# What is recorded of each sample: the loss, the mean logits of gt and output, the share of logits that are on the right
# side, and the adversarial term's share of the gradient at the output. `d_samples` and `g_samples` count the samples
# that have these values.
COLUMNS = ("d_loss", "d_real", "d_fake", "d_accuracy", "d_samples", "g_share", "g_samples")


@dataclass
class Adversary:
    """The discriminator: its weights, and what changes them. The attributes have the names of `TrainState`'s."""

    config: Adversarial
    model: nn.Module
    optimizer: Any  # Accelerate's wrapper around a torch optimizer
    scheduler: Any  # Accelerate's wrapper around a torch schedule
    accelerator: Accelerator  # of its own: with fp16, each network has its own scale
    plain_forward: Callable[[Tensor], Tensor]  # without autocast
    grad_norm: Tensor | None = None  # of the last step, before clipping
    is_active: bool = False  # in this epoch
    step_number: int = 0  # of the run, counted from 0
    _right: Tensor = field(default_factory=lambda: torch.zeros(2))  # in this step: sum of accuracies, samples
    _gradients: dict[str, Tensor] = field(default_factory=dict)  # norms at the output, of the last micro-batch

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter group."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def module(self) -> nn.Module:
        """The discriminator without wrappers."""
        return unwrapped(self.model)

    @property
    def objective(self) -> Objective:
        """What both networks minimise."""
        return Objective(self.config.loss)

    @property
    def trains_generator(self) -> bool:
        """Whether the generator is stepped in this step."""
        return not self.is_active or (self.step_number + 1) % self.config.generator_every == 0

    @property
    def trains_discriminator(self) -> bool:
        """Whether the discriminator is stepped in this step."""
        return self.is_active and (self.step_number + 1) % self.config.discriminator_every == 0

    @property
    def is_penalized(self) -> bool:
        """Whether R1 is computed: in every `r1_every`-th step of the discriminator, from its first one on."""
        judged = self.step_number // self.config.discriminator_every
        return self.config.r1 > 0 and self.trains_discriminator and judged % self.config.r1_every == 0

    def start_step(self, epoch: int, step: int) -> None:
        """Begin a step of the run; `epoch` and `step` count from 0."""
        self.is_active, self.step_number = epoch >= self.config.starts_at_epoch, step
        self._right = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)

    def terms(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """Return the generator's adversarial term (B,), weighted; zeros before the discriminator starts.

        Shapes: output and gt (B, C, H, W).
        """
        if not self.is_active:
            return {"adversarial": gt.new_zeros(len(gt))}
        self._gradients.clear()
        fake = output.view_as(output)  # its gradient comes from this term alone
        for name, image in {"term": fake, "all": output}.items():
            if image.requires_grad:
                image.register_hook(lambda gradient, name=name: self._note(name, gradient))
        with fixed(self.module):
            real = self.module(gt) if self.objective.is_relativistic else None
            term = self.objective.generator(self.module(fake), real)
        return {"adversarial": self.config.weight * term}

    def _note(self, name: str, gradient: Tensor) -> None:
        self._gradients[name] = gradient.detach().flatten(1).double().norm(dim=1)

    def backward(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Add the gradient of the discriminator's loss; return what is recorded of each sample, (B,) each.

        `output` (B, C, H, W) is detached from the generator. As for the generator, each sample's loss is weighted, and
        ranks exchange gradients with the last micro-batch.
        """
        gt = batch["gt"]
        zeros = gt.new_zeros(len(gt))
        columns = dict.fromkeys(COLUMNS, zeros)
        if not self.is_active:
            return columns
        is_due = self.trains_discriminator
        exchanges = nullcontext() if batch["is_last"] and is_due else self.accelerator.no_sync(self.model)
        with exchanges, torch.set_grad_enabled(is_due):
            real, fake = self.model(gt), self.model(output)
            losses = penalized = self.objective.discriminator(real, fake)
            if self.is_penalized:
                penalized = losses + self.config.r1 * self.config.r1_every * r1(self.plain_forward, gt)
            if is_due:
                self.accelerator.backward(propagate_nan((penalized * batch["weight"]).sum()))
        accuracy, is_sample = self.objective.accuracy(real, fake), batch["weight"] > 0
        self._right += torch.stack([accuracy.double()[is_sample].sum(), is_sample.double().sum()])
        columns |= {"d_loss": losses.detach(), "d_real": logit_mean(real), "d_fake": logit_mean(fake)}
        columns |= {"d_accuracy": accuracy, "d_samples": torch.ones_like(zeros)}
        if self._gradients:
            whole = self._gradients["all"].clamp_min(torch.finfo(torch.float64).tiny)
            share = self._gradients.get("term", torch.zeros_like(whole)) / whole
            columns |= {"g_share": share, "g_samples": torch.ones_like(zeros)}
        return columns

    def step(self, is_finite: Tensor) -> None:
        """Step the discriminator if it is due and, as `is_finite` says, the gradients of both networks are finite."""
        if not self.trains_discriminator:
            return
        may_step = is_finite
        if self.config.skip_above is not None:
            right, samples = self.accelerator.reduce(self._right, reduction="sum")
            may_step = may_step & (right <= self.config.skip_above * samples)
        if step_unless(~may_step, self.optimizer, self.accelerator):
            power_iteration(self.module)  # per step, not per forward: a step may have several


def adversarial_step(
    state: TrainState,
    micro_batches: Iterable[dict],
    loss_fn: Loss,
    accelerator: Accelerator,
    max_grad_norm: float | None,
) -> bool:
    """Make one step of both networks, or skip both; return whether the gradients of both were finite."""
    generator, discriminator = state, state.adversary
    assert discriminator is not None
    generator.optimizer.zero_grad()
    discriminator.optimizer.zero_grad()
    state.micro_batches.clear()
    discriminator.start_step(state.epoch, state.step)
    for batch in micro_batches:
        # Ranks exchange gradients with the last micro-batch. A forward without a backward must not prepare for it.
        is_due = discriminator.trains_generator
        exchanges = nullcontext() if batch["is_last"] and is_due else accelerator.no_sync(generator.model)
        with exchanges, torch.set_grad_enabled(is_due):
            output = generator.model(batch["input"])
            terms = loss_fn.terms(output, batch["gt"]) | discriminator.terms(output, batch["gt"])
            losses = reduce(add, terms.values())
            loss = (losses * batch["weight"]).sum()
            if is_due:
                accelerator.backward(propagate_nan(loss))
        seen = discriminator.backward(output.detach(), batch)
        state.count(losses, terms | seen, batch)
    generator.grad_norm = gradient_norm(generator.model, accelerator, max_grad_norm)
    discriminator.grad_norm = gradient_norm(discriminator.model, discriminator.accelerator, max_grad_norm)
    is_finite = generator.grad_norm.isfinite() & discriminator.grad_norm.isfinite()  # same on all ranks
    if discriminator.trains_generator:
        was_made = step_unless(~is_finite, generator.optimizer, accelerator)  # the only place where weights change
        if state.ema is not None and was_made:
            state.ema.update(unwrapped(state.model))
    discriminator.step(is_finite)  # the only place where the discriminator's weights change
    return bool(is_finite)


@contextmanager
def fixed(module: nn.Module) -> Iterator[None]:
    """Let the parameters of a module take no gradient in this context."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def setup_adversary(config: Config, accelerator: Accelerator, epochs: int) -> Adversary | None:
    """Return the discriminator at epoch 0, prepared for this rank's device; None without the section `adversarial`."""
    if config.adversarial is None:
        return None
    own = second_accelerator(accelerator)
    model = initial_discriminator(config).to(accelerator.device).train()
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    compile_blocks(model, config.train.compile)
    fused = accelerator.device.type in ("cpu", "cuda") and accelerator.mixed_precision != "fp16"
    optimizer = get_optimizer(model, config.adversarial.optimizer, fused)
    scheduler = get_scheduler(optimizer, config.adversarial.scheduler, epochs)
    optimizer._opt_called = True  # type: ignore[attr-defined]  # no warning if the schedule steps before it starts
    plain_forward = model.forward  # Accelerate replaces it
    model, optimizer, scheduler = fsdp.prepare(model, optimizer, scheduler, None, own)
    size = config.data.patch_size
    warm_up_ddp_buckets(model, (config.data.channels, size, size), own)
    return Adversary(config.adversarial, model, optimizer, scheduler, own, plain_forward)


def initial_discriminator(config: Config) -> nn.Module:
    """Return the discriminator of step 0: new weights, or those of `adversarial.discriminator.checkpoint`.

    The state of torch's random number generator does not change.
    """
    assert config.adversarial is not None
    section, data = config.adversarial.discriminator, config.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        model = build_discriminator(section.name, section.arguments, data.channels, data.patch_sizes)
    if section.checkpoint is not None:
        path = Path(section.checkpoint).expanduser()
        try:
            load_discriminator(model, path)
        except UserError as error:
            raise UserError(f"adversarial.discriminator.checkpoint: {path!s:.500}: {error}") from error.__cause__
    return model
