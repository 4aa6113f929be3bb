"""All that a run needs, built and checked in one place: nothing is written before everything has been found good."""

import math
import socket
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from accel_restore.callbacks.early_stopping import EarlyStopping
from accel_restore.callbacks.guarded import GuardedCallbacks, NamedCallback, build_callbacks
from accel_restore.checkpoint.commits import put_back, remove_leftovers
from accel_restore.checkpoint.folder import CONFIG, MARKER, check_inputs
from accel_restore.checkpoint.resume import Start, check_same_data, clear, find_resume_point, rewind_best
from accel_restore.checkpoint.run_lock import RunLock
from accel_restore.checkpoint.state_dict import load_commit
from accel_restore.config.load import to_yaml
from accel_restore.config.schema import Config
from accel_restore.data.build import DataSets, build_sets, degradations_of
from accel_restore.data.handover import read_found, write_found
from accel_restore.data.identity import RECORD, to_record
from accel_restore.data.loader import TrainLoader
from accel_restore.data.previews import open_previews
from accel_restore.data.scan import ScannedData, find_data, raise_found
from accel_restore.distributed.collective import on_all_ranks
from accel_restore.distributed.machine import once_per_machine
from accel_restore.engine import setup_model_and_optimizer
from accel_restore.errors import UserError
from accel_restore.models.pretrained import initial_model
from accel_restore.state import TrainState
from accel_restore.tracking.console import Console
from accel_restore.tracking.report.page import PLAN
from accel_restore.trainer.adversary_check import adversary_rows, try_second_schedule
from accel_restore.trainer.batch_size import resolve_batch_size
from accel_restore.trainer.continued_model import stored_fit, without_checkpoint
from accel_restore.trainer.model_check import try_on_images
from accel_restore.trainer.objects import share_objects
from accel_restore.trainer.optim_check import known_epochs, try_schedule
from accel_restore.trainer.parts_check import check_parts
from accel_restore.trainer.plan import plan_record, plan_rows
from accel_restore.trainer.run_context import RunContext
from accel_restore.trainer.stages import make_stages
from accel_restore.trainer.summary import report_finished
from accel_restore.trainer.validation_memory import validation_memory_rows
from accel_restore.utils.files import remove_temporaries, replace_file, to_json
from accel_restore.utils.redaction import redacted
from accel_restore.utils.words import counted


def prepare(
    config: Config,
    accelerator: Accelerator,
    console: Console,
    lock: RunLock,
    audit: bool,
    overwrite: bool,
    overrides: list[str],
) -> RunContext | None:
    """Everything a run needs, checked before anything is written; None if the run is already finished."""
    start = _find_start(config, accelerator, console, lock, overwrite, overrides)
    if start.finished and not start.other_sources:
        _report_finished(start, accelerator, console, lock.folder, audit)
        return None
    config = share_objects(config, accelerator)
    # A run that continues takes its weights from the commit, and needs no other file to build the model.
    loss_fn, protocols, description, trial, fit = check_parts(without_checkpoint(config, start), accelerator)
    own = on_all_ranks(accelerator, lambda: _own_callbacks(config, accelerator, console))
    data = _open_data(config, accelerator, console, start, protocols.smallest_sides(loss_fn.smallest_side))
    if start.finished:  # on these very images
        _report_finished(start, accelerator, console, lock.folder, audit)
        return None
    kinds = {name: one.gt_kind for name, one in data.val.sets.items()}
    protocols = on_all_ranks(accelerator, lambda: protocols.for_pixels(kinds, config.data.range))
    previews = on_all_ranks(accelerator, lambda: open_previews(config.data, Console(True).track, console.log))
    on_all_ranks(accelerator, partial(try_on_images, protocols, data.val, previews, trial, accelerator))
    del trial  # and the memory of its model
    config = resolve_batch_size(config, accelerator, loss_fn, len(data.train), start, console.log)
    stages = make_stages(config, data.train.mixed, accelerator.num_processes, start)
    max_steps = config.train.max_steps
    epochs = config.train.epochs if max_steps is None else stages.num_epochs(max_steps)
    state = setup_model_and_optimizer(without_checkpoint(config, start), accelerator, epochs)
    if known_epochs(config) is None:  # otherwise it was tried before decoding
        on_all_ranks(accelerator, lambda: try_schedule(config, state.model, epochs, accelerator.device))
    on_all_ranks(accelerator, lambda: try_second_schedule(config, state.adversary, epochs, accelerator))
    loader = TrainLoader(data.train, stages, accelerator, config.train.channels_last, config.data.num_threads)
    window_sums = torch.zeros_like(state.epoch_sums)
    if start.commit is not None:
        window_sums = _load_commit(start, state, accelerator, epochs, lock.folder)
        kept = (start.counters or {}).get("callbacks", {})
        on_all_ranks(accelerator, lambda: own.load_state_dicts(kept))

    plan = plan_rows(config, accelerator, stages, data, state, epochs, lock.folder, start)
    loop = config, accelerator, state, loader, data.val, loss_fn, protocols
    taken = fit.record(str(config.model.checkpoint)) if fit is not None else stored_fit(start)
    if taken is not None:
        plan.append(("weights", taken["in_words"]))
    plan += adversary_rows(config, state.adversary)
    plan += validation_memory_rows(
        config,
        accelerator,
        lambda: initial_model(without_checkpoint(config, start)) if state.full_copy is None else state.full_copy,
        data.val,
        protocols,
        loss_fn,
    )
    if previews is not None:
        plan += [("previews", counted(len(previews), "image")), *(("note", note) for note in previews.notes)]
    run = RunContext(*loop, console, lock, start, data, plan, window_sums, description, own, taken, previews)
    record = plan_record(plan, epochs, stages.num_steps(epochs), accelerator.mixed_precision, protocols, data.val)
    record |= {"partial": redacted(taken)} if taken is not None else {}
    on_all_ranks(accelerator, lambda: _prepare_folder(run, record), only_main=True)
    console.table("plan", plan)
    return run


