"""The callback that reports steps with a non-finite gradient, and ends a run that has diverged."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.data.loader import TrainLoader
from accel_restore.errors import DivergedError
from accel_restore.losses import Loss
from accel_restore.models.compile import force_eager
from accel_restore.models.parameters import unwrapped
from accel_restore.state import Callback, EpochRecord, TrainState
from accel_restore.utils.redaction import redacted

_LOGGED = 20  # skipped steps that are logged to the console; metrics.jsonl holds all of them
_FILES = 8  # files of one step that are named


class NaNMonitor(Callback):
    """Reports what made a gradient non-finite. The engine skips such steps.

    Ends the run after `limit` of them in a row, or when the last step was skipped and validation is not finite. Steps
    that are skipped because fp16 searches for its scale are not reported.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        loader: TrainLoader,
        loss_fn: Loss,
        limit: int,
        record: Callable[[dict[str, Any]], None],
        log: Callable[[str], None],
    ):
        """`record` takes a line for metrics.jsonl."""
        self.accelerator, self.loader, self.loss_fn, self.limit = accelerator, loader, loss_fn, limit
        self.record, self.log = record, log
        self.num_logged = 0

    def on_step(self, state: TrainState) -> None:
        if not state.skipped_in_row:  # equal on all ranks
            return
        found = [rank for rank in gather_object([self._find(state)]) if rank["files"]]
        failed = [network for network in state.networks if not network.grad_norm.isfinite()]
        if not found and all(self._searches(network) for network in failed):
            return  # fp16 searches for its scale: nothing is wrong
        where = f"epoch {state.epoch + 1}, step {state.step}"
        reasons = [
            f"loss {', '.join(rank['terms'])} on rank {rank['rank']} of {', '.join(rank['files'])}" for rank in found
        ]
        of = "the gradient" if any(network is state for network in failed) else "the discriminator's gradient"
        reason = "; ".join(reasons) or f"{of}, though all losses of the model are finite"
        line = {"event": "skip", "epoch": state.epoch, "step": state.step, "in_row": state.skipped_in_row, "of": found}
        if self.accelerator.is_main_process:
            self.record(redacted(line))
        self.num_logged += 1
        if self.num_logged <= _LOGGED:
            more = "; later ones are recorded in metrics.jsonl only" if self.num_logged == _LOGGED else ""
            self.log(f"{where}: NaN or inf in {reason}; the step is skipped{more}")
        if state.skipped_in_row >= self.limit:
            raise DivergedError(where, f"{state.skipped_in_row} consecutive steps were skipped, the last for {reason}")

    def _searches(self, network: Any) -> bool:
        """Return whether fp16 may still find a scale with which the network's gradient is finite."""
        scaler = getattr(network, "accelerator", self.accelerator).scaler
        return scaler is not None and scaler.get_scale() > 1

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        if state.skipped_in_row and record.scores is not None and not math.isfinite(record.scores.loss):
            raise DivergedError(f"epoch {record.epoch + 1}", "the last step and the validation gave NaN or inf")

    def _find(self, state: TrainState) -> dict[str, Any]:
        """The files of this rank whose loss is not finite, and the terms of the loss that are not."""
        samples = chain.from_iterable(self.loader.samples(state.epoch, state.epoch_step - 1))
        finite = chain.from_iterable(batch.losses.isfinite().tolist() for batch in state.micro_batches)
        bad = [sample for sample, fine in zip(samples, finite, strict=True) if sample.weight and not fine]
        files = self.loader.dataset.files_of(bad)
        more = [f"{len(files) - _FILES} more"] if len(files) > _FILES else []
        terms = self._terms(state) if files else []
        return {"rank": self.accelerator.process_index, "files": files[:_FILES] + more, "terms": terms}

    @torch.no_grad()
    def _terms(self, state: TrainState) -> list[str]:
        """Compute the step again and return the terms that are not finite.

        The step was skipped, so the weights are the same.
        A model's own buffers (batch statistics) and torch's random state stay as they are.
        """
        if self.accelerator.is_fsdp2:
            return ["(not computed again: other ranks hold the weights)"]
        model = unwrapped(state.model)
        names: list[str] = []
        buffers = [buffer.clone() for buffer in model.buffers()]
        with torch.random.fork_rng():
            for batch in self.loader.again(state.epoch, state.epoch_step - 1):
                with self.accelerator.autocast(), force_eager():
                    output = model.forward(batch["input"])
                terms = self.loss_fn.terms(output, batch["gt"])
                names += [name for name, values in terms.items() if not values.isfinite().all()]
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        if not names and state.adversary is not None and state.adversary.is_active:
            return ["adversarial"]  # the one term that is not computed again
        return list(dict.fromkeys(names)) or ["(finite when computed again)"]
