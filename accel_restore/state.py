"""The state of a training run, its validation scores, and the callback that observes the loop."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accel_restore.optim.adversary import Adversary
    from accel_restore.optim.ema import Average


@dataclass(frozen=True)
class Scores:
    """Mean scores of one validation. The network's gain is `metrics` compared with `input_metrics`.

    With several sets, they are means over the sets' means.
    """

    loss: float
    metrics: dict[str, float]
    input_metrics: dict[str, float]
    terms: dict[str, float]  # of the loss, where it has several
    sets: dict[str, "Scores"] = field(default_factory=dict)  # of each set that has a name

    def flat(self) -> dict[str, float | None]:
        """All scores in one mapping, as files record them: `loss`, `psnr`, `input_psnr`, `term_l1`, …

        Those of the input are None if it has other channels than gt, so that no metric compares them.
        """
        inputs = {f"input_{name}": self.input_metrics.get(name) for name in self.metrics}
        return {
            "loss": self.loss,
            **self.metrics,
            **inputs,
            **{f"term_{name}": value for name, value in self.terms.items()},
        }

    def record(self) -> dict[str, Any]:
        """Return the scores as they are kept for the best weights: `flat`, and those of each named set in `sets`."""
        return self.flat() | ({"sets": {name: one.flat() for name, one in self.sets.items()}} if self.sets else {})

    def find(self, name: str) -> tuple["Scores", str]:
        """Return the scores that a value of `validation.monitor` is about, and its score: psnr, or set5.psnr."""
        set_name, _, score = name.partition(".")
        if name not in ("loss", *self.metrics) and set_name in self.sets:  # an import path has dots, too
            return self.sets[set_name], score
        return self, name


@dataclass(frozen=True)
class EpochRecord:
    """The results of one epoch."""

    epoch: int  # counted from 0
    step: int
    train_loss: float
    lr: float  # used in this epoch
    scores: Scores | None  # None where this epoch was not validated
    is_best: bool
    optimizer_steps: int  # of this epoch


class Callback:
    """Observes the loop. A subclass defines the methods that it needs.

    Methods are called on every rank, in the order of the list in `trainer/run_callbacks.py: make_callbacks`;
    `on_validation_image` only on the rank that scores the image. Callbacks read the state. They may call `state.stop`,
    and change nothing else.
    """

    def on_step(self, state: "TrainState") -> None:
        """Run after an optimizer step, also a skipped one. The gradients are still there, already clipped."""

    def on_validation_start(self, state: "TrainState") -> None:
        """Run before a validation."""

    def on_validation_image(self, state: "TrainState", index: int, input: Tensor, output: Tensor, gt: Tensor) -> None:
        """Run for each validation image that this rank scores.

        Shapes: each (1, C, H, W) in [0, 1]; for super-resolution the input is enlarged to the size of gt.
        """

    def on_validation(self, state: "TrainState") -> None:
        """Run after a validation, before `scheduler.step()`."""

    def on_best(self, state: "TrainState") -> None:
        """Run when the monitored value is the best so far, after `scheduler.step()` and best.safetensors."""

    def on_epoch(self, state: "TrainState", record: EpochRecord) -> None:
        """Run at the end of an epoch, after validation and `scheduler.step()`."""

    def on_exit(self, state: "TrainState", error: BaseException | None) -> None:
        """Run once when training ends; `error` is what ended it early, if anything."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a commit keeps of this callback: JSON values. The main process's is kept."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned at the commit that the run continues from; called on every rank."""


@dataclass(frozen=True)
class MicroBatchLosses:
    """The losses of one micro-batch on this rank. They stay on the device."""

    losses: Tensor  # (B,)
    sums: Tensor  # float64, over real samples with a finite loss; see `sum_names`


@dataclass
class TrainState:
    """What the loop changes: weights, optimizer, schedule, counters."""

    model: nn.Module
    optimizer: Any  # Accelerate's wrapper around a torch optimizer
    scheduler: Any  # Accelerate's wrapper around a torch schedule
    epochs: int  # the run ends after this many; fewer than configured once it is stopped early
    epoch_sums: Tensor  # float64: this rank's sums of `MicroBatchLosses.sums` over the current epoch
    ema: "Average | None" = None
    full_copy: nn.Module | None = None  # with FSDP2, where weights are sharded: the whole model, filled to validate it
    epoch: int = 0  # epochs completed
    epoch_step: int = 0  # optimizer steps completed in the current epoch
    step: int = 0  # optimizer steps completed
    best_val_loss: float = math.inf  # the monitored value, lower is better (a metric that is higher-better is negated)
    best: dict[str, Any] | None = None  # epoch, step and scores of the best weights
    skipped_in_row: int = 0  # consecutive steps, up to the last, skipped for a non-finite gradient
    grad_norm: Tensor | None = None  # of the last step, before clipping
    micro_batches: list[MicroBatchLosses] = field(default_factory=list)  # of the last step
    terms: tuple[str, ...] = ()  # names of the loss's terms, where it has several
    judged: tuple[str, ...] = ()  # names of what a discriminator says of each sample
    sets: tuple[str, ...] = ()  # names of the training sets, where there are several
    adversary: "Adversary | None" = None  # the discriminator, with adversarial training
    stop_reason: str | None = None  # why the run ends early; see `stop`

    def stop(self, reason: str) -> None:
        """End the run as finished after the current epoch, on all ranks. One rank may ask alone."""
        self.stop_reason = self.stop_reason or reason

    @property
    def networks(self) -> list[Any]:
        """What is trained: this, with its model, and the discriminator, if there is one. Both have equal attributes."""
        return [self] if self.adversary is None else [self, self.adversary]

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """The names of the terms of validation's loss, which has no discriminator, if there are several."""
        names = tuple(name for name in self.terms if self.adversary is None or name != "adversarial")
        return names if len(names) > 1 else ()

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter group."""
        return self.optimizer.param_groups[0]["lr"]

    def count(self, losses: Tensor, terms: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Record the losses (B,) of a micro-batch. Everything stays on the device, so nothing is waited for."""
        losses = losses.detach()
        ones = torch.ones_like(losses)
        counted = (batch["weight"] > 0) & losses.isfinite()
        columns = [losses, ones, *(terms[name].detach() for name in (*self.terms, *self.judged))]
        for index in range(len(self.sets)):
            of_set = batch["set"] == index
            columns += [torch.where(of_set, losses, 0.0), torch.where(of_set, ones, 0.0)]
        sums = torch.stack([torch.where(counted, column, 0.0).sum(dtype=torch.float64) for column in columns])
        self.micro_batches.append(MicroBatchLosses(losses, sums))
        self.epoch_sums += sums


def sum_names(terms: tuple[str, ...], judged: tuple[str, ...], sets: tuple[str, ...]) -> list[str]:
    """Return the names of the sums that are kept, in their order."""
    return ["loss", "samples", *terms, *judged, *(f"{what} of {name}" for name in sets for what in ("loss", "samples"))]
