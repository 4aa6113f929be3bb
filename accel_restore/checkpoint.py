"""Commits: all that a run needs to continue, whole or absent, for any number of processes; and the best weights.

    checkpoints/step-00001200/   model.safetensors [ema.safetensors] optimizer.safetensors state.json COMMIT.json

Order: files written and fsynced in a staging folder, COMMIT.json with their sizes and sha256, then one rename. Tensors
are safetensors and the rest is JSON: nothing is unpickled, ever.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_optimizer_state_dict

from accel_restore import __version__
from accel_restore.engine import TrainState
from accel_restore.errors import Diverged, UserError
from accel_restore.files import decode_floats, encode_floats, replace_file, sync_folder, to_json, write_durably
from accel_restore.restorer import digest

SCHEMA = 1
_COMPLETE = re.compile(r"step-[0-9]+")


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file; equal content gives equal bytes (the library writes metadata in random order)."""
    data = safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def save_commit(folder: Path, state: TrainState, accelerator: Accelerator, extra: dict[str, Any], keep: int) -> None:
    """Commit the state below `folder` and remove all but the `keep` newest commits. Called by every rank.

    `extra` (JSON) is stored in state.json beside the counters.

    Raises: Diverged rather than commit weights that are lost.
    """
    sums = torch.stack([state.epoch_sums, state.window_sums])[None]
    sums = accelerator.gather(sums).tolist()  # per rank: [[loss, samples] of the epoch, of the log window]
    if not torch.tensor(sums).isfinite().all():
        raise Diverged(state.epoch)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model = accelerator.unwrap_model(state.model)
    weights, optimizer = get_state_dict(model, state.optimizer.optimizer, options=options)
    if not accelerator.is_main_process:
        return
    files = {"model.safetensors": serialize(weights)}
    moments = {f"{name}|{key}": value for name, slots in optimizer["state"].items() for key, value in slots.items()}
    files["optimizer.safetensors"] = serialize(moments)
    if state.ema is not None:
        ema = {name: tensor.cpu() for name, tensor in state.ema.module.state_dict().items()}
        files["ema.safetensors"] = serialize(ema)
    scheduler = state.scheduler.scheduler.state_dict() if extra["config"]["scheduler"]["name"] == "plateau" else None
    counters = {
        "schema": SCHEMA,
        "epoch": state.epoch,
        "epoch_step": state.epoch_step,
        "step": state.step,
        "best_val_loss": state.best_val_loss,
        "best": state.best,
        "sums": sums,
        "world_size": accelerator.num_processes,
        "num_averaged": int(state.ema.n_averaged) if state.ema is not None else None,
        "param_groups": optimizer["param_groups"],
        "scheduler": scheduler,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
    }
    files["state.json"] = to_json(encode_floats({**counters, **extra}), indent=1).encode()
    _write(folder, state, files)
    _prune(folder, keep)


