"""Convert the training state to the files of a commit and back; write the best weights.

    model.safetensors [ema.safetensors] optimizer.safetensors [best.safetensors] state.json

Tensors are stored as safetensors and everything else as JSON, so nothing is ever unpickled.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from accel_restore import __version__
from accel_restore.checkpoint.commits import SCHEMA, read_commit
from accel_restore.checkpoint.optimizer_state import Expressed, StateError, express, from_plain, restore, to_plain
from accel_restore.distributed.fsdp import full_state_dict, full_tensor
from accel_restore.errors import DivergedError, UserError
from accel_restore.models.weights_file import WEIGHTS, digest
from accel_restore.optim.schedules import needs_monitored
from accel_restore.state import TrainState
from accel_restore.utils.files import decode_floats, encode_floats, to_json

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
    best: dict[str, float | dict[str, dict[str, float | None]] | None] | None  # in sets: those of each set
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


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return a safetensors file. Equal content gives equal bytes: metadata, which the library shuffles, is sorted."""
    own: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own[name] = tensor.detach().contiguous()
        if own[name].untyped_storage().data_ptr() in storages:  # a tensor with two names, which the format lacks
            own[name] = own[name].clone()
        storages.add(own[name].untyped_storage().data_ptr())
    data = safetensors.torch.save(own, metadata)
    if metadata is None:
        return data
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[8 + size :]])


def collect(
    state: TrainState, window_sums: Tensor, accelerator: Accelerator, extra: dict[str, Any]
) -> dict[str, bytes] | None:
    """Return the files of a commit of this state; None except on the main process. Every rank calls it.

    `window_sums` are the logger's, since its last line; `extra` (JSON) is stored in state.json next to the counters.

    Raises: DivergedError on every rank if a weight is NaN or inf, as such weights are never committed.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict  # a second, after step 1

    sums = torch.stack([state.epoch_sums, window_sums])[None]
    sums = accelerator.gather(sums).tolist()  # per rank: [[loss, samples, terms…] of the epoch, of the log window]
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model = accelerator.unwrap_model(state.model)
    if not all(bool(full_tensor(parameter.isfinite().all())) for parameter in model.parameters()):
        raise DivergedError(f"step {state.step}", "some weights are NaN or inf, so no checkpoint was written")
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    optimizer = express(model, state.optimizer.optimizer, accelerator.is_main_process)
    ema = full_state_dict(state.ema.module, accelerator) if state.ema is not None else None
    if not accelerator.is_main_process:
        return None
    files = {"model.safetensors": serialize(weights)}
    files["optimizer.safetensors"] = serialize(optimizer.tensors)
    if ema is not None:
        files["ema.safetensors"] = serialize(ema)
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
        "param_groups": optimizer.groups,
        "scheduler": schedule_state(state.scheduler.scheduler, extra["config"]["scheduler"]["name"]),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        **({"optimizer": optimizer.extra} if optimizer.extra else {}),
    }
    files["state.json"] = to_json(encode_floats({**counters, **extra}), indent=1).encode()
    return files


def read_counters(commit: Path) -> dict[str, Any]:
    """Return the content of state.json, after checking all files of the commit.

    Raises: UserError that names the missing or damaged file.
    """
    return _counters_in(commit, read_commit(commit))


def _counters_in(commit: Path, files: dict[str, bytes]) -> dict[str, Any]:
    try:
        counters = decode_floats(json.loads(files["state.json"]))
        _Counters.model_validate(counters)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise UserError(
            f"{commit / 'state.json'}: was not written by this version ({wrong}); resume from another commit"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{commit / 'state.json'}: cannot be read ({error}); resume from another commit") from None
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
    schedule, scheduled = state.scheduler.scheduler, counters["scheduler"]
    if counters["epochs"] != epochs and not needs_monitored(schedule):
        scheduled = None  # its state may hold the length of the run
    load_schedule(schedule, counters["epoch"], scheduled)
    rates = [group["lr"] for group in state.optimizer.param_groups]
    model = accelerator.unwrap_model(state.model)
    _load_model(model, tensors["model.safetensors"])
    _load_optimizer(model, state.optimizer.optimizer, tensors["optimizer.safetensors"], counters)
    if scheduled is None:
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # differs from the commit's only if the run was made longer
    if state.ema is not None:
        _load_model(state.ema.module, tensors["ema.safetensors"])
        state.ema.num_updates = counters["num_averaged"]
    if accelerator.scaler is not None and counters["scaler"] is not None:
        accelerator.scaler.load_state_dict(counters["scaler"])

    state.epoch, state.epoch_step, state.step = counters["epoch"], counters["epoch_step"], counters["step"]
    state.skipped_in_row = counters.get("skipped_in_row", 0)
    state.best_val_loss, state.best = counters["best_val_loss"], counters["best"]
    if counters["epoch_step"]:  # otherwise the run was stopped after this epoch, and continues only if that is undone
        state.stop_reason = counters.get("stopped")
    epoch_sums, window_sums = _sums_of_rank(counters, accelerator)
    state.epoch_sums.copy_(epoch_sums)
    return torch.zeros_like(state.epoch_sums).copy_(window_sums)


def _load_model(model: nn.Module, weights: dict[str, Tensor]) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, dict[str, Any](weights), options=StateDictOptions(full_state_dict=True))


def _load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor], counters: dict[str, Any]
) -> None:
    section = counters["config"]["optimizer"]
    configured = section.keys() | {"weight_decay"} if ":" in section["name"] else None  # None: all settings
    stored = Expressed(moments, counters["param_groups"], counters.get("optimizer", {}))
    restore(model, optimizer, stored, configured)


def schedule_state(schedule: LRScheduler, name: str) -> Any:
    """Return the state of a schedule as JSON, if a commit stores it: one that needs the monitored value, or an own one.

    None for the others, and for an own one that JSON cannot express: they are functions of the epoch.
    """
    is_monitored = needs_monitored(schedule)
    if not is_monitored and ":" not in name:
        return None
    try:
        return to_plain(schedule.state_dict(), "")
    except StateError:
        if is_monitored:
            raise
        return None


def load_schedule(schedule: LRScheduler, epoch: int, stored: Any) -> None:
    """Put a new schedule to the start of an epoch, counted from 0.

    A function of the epoch is stepped: its rates are bit-identical to those of an uninterrupted run.
    """
    if not needs_monitored(schedule):
        schedule.optimizer._opt_called = True  # type: ignore[attr-defined]  # avoids a warning: it steps first
        for _ in range(epoch):
            schedule.step()
    if stored is not None:
        schedule.load_state_dict(from_plain(stored))


def _sums_of_rank(counters: dict[str, Any], accelerator: Accelerator) -> Tensor:
    """Return this rank's sums from a commit's counters: (2, sums), of the epoch and of the logger's window."""
    sums = torch.tensor(counters["sums"], dtype=torch.float64)  # (ranks, 2, sums)
    if len(sums) == accelerator.num_processes:
        return sums[accelerator.process_index]
    total = sums.sum(0)  # another number of ranks: the main process continues with the totals
    return total if accelerator.is_main_process else torch.zeros_like(total)


def best_weights(state: TrainState, accelerator: Accelerator, metadata: dict[str, str]) -> bytes | None:
    """Return the content of best.safetensors: the weights (averaged ones if EMA is on) and what `load` needs.

    None except on the main process. Every rank calls it.
    """
    model = state.ema.module if state.ema is not None else accelerator.unwrap_model(state.model)
    weights = full_state_dict(model, accelerator)
    if weights is None:
        return None
    return serialize(weights, {"format": "pt", "version": __version__, "sha256": digest(weights), **metadata})
