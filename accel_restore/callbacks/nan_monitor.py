"""Hooks that end a run before it is spoilt: steps whose loss or gradient is no number, ranks whose weights differ."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.data.loader import TrainLoader
from accel_restore.errors import DivergedError
from accel_restore.losses import Loss
from accel_restore.state import Callback, TrainState
from accel_restore.utils.redaction import redacted

_TOLD = 20  # skipped steps that are told about on the screen; metrics.jsonl holds all
_FILES = 8  # files of one step that are named


class NaNMonitor(Callback):
    """Tells what made a gradient no number; ends the run after `limit` such steps in a row. The engine skips them."""

    def __init__(
        self,
        accelerator: Accelerator,
        loader: TrainLoader,
        loss_fn: Loss,
        files: Sequence[str],
        limit: int,
        record: Callable[[dict[str, Any]], None],
        log: Callable[[str], None],
    ):
        """`files` names each training image; `record` is given a line for metrics.jsonl, on the main process."""
        self.accelerator, self.loader, self.loss_fn, self.limit = accelerator, loader, loss_fn, limit
        self.files, self.record, self.log = files, record, log
        self.told = 0

    def on_step(self, state: TrainState) -> None:
        if not state.skipped_in_row:  # equal on all ranks
            return
        found = [rank for rank in gather_object([self._find(state)]) if rank["files"]]
        if self.accelerator.scaler is not None and not found and self.accelerator.scaler.get_scale() > 1:
            return  # fp16's search for its scale: nothing is wrong
        where = f"epoch {state.epoch + 1}, step {state.step}"
        reasons = [
            f"loss {', '.join(rank['terms'])} on rank {rank['rank']} of {', '.join(rank['files'])}" for rank in found
        ]
        reason = "; ".join(reasons) or "the gradient, of losses that are numbers"
        line = {"event": "skip", "epoch": state.epoch, "step": state.step, "in_row": state.skipped_in_row, "of": found}
        if self.accelerator.is_main_process:
            self.record(redacted(line))
        self.told += 1
        if self.told <= _TOLD:
            more = "; further ones stand in metrics.jsonl alone" if self.told == _TOLD else ""
            self.log(f"{where}: not a number: {reason}; the step is skipped{more}")
        if state.skipped_in_row >= self.limit:
            raise DivergedError(where, f"{state.skipped_in_row} steps in a row, the last by {reason}")

    def on_epoch(self, state: TrainState, record: dict[str, Any]) -> None:
        scores = record["scores"]
        if state.skipped_in_row and scores and not torch.tensor(scores["loss"]).isfinite():
            raise DivergedError(f"epoch {record['epoch'] + 1}", "neither its last step nor its validation gave one")

    def _find(self, state: TrainState) -> dict[str, Any]:
        """The files of this rank whose loss is no number, and which terms of the loss are none."""
        bad = [ids[(~losses.isfinite()).cpu().numpy()] for ids, losses in state.losses]
        own = np.array([i for those in bad for i in those if i >= 0], np.int64)
        partners = self.loader.stages.plan(state.epoch).partners(state.epoch, own)
        ids = [*own.tolist(), *partners[partners >= 0].tolist()]
        files = list(dict.fromkeys(self.files[i // self.loader.dataset.crops_per_image] for i in ids))
        more = [f"{len(files) - _FILES} more"] if len(files) > _FILES else []
        terms = self._terms(state) if files else []
        return {"rank": self.accelerator.process_index, "files": files[:_FILES] + more, "terms": terms}

    @torch.no_grad()
    def _terms(self, state: TrainState) -> list[str]:
        """The names of the loss's terms that are no numbers in this step, which is computed again: weights are equal.

        A model's own buffers (batch statistics) and torch's random state stay as they are.
        """
        if self.accelerator.is_fsdp2:
            return ["(not computed again: other ranks hold the weights)"]
        model, names = self.accelerator.unwrap_model(state.model), []
        buffers = [buffer.clone() for buffer in model.buffers()]
        with torch.random.fork_rng():
            for batch in self.loader.again(state.epoch, state.epoch_step - 1):
                with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                    output = model.forward(batch["input"])
                terms = self.loss_fn.terms(output, batch["gt"])
                names += [name for name, values in terms.items() if not values.isfinite().all()]
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        return list(dict.fromkeys(names)) or ["(a number when computed again)"]