def _find_start(
    config: Config, accelerator: Accelerator, console: Console, lock: RunLock, overwrite: bool, overrides: list[str]
) -> Start:
    def find() -> Start:
        if lock.acquire_existing():
            put_back(lock.folder / "checkpoints")
        return find_resume_point(lock.folder, config, overwrite, overrides, accelerator.mixed_precision, console.log)

    return on_all_ranks(accelerator, find, only_main=True)


def _report_finished(start: Start, accelerator: Accelerator, console: Console, folder: Path, audit: bool) -> None:
    if not start.is_in(folder):
        raise UserError(
            f"run.resume: {start.commit} has completed all its epochs; raise train.epochs or train.max_steps"
        )
    # bool: whatever is returned is sent to every rank
    on_all_ranks(accelerator, lambda: bool(rewind_best(folder, start, console.log)), only_main=True)
    report_finished(folder, start, accelerator, console, audit)


def _own_callbacks(config: Config, accelerator: Accelerator, console: Console) -> GuardedCallbacks:
    """Early stopping, if it is on, and the callbacks of the configuration, in order."""
    callbacks = build_callbacks(config.callbacks)
    if config.train.early_stopping is not None:
        early = EarlyStopping(config.train.early_stopping.patience, config.validation.monitor)
        callbacks.insert(0, NamedCallback("train.early_stopping", early))
    return GuardedCallbacks(callbacks, accelerator, console.log)


def _load_commit(start: Start, state: TrainState, accelerator: Accelerator, epochs: int, folder: Path) -> Tensor:
    """Load the commit into `state`, and return the logger's sums."""
    commit, counters = start.commit, start.counters
    assert commit is not None and counters is not None
    if epochs < counters["epoch"]:
        raise UserError(f"train.epochs: {epochs}, but {commit} has completed {counters['epoch']}; raise it")

    def load() -> Tensor:
        if not commit.exists():  # the main process has found it
            raise UserError(
                f"{commit}: not found on {socket.gethostname()} (rank {accelerator.process_index}); set run.dir to a "
                "folder that all machines share"
            )
        return load_commit(commit, state, accelerator, epochs)

    window_sums = on_all_ranks(accelerator, load)
    if not start.is_in(folder):
        state.best_val_loss, state.best = math.inf, None  # the best weights are in the other run's folder
    return window_sums


def _open_data(
    config: Config, accelerator: Accelerator, console: Console, start: Start, smallest_sides: dict[str, int]
) -> DataSets:
    """Find and decode the images, once per machine, and build the data sets of this rank from what was found."""
    degradations = on_all_ranks(accelerator, lambda: degradations_of(config.data))
    builder = Console(True)  # whichever rank decodes the images shows progress

    def find() -> ScannedData:
        found = find_data(config.data, smallest_sides, builder.track, console.log, config.validation.crop_gt)
        raise_found(found)
        return found

    found = once_per_machine(accelerator, find, write_found, read_found)
    data = on_all_ranks(
        accelerator, lambda: build_sets(found, config.data, config.run.seed, degradations, accelerator.device)
    )
    seen = gather_object([found.facts])
    if others := [rank for rank, digest in enumerate(seen) if digest != seen[0]]:
        raise UserError(f"data: rank {others[0]} sees other images than rank 0; all machines must have the same ones")
    if start.counters is not None:
        on_all_ranks(accelerator, lambda: check_same_data(start, data.identity), only_main=True)
        for one in data.train.sets:  # a run that began with an earlier version keeps its noise
            one.degrade.by_batch = start.counters.get("noise_by_batch", False)
    return data


def _prepare_folder(run: RunContext, plan: dict[str, Any]) -> None:
    folder, lock = run.folder, run.lock
    if (loss := lock.find_loss()) is not None:
        raise UserError(loss)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not lock.is_held:  # there was no run
            lock.acquire()
            if (folder / MARKER).exists():
                raise UserError(f"{folder}: another process has just started this run; run the same command again")
        if run.start.clears:
            check_inputs(folder, (("data", file) for file in run.data.found.sources() if isinstance(file, Path)))
            check_inputs(folder, [("data.preview", file) for file in run.previews.files] if run.previews else [])
        clear(folder, run.start)
        remove_temporaries(folder)
        remove_leftovers(folder / "checkpoints")
        run.best = rewind_best(folder, run.start, run.console.log)
        run.write_status("running")
        replace_file(folder / CONFIG, to_yaml(run.config).encode())
        replace_file(folder / PLAN, to_json(plan, indent=1).encode())
        replace_file(folder / RECORD, to_record(run.data.identity))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set run.dir or run.name") from error
