"""Convert the training state to the files of a commit and back; write the best weights.

    model.safetensors [ema.safetensors] optimizer.safetensors [best.safetensors] state.json
    with adversarial training: discriminator.safetensors discriminator_optimizer.safetensors

Tensors are stored as safetensors and everything else as JSON, so nothing is ever unpickled.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from accel_restore import __version__
from accel_restore.checkpoint.commits import SCHEMA, read_commit
from accel_restore.checkpoint.host_copy import HostCopy
from accel_restore.checkpoint.network_state import (
    NetworkState,
    check_finite,
    collect_network,
    load_network,
    load_weights,
)
from accel_restore.distributed.fsdp import full_state_dict
from accel_restore.errors import UserError
from accel_restore.models.parameters import unwrapped
from accel_restore.models.weights_file import WEIGHTS, digest, raw_bytes
from accel_restore.state import TrainState
from accel_restore.utils.files import Part, decode_floats, encode_floats, to_json

STATE = "state.json"
_Count = Annotated[int, Field(ge=0, lt=2**40)]


class _Counters(BaseModel):
    """The required content of state.json, which may come from anyone.

    What a later version adds must be optional, so that it continues the runs of earlier ones.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    epoch: _Count
    epoch_step: _Count
    step: _Count
    epochs: _Count
    world_size: Annotated[int, Field(ge=1, lt=2**20)]
    global_batches: Annotated[list[Annotated[int, Field(ge=1, lt=2**24)]], Field(min_length=1)]  # one per stage
    best_val_loss: float
    best: dict[str, float | dict[str, dict[str, float | None]] | None] | None  # `sets`: scores of each set
    sums: list[list[list[float]]]
    num_averaged: _Count | None
    param_groups: list[dict[str, Any]]
    scheduler: dict[str, Any] | None
    scaler: dict[str, Any] | None
    config: dict[str, Any]
    precision: str
    data: dict[str, dict[str, int | str]]
    wandb_id: Annotated[str, Field(pattern=r"^[\w-]{1,64}$")] | None
    stopped: str | None = None
    objects: list[str] = []
    callbacks: dict[str, list[dict[str, Any]]] = {}
    discriminator: dict[str, Any] | None = None
    noise_by_batch: bool = False


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return a safetensors file; see `serialized_parts`."""
    return b"".join(serialized_parts(tensors, metadata))


def serialized_parts(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> list[Part]:
    """Return a safetensors file in parts: its header, and the memory of each tensor without a copy.

    Equal content gives equal bytes. With the library it does not, because it shuffles metadata.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    parts, end = list[Part](), 0
    for name in sorted(
        tensors, key=lambda name: (-tensors[name].element_size(), name)
    ):  # wide types first, so all are aligned
        tensor, data = tensors[name], raw_bytes(tensors[name])
        place = [end, end := end + len(data)]
        header[name] = {"dtype": _dtype_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": place}
        parts.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in the safetensors format."""
    return json.loads(safetensors.torch.save({"x": torch.empty(0, dtype=dtype)})[8:])["x"]["dtype"]


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state of training. It can be written while training continues."""

    tensors: dict[str, dict[str, Tensor]]  # of each file
    counters: bytes  # state.json

    def files(self) -> dict[str, list[Part]]:
        """Return the files of a commit, in parts."""
        return {name: serialized_parts(tensors) for name, tensors in self.tensors.items()} | {STATE: [self.counters]}


def collect(
    state: TrainState, window_sums: Tensor, accelerator: Accelerator, extra: dict[str, Any], copies: HostCopy
) -> Snapshot | None:
    """Copy this state for a commit; return None except on the main process. Every rank calls it.

    `window_sums` are the logger's, since its last line; `extra` (JSON) is stored in state.json next to the counters.
    `copies` holds the tensors until its next use.

    Raises: DivergedError on every rank if a weight is NaN or inf, as such weights are never committed.
    """

    def into(file: str) -> Callable[[str, Tensor], Tensor]:
        return lambda name, tensor: copies.copy(f"{file} {name}", tensor)

    sums = torch.stack([state.epoch_sums, window_sums])[None]
    sums = accelerator.gather(sums).tolist()  # per rank: [[loss, samples, terms…] of the epoch, of the log window]
    check_finite(state, f"step {state.step}")
    model = collect_network(state, accelerator, extra["config"], into("model"))
    tensors = {"model.safetensors": model.weights, "optimizer.safetensors": model.moments}
    if state.ema is not None:
        tensors["ema.safetensors"] = full_state_dict(state.ema.module, accelerator, into("ema"))
    second = None
    if (adversary := state.adversary) is not None:
        check_finite(adversary, f"step {state.step}, discriminator")
        section = extra["config"]["adversarial"]
        second = collect_network(adversary, adversary.accelerator, section, into("discriminator"))
        tensors["discriminator.safetensors"] = second.weights
        tensors["discriminator_optimizer.safetensors"] = second.moments
    if not accelerator.is_main_process:
        return None
    counters = {
        "schema": SCHEMA,
        "epoch": state.epoch,
        "epoch_step": state.epoch_step,
        "step": state.step,
        "skipped_in_row": state.skipped_in_row,
        "best_val_loss": state.best_val_loss,
        "best": state.best,
        "sums": sums,
        "world_size": accelerator.num_processes,
        "num_averaged": state.ema.num_updates if state.ema is not None else None,
        **model.counters,
        **({"discriminator": second.counters} if second is not None else {}),
    }
    return Snapshot(tensors, to_json(encode_floats({**counters, **extra}), indent=1).encode())


def read_counters(commit: Path) -> dict[str, Any]:
    """Return the content of state.json, after checking all files of the commit.

    Raises: UserError that names the missing or damaged file.
    """
    return _counters_in(commit, read_commit(commit))


def _counters_in(commit: Path, files: dict[str, bytes]) -> dict[str, Any]:
    try:
        counters = decode_floats(json.loads(files[STATE]))
        _Counters.model_validate(counters)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise UserError(
            f"{commit / STATE}: was not written by this version ({wrong}); resume from another commit"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{commit / STATE}: cannot be read ({error}); resume from another commit") from None
    return counters


def load_commit(commit: Path, state: TrainState, accelerator: Accelerator, epochs: int) -> Tensor:
    """Load a commit into a new `state` of a run of `epochs` epochs; return this rank's sums in the logger's window.

    The schedule is advanced to the commit's epoch.

    Raises: UserError if the commit does not fit the model or the optimizer.
    """
    files = read_commit(commit)
    counters = _counters_in(commit, files)
    try:
        tensors = {
            name: safetensors.torch.load(data)
            for name, data in files.items()
            if name.endswith(".safetensors") and name != WEIGHTS
        }
        return _put(counters, tensors, state, accelerator, epochs)
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{commit}: does not fit this run ({reason:.300}); resume from another commit") from error


def _put(
    counters: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    state: TrainState,
    accelerator: Accelerator,
    epochs: int,
) -> Tensor:
    has_other_length = counters["epochs"] != epochs
    model = NetworkState(tensors["model.safetensors"], tensors["optimizer.safetensors"], counters)
    load_network(state, accelerator, model, counters["epoch"], counters["config"], has_other_length=has_other_length)
    if state.ema is not None:
        load_weights(state.ema.module, tensors["ema.safetensors"])
        state.ema.num_updates = counters["num_averaged"]
    if (adversary := state.adversary) is not None:
        files = tensors["discriminator.safetensors"], tensors["discriminator_optimizer.safetensors"]
        second, section = NetworkState(*files, counters["discriminator"]), counters["config"]["adversarial"]
        load_network(
            adversary, adversary.accelerator, second, counters["epoch"], section, has_other_length=has_other_length
        )

    state.epoch, state.epoch_step, state.step = counters["epoch"], counters["epoch_step"], counters["step"]
    state.skipped_in_row = counters.get("skipped_in_row", 0)
    state.best_val_loss, state.best = counters["best_val_loss"], counters["best"]
    if counters["epoch_step"]:  # otherwise the run was stopped after this epoch, and continues only if that is undone
        state.stop_reason = counters.get("stopped")
    epoch_sums, window_sums = _sums_of_rank(counters, accelerator)
    state.epoch_sums.copy_(epoch_sums)
    return torch.zeros_like(state.epoch_sums).copy_(window_sums)


def _sums_of_rank(counters: dict[str, Any], accelerator: Accelerator) -> Tensor:
    """Return this rank's sums from a commit's counters: (2, sums), of the epoch and of the logger's window."""
    sums = torch.tensor(counters["sums"], dtype=torch.float64)  # (ranks, 2, sums)
    if len(sums) == accelerator.num_processes:
        return sums[accelerator.process_index]
    total = sums.sum(0)  # another number of ranks: the main process continues with the totals
    return total if accelerator.is_main_process else torch.zeros_like(total)


def best_weights(state: TrainState, accelerator: Accelerator, copies: HostCopy) -> dict[str, Tensor]:
    """Copy the weights for best.safetensors, averaged ones if EMA is on; empty except on the main process.

    Every rank calls it.
    """
    model = state.ema.module if state.ema is not None else unwrapped(state.model)
    return full_state_dict(model, accelerator, copies.copy)


def best_file(weights: dict[str, Tensor], metadata: dict[str, str]) -> list[Part]:
    """Return the content of best.safetensors: the weights and what `load` needs, including their SHA-256."""
    more = {"format": "pt", "version": __version__, "sha256": digest(weights)}
    return serialized_parts(weights, {**more, **metadata})
