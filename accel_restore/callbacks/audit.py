"""`--audit`: the flow of weights, observed on a real run.

Every rank records each operation with a hash of all parameters after it. Weights may change only in `optimizer.step`,
the learning rate only in `scheduler.step`, once per epoch, and all ranks must hold the same weights. A skipped step is
a call that changes nothing (fused Adam and AdamW), or no call at all. With adversarial training, each network may
change only in calls of its own. A run without `--audit` executes none of this.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from accel_restore.data.loader import LoaderObserver, TrainLoader
from accel_restore.distributed.fsdp import full_tensor
from accel_restore.errors import AuditError, RunAbortedError
from accel_restore.state import Callback, TrainState
from accel_restore.tracking.run_files import JsonlWriter
from accel_restore.utils.files import replace_file, to_json
from accel_restore.utils.words import counted

ShowTable = Callable[[str, list[tuple], tuple[str, ...]], None]  # title, rows, header
OPERATIONS = ("zero_grad", "backward", "optimizer_step", "scheduler_step", "validate")
_NAMES = {"optimizer_step": "optimizer.step", "scheduler_step": "scheduler.step", "backward": "accelerator.backward"}


def hash_weights(model: nn.Module) -> str:
    """The hash of all parameters, in order; every rank calls it."""
    state = hashlib.sha256()
    for parameter in model.parameters():
        copied = full_tensor(parameter.detach()).to(
            "cpu", copy=True
        )  # NumPy pins its memory, which FSDP2 wants to free
        state.update(copied.contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]


class _Watched:
    """A network, and what was seen of it: `TrainState` for the model, `Adversary` for the discriminator."""

    def __init__(self, network: Any, accelerator: Accelerator, suffix: str = ""):
        self.network, self.accelerator, self.suffix = network, accelerator, suffix
        self.calls: Counter[str] = Counter()
        self.changed_weights: Counter[str] = Counter()
        self.changed_lr: Counter[str] = Counter()
        self.schedule_steps: Counter[int] = Counter()  # per epoch
        self.weights, self.lr = hash_weights(network.model), network.lr

    def look(self) -> tuple[bool, bool]:
        """Return whether weights and rate have changed since the last look."""
        former = self.weights, self.lr
        self.weights, self.lr = hash_weights(self.network.model), self.network.lr
        return self.weights != former[0], self.lr != former[1]

    def rows(self, epochs: int) -> list[dict[str, Any]]:
        """Return the rows of the table."""
        operations = OPERATIONS if not self.suffix else OPERATIONS[:-1]  # only the model is validated
        return [
            {
                "operation": f"{_NAMES.get(name, name)}{self.suffix}",
                "calls": self.calls[name],
                "calls_per_epoch": round(self.calls[name] / max(1, epochs), 2),
                "weights_changed": self.changed_weights[name],
                "lr_changed": self.changed_lr[name],
            }
            for name in operations
        ]


class Audit(Callback, LoaderObserver):
    """Observes one rank from the moment it is attached until `report`."""

    def __init__(self, folder: Path, state: TrainState, loader: TrainLoader, accelerator: Accelerator, show: ShowTable):
        self.folder, self.state, self.accelerator = folder, state, accelerator
        self.rank, self.show = accelerator.process_index, show
        self.lines = JsonlWriter(folder / "audit" / f"rank{self.rank}.jsonl", self._is_before)
        self.epoch_hash: defaultdict[int, Any] = defaultdict(hashlib.sha256)  # per epoch
        self.violations: list[str] = []
        self.samples: list[int] = []
        self.networks = [_Watched(state, accelerator)]
        if state.adversary is not None:
            self.networks.append(_Watched(state.adversary, state.adversary.accelerator, " (discriminator)"))
        for watched in self.networks:
            self._attach(watched)
        loader.observers.append(self)

    def _is_before(self, event: dict[str, Any]) -> bool:
        """Whether an event of the file happened before the commit that this run continues from."""
        ends_epoch = event["op"].startswith(("validate", "scheduler_step"))
        return event["step"] <= self.state.step and (not ends_epoch or event["epoch"] < self.state.epoch)

    def _attach(self, watched: _Watched) -> None:
        optimizer, scheduler, accelerator = watched.network.optimizer, watched.network.scheduler, watched.accelerator
        optimizer.zero_grad = self._observed(watched, "zero_grad", optimizer.zero_grad)
        optimizer.step = self._observed(watched, "optimizer_step", optimizer.step)
        scheduler.step = self._observed(watched, "scheduler_step", scheduler.step)
        accelerator.backward = self._observed(watched, "backward", accelerator.backward)

    def _observed(self, watched: _Watched, operation: str, call: Callable) -> Callable:
        def observed(*arguments: Any, **named: Any) -> Any:
            self._look(f"before {operation}{watched.suffix}")
            result = call(*arguments, **named)
            self._look(f"in {operation}{watched.suffix}", watched, operation)
            return result

        return observed

    def on_batch(self, batch: dict[str, Any], waited: float) -> None:
        self.samples = [int(id) for id in batch["id"] if id >= 0]

    def on_validation(self, state: TrainState) -> None:
        self._look("in validate", self.networks[0], "validate")

    def _look(self, where: str, caller: _Watched | None = None, operation: str = "") -> None:
        """Compare weights and rates with those at the last call; record the `operation` of `caller` that has ended."""
        in_step = operation in ("zero_grad", "backward", "optimizer_step")
        epoch, step = self.state.epoch, self.state.step + (1 if in_step else 0)
        place = f"epoch {epoch + 1}, step {step}, rank {self.rank}"
        for watched in self.networks:
            own, name = operation if watched is caller else "", watched.suffix
            changed_weights, changed_lr = watched.look()
            if changed_weights and own != "optimizer_step":
                self.violations.append(f"{place}: weights{name} changed {where}, outside optimizer.step{name}")
            if changed_lr and own != "scheduler_step":
                self.violations.append(
                    f"{place}: the learning rate{name} changed {where}, outside scheduler.step{name}"
                )
            if own:
                watched.calls[own] += 1
                watched.changed_weights[own] += changed_weights
                watched.changed_lr[own] += changed_lr
        if caller is not None:
            self._record(caller, operation, epoch, step, place)

    def _record(self, caller: _Watched, operation: str, epoch: int, step: int, place: str) -> None:
        if operation == "scheduler_step":
            caller.schedule_steps[epoch] += 1
            if caller.schedule_steps[epoch] == 2:
                self.violations.append(f"{place}: scheduler.step{caller.suffix} ran more than once in this epoch")
        called, weights, lr = f"{operation}{caller.suffix}", caller.weights, caller.lr
        self.epoch_hash[epoch].update(f"{called} {step} {weights} {lr!r}\n".encode())
        samples = self.samples if operation == "backward" else []
        self.lines.write({"op": called, "epoch": epoch, "step": step, "samples": samples, "weights": weights, "lr": lr})

    def on_exit(self, state: TrainState, error: BaseException | None) -> None:
        if error is None or isinstance(error, RunAbortedError):  # raised by all ranks
            self.report()

    def report(self) -> None:
        """Compare the ranks, write audit.json and show the table of rank 0. Every rank calls it.

        Raises: AuditError.
        """
        self._look("after the last operation")
        self.lines.close()
        epochs = len(self.epoch_hash)
        mine = {"hashes": {e: h.hexdigest() for e, h in self.epoch_hash.items()}, "violations": self.violations}
        ranks = gather_object([mine])
        violations = [text for rank in ranks for text in rank["violations"]]
        for rank, seen in enumerate(ranks[1:], 1):
            different = [epoch for epoch, value in ranks[0]["hashes"].items() if seen["hashes"].get(epoch) != value]
            if different:
                violations.append(f"epoch {different[0] + 1}: ranks 0 and {rank} hold different weights or rates")
        table = [row for watched in self.networks for row in watched.rows(epochs)]
        if self.accelerator.is_main_process:
            result = {
                "ok": not violations,
                "ranks": len(ranks),
                "epochs": epochs,
                "table": table,
                "violations": violations,
            }
            replace_file(self.folder / "audit.json", (to_json(result, indent=1) + "\n").encode())
            header = ("operation", "calls", "calls per epoch", "weights changed", "learning rate changed")
            self.show(
                f"audit: {counted(epochs, 'epoch')}, {counted(len(ranks), 'rank')}",
                [tuple(row.values()) for row in table],
                header,
            )
        if violations:
            more = f" (and {len(violations) - 5} more, see audit.json)" if len(violations) > 5 else ""
            raise AuditError("the audit failed:\n  - " + "\n  - ".join(violations[:5]) + more)
