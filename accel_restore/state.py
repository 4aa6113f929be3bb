"""The state of a training run, and the callback that observes it."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accel_restore.optim.ema import Ema


class Callback:
    """What observes the loop; every method is called on every rank."""

    def on_step(self, state: "TrainState") -> None:
        """After an optimizer step, or one that was skipped; gradients are still there."""

    def on_validation(self, state: "TrainState") -> None:
        """After a validation, before `scheduler.step()`."""

    def on_epoch(self, state: "TrainState", record: dict[str, Any]) -> None:
        """After validation and `scheduler.step()`; `record` becomes the epoch's line in metrics.jsonl."""


@dataclass
class TrainState:
    """All that changes during training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: "Ema | None" = None
    plain: nn.Module | None = None  # with FSDP2, where weights are in parts: a whole copy, which validation fills
    epoch: int = 0  # epochs completed
    epoch_step: int = 0  # optimizer steps completed in the current epoch
    step: int = 0  # optimizer steps completed
    best_val_loss: float = math.inf  # the monitored value, lower is better (where a higher score is better: negated)
    best: dict[str, Any] | None = None  # epoch, step and scores of the best weights
    skipped_in_row: int = 0  # the last steps that were skipped, as their gradients were no numbers
    grad_norm: Tensor | None = None  # of the last step, before clipping
    losses: list[tuple[Any, Tensor]] = field(default_factory=list)  # of the last step's micro-batches: ids, losses (B,)
    terms: tuple[str, ...] = ()  # of the loss, where it has several: those that are logged by name
    # This rank's (sum of losses, number of samples, sum of each of `terms`): of the epoch, since the last logged line.
    epoch_sums: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    window_sums: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def count(self, losses: Tensor, terms: dict[str, Tensor], batch: dict) -> None:
        """Add the losses (B,) of real samples to the running sums; stays on the device, no synchronisation."""
        losses = losses.detach()
        self.losses.append((batch.get("id"), losses))
        counted = (batch["weight"] > 0) & losses.isfinite()
        columns = [losses, torch.ones_like(losses), *(terms[name].detach() for name in self.terms)]
        sums = torch.stack([torch.where(counted, column, 0.0).sum(dtype=torch.float64) for column in columns])
        self.epoch_sums += sums
        self.window_sums += sums