def _write(folder: Path, state: TrainState, files: dict[str, bytes]) -> None:
    name = f"step-{state.step:08d}"
    staging = folder / f".staging-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in (staging, folder / name):  # of an interrupted attempt, or of a run that was rewound to before it
        if leftover.exists():
            shutil.rmtree(leftover)
    staging.mkdir()
    for file, data in files.items():
        write_durably(staging / file, data)
    digests = {file: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
    commit = {"schema": SCHEMA, "step": state.step, "epoch": state.epoch, "files": digests}
    write_durably(staging / "COMMIT.json", to_json(commit, indent=1).encode())
    sync_folder(staging)
    staging.rename(folder / name)
    sync_folder(folder)


def _prune(folder: Path, keep: int) -> None:
    for old in find_commits(folder)[:-keep]:
        doomed = old.with_name(f".removing-{old.name}")
        old.rename(doomed)  # at once, so that no half-removed folder looks like a commit
        shutil.rmtree(doomed)


def find_commits(folder: Path) -> list[Path]:
    """The complete commits below `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _COMPLETE.fullmatch(p.name) and (p / "COMMIT.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted saving or pruning has left."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith((".staging-", ".removing-")):
                shutil.rmtree(path)


def read_commit(commit: Path) -> dict[str, bytes]:
    """The files of a commit, each checked against its sha256.

    Raises: UserError that names what is missing or damaged.
    """
    try:
        listed = json.loads((commit / "COMMIT.json").read_bytes())
        if listed["schema"] != SCHEMA:
            raise UserError(f"{commit}: has schema {listed['schema']}, this version reads {SCHEMA}")
        expected = {name: entry["sha256"] for name, entry in listed["files"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{commit}: is no complete checkpoint ({error})") from None
    files = {}
    for name, sha256 in expected.items():
        try:
            files[name] = (commit / name).read_bytes()
        except OSError as error:
            raise UserError(f"{commit / name}: cannot be read ({error.strerror}); resume from another commit") from None
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise UserError(f"{commit / name}: is damaged (sha256 differs); resume from another commit")
    return files


def read_counters(commit: Path) -> dict[str, Any]:
    """The state.json of a commit, checked like `read_commit`."""
    return decode_floats(json.loads(read_commit(commit)["state.json"]))


def load_commit(commit: Path, state: TrainState, accelerator: Accelerator) -> None:
    """Put the state of a commit into a freshly set up `state`; the schedule is run to its epoch."""
    files = read_commit(commit)
    counters = decode_floats(json.loads(files["state.json"]))
    try:
        tensors = {name: safetensors.torch.load(data) for name, data in files.items() if name.endswith(".safetensors")}
    except SafetensorError as error:
        raise UserError(f"{commit}: holds no valid safetensors ({error})") from None

    _run_schedule_to(counters, state)
    rates = [group["lr"] for group in state.optimizer.param_groups]
    model = accelerator.unwrap_model(state.model)
    model.load_state_dict(tensors["model.safetensors"])
    _load_optimizer(model, state.optimizer.optimizer, tensors["optimizer.safetensors"], counters["param_groups"])
    if counters["scheduler"] is None:
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the same as the commit's, but for a run that is lengthened
    if state.ema is not None:
        state.ema.module.load_state_dict(tensors["ema.safetensors"])
        state.ema.n_averaged.fill_(counters["num_averaged"])
    if accelerator.scaler is not None and counters["scaler"] is not None:
        accelerator.scaler.load_state_dict(counters["scaler"])

    state.epoch, state.epoch_step, state.step = counters["epoch"], counters["epoch_step"], counters["step"]
    state.best_val_loss, state.best = counters["best_val_loss"], counters["best"]
    epoch_sums, window_sums = _sums_of_rank(counters, accelerator)
    state.epoch_sums.copy_(epoch_sums)
    state.window_sums.copy_(window_sums)


def _load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    here = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    slots: dict[str, dict[str, Tensor]] = {}
    for name, value in moments.items():
        parameter, _, slot = name.rpartition("|")
        slots.setdefault(parameter, {})[slot] = value
    if slots:
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(model, optimizer, {"state": slots, "param_groups": groups}, options=options)
    else:  # plain SGD has no state, which torch's function cannot load
        for group, stored in zip(optimizer.param_groups, groups, strict=True):
            group.update({name: value for name, value in stored.items() if name != "params"})
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if value.shape == parameter.shape:  # fused kernels walk parameter and moments in one memory layout
                held[name] = torch.empty_like(parameter).copy_(value)
    for group, kernels in zip(optimizer.param_groups, here, strict=True):
        group.update(kernels)  # this machine's, not the commit's


def _run_schedule_to(counters: dict[str, Any], state: TrainState) -> None:
    if counters["scheduler"] is not None:
        state.scheduler.load_state_dict(counters["scheduler"])
        return
    # A schedule is a pure function of the epoch: running it there gives the rates of an uninterrupted run to the bit.
    inner = state.scheduler.scheduler
    inner.optimizer._opt_called = True  # torch warns about a schedule that steps before its optimizer
    for _ in range(counters["epoch"]):
        inner.step()


def _sums_of_rank(counters: dict[str, Any], accelerator: Accelerator) -> Tensor:
    sums = torch.tensor(counters["sums"], dtype=torch.float64)  # (ranks, 2, 2)
    if len(sums) == accelerator.num_processes:
        return sums[accelerator.process_index]
    whole = sums.sum(0)  # another number of ranks: the main process carries the totals on
    return whole if accelerator.is_main_process else torch.zeros_like(whole)


def save_best(path: Path, state: TrainState, accelerator: Accelerator, metadata: dict[str, str]) -> None:
    """Write the best weights (EMA weights where EMA is on) from the main process, with what `load` needs."""
    model = accelerator.unwrap_model(state.model)
    if state.ema is not None:
        model = state.ema.module
    if accelerator.is_main_process:
        weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        stored = {"format": "pt", "version": __version__, "sha256": digest(weights), **metadata}
        replace_file(path, serialize(weights, stored))
