"""A training run from its configuration to its files: build, check, print the plan, train, say what came of it."""

import json
import os
import signal
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from accel_restore.callbacks.audit import Audit
from accel_restore.callbacks.checkpointer import Checkpointer
from accel_restore.callbacks.metrics_logger import MetricsLogger
from accel_restore.callbacks.nan_monitor import NaNMonitor
from accel_restore.callbacks.preemption import PreemptionCallback
from accel_restore.callbacks.replica_check import ReplicaCheck
from accel_restore.callbacks.straggler import StragglerDetector
from accel_restore.checkpoint.resume import identity_digest
from accel_restore.checkpoint.run_lock import RunLock, run_folder
from accel_restore.config.load import config_from, load_config
from accel_restore.config.schema import Config
from accel_restore.distributed.accelerator import create_accelerator
from accel_restore.distributed.heartbeat import RankMonitor, tells
from accel_restore.engine import train
from accel_restore.errors import PreemptedError, RunAbortedError, resume_hint
from accel_restore.metrics.protocol import Protocol
from accel_restore.models.pretrained import describe
from accel_restore.state import Callback, TrainState
from accel_restore.tracking.console import Console, restored_output
from accel_restore.tracking.pictures import Samples
from accel_restore.tracking.report.page import Report
from accel_restore.tracking.tensorboard_logger import TensorBoardLogger
from accel_restore.tracking.wandb_logger import WandbLogger
from accel_restore.trainer.setup import RunContext, prepare
from accel_restore.trainer.summary import report_result, state_of
from accel_restore.utils.files import to_json
from accel_restore.utils.memory import is_out_of_memory
from accel_restore.utils.redaction import redacted
from accel_restore.utils.signals import EXIT_CODE, StopRequest, listening


def fit(
    config: dict | str | Path, *overrides: str, cpu: bool = False, audit: bool = False, overwrite: bool = False
) -> Path:
    """The folder of the run that it trains: `accel-restore train` from Python.

    `config` is a YAML file or a mapping like one, in which `data.train.dataset` and `data.val.dataset` may be
    `datasets.Dataset` objects; `overrides` are `key=value`.

    Raises: UserError for wrong input, MemoryError, DivergedError, RunAbortedError, AuditError; when stopped by a
    signal, after saving: KeyboardInterrupt for SIGINT, otherwise SystemExit.
    """
    resolved = config_from(config, overrides) if isinstance(config, dict) else load_config(config, overrides)
    with restored_output(), listening() as stop:
        try:
            run_training(resolved, cpu=cpu, audit=audit, overwrite=overwrite, overrides=list(overrides), stop=stop)
        except PreemptedError as error:
            if stop.signal == signal.SIGINT:
                raise KeyboardInterrupt(*error.args) from error
            raise SystemExit(EXIT_CODE) from error
    return run_folder(resolved)


def run_training(
    config: Config,
    *,
    cpu: bool,
    audit: bool,
    overwrite: bool,
    overrides: list[str],
    stop: StopRequest,
    stop_after: int | None = None,
) -> None:
    """Train as the configuration says; every rank calls it.

    Raises: UserError, MemoryError, DivergedError, RunAbortedError, AuditError; PreemptedError when asked to stop, or
    after step `stop_after`.
    """
    accelerator = create_accelerator(config, cpu)
    console = Console(accelerator.is_main_process)
    if not console.main:  # all ranks get the same warnings of libraries
        warnings.simplefilter("ignore")
    lock = RunLock(run_folder(config), console.log)
    run: RunContext | None = None
    failed = True

    def note(reason: str, state: str = "failed") -> None:
        """Write down why the run ends, from the rank that is to tell it."""
        if run is not None and tells(accelerator.process_index, reason):
            with suppress(OSError):
                run.write_status(state, error=reason)

    def advised(reason: str) -> str:
        return f"{reason}; {resume_hint(overwrite and run is not None)} from the last commit"

    def give_up(reason: str) -> None:
        """Called in the watch's thread, when the main thread waits for a rank that is lost."""
        note(reason)
        if tells(accelerator.process_index, reason):
            print(f"accel-restore: {advised(reason)}", file=sys.stderr, flush=True)

    watch = RankMonitor(accelerator, config.train.rank_timeout, give_up)
    watch.start()
    try:
        run = prepare(config, accelerator, console, lock, audit, overwrite and not _is_restarted(), overrides)
        if run is not None:
            _fit(run, watch, stop, stop_after, audit)
        failed = False
    except PreemptedError as error:
        failed = False
        error.recorded = run is not None
        note(str(error), "preempted")
        raise
    except Exception as error:
        stop.is_over = True
        if (reason := watch.cause(error)) is not None:
            note(reason)
            raise RunAbortedError(advised(reason), teller=tells(accelerator.process_index, reason)) from error
        told = _out_of_memory(error, watch.is_validating) if is_out_of_memory(error) else error
        watch.tell(told)
        note(str(told) or type(told).__name__, state_of(told))
        if told is error:
            raise
        raise told from error
    finally:
        watch.close()
        if run is not None and run.report is not None:
            run.report.write()  # with how the run has ended
        if run is not None and run.tracker is not None:  # last: W&B may have to be waited for, and says what it lacks
            run.tracker.close(failed=failed)
        lock.release()


def _out_of_memory(error: Exception, in_validation: bool) -> MemoryError:
    """The same in a sentence that says what to do."""
    if in_validation:
        what, remedy = "validation of whole images", "set validation.tile (such as 512), so that it sees them in parts"
    else:
        what = "training"
        remedy = (
            "lower data.batch_size (with train.global_batch_size set to what a step takes now, the result stays the "
            "same) or data.patch_size"
        )
    return MemoryError(f"there is too little memory for {what}: {remedy} ({' '.join(str(error).split()):.200})")


def _is_restarted() -> bool:
    """Whether torchrun or Slurm has started this command again: it is to go on, not to remove what it has reached."""
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


@dataclass(frozen=True)
class Observers:
    """What observes the loop of a run."""

    callbacks: list[Callback]  # in the order in which they are called
    samples: Samples
    saver: Checkpointer
    stopping: PreemptionCallback
    audit: Audit | None


def attach(
    run: RunContext, watch: RankMonitor, stop: StopRequest, stop_after: int | None = None, audit: bool = False
) -> Observers:
    """What observes the loop of `run`, attached to it; the run's files are open from now on."""
    config, accelerator, state, loader = run.config, run.accelerator, run.state, run.loader
    resolved = redacted(config.model_dump(mode="json"))
    model = redacted(describe(config.model))  # read now: a checkpoint may be gone when best weights are found
    samples = Samples(config.validation.num_samples, run.data.val.names, run.protocol)
    dashboard, tensorboard = _begin_dashboard(run, resolved), None
    if accelerator.is_main_process:
        run.report = Report(run.folder, run.console.log)
        if config.tracking.tensorboard:
            tensorboard = TensorBoardLogger(run.folder, resolved, accelerator.num_processes, run.console.log)
    tracker = run.tracker = MetricsLogger(
        run.folder,
        state,
        accelerator,
        loader,
        epochs=run.epochs,
        log_every_steps=config.tracking.log_every_steps,
        console=run.console,
        samples=samples,
        dashboard=dashboard,
        report=run.report,
        tensorboard=tensorboard,
    )

    def beside_counters() -> dict[str, Any]:
        return {
            "config": resolved,
            "epochs": run.epochs,
            "global_batches": [plan.global_batch for plan in loader.stages.plans],
            "precision": accelerator.mixed_precision,
            "data": identity_digest(run.data.identity),
            "wandb_id": dashboard.id if dashboard else None,
        }

    replica_check = ReplicaCheck(accelerator, config.train.check_ranks_every_steps)
    saver = Checkpointer(
        run.folder,
        accelerator,
        config.checkpoint,
        epochs=run.epochs,
        stages=loader.stages,
        tracker=tracker,
        replica_check=replica_check,
        extra=beside_counters,
        metadata=lambda state: _metadata(model, config, state, run.protocol),
        best=run.best,
    )
    stopping = PreemptionCallback(accelerator, stop, run.epochs, stop_after, config.train.rank_timeout)
    skipped = NaNMonitor(
        accelerator,
        loader,
        run.loss_fn,
        run.data.train_files,
        config.train.max_skipped_steps,
        tracker.record,
        run.console.log,
    )
    audit_hook = Audit(run.folder, state, loader, accelerator) if audit else None
    pace = StragglerDetector(accelerator, loader, state, run.console.log)
    watch.observe(loader, state)
    callbacks = [pace, watch, tracker, skipped, replica_check, saver, *([audit_hook] if audit_hook else []), stopping]
    return Observers(callbacks, samples, saver, stopping, audit_hook)


def _fit(run: RunContext, watch: RankMonitor, stop: StopRequest, stop_after: int | None, audit: bool) -> None:
    """Attach what observes the loop, train, and write what a finished run leaves."""
    config, accelerator, state, loader = run.config, run.accelerator, run.state, run.loader
    seen = attach(run, watch, stop, stop_after, audit)
    saver, audit_hook = seen.saver, seen.audit
    stop.may_save = True
    try:
        train(
            state,
            loader,
            run.data.val,
            run.loss_fn,
            accelerator,
            config,
            run.epochs,
            seen.callbacks,
            run.protocol,
            saver.save_best,
            seen.samples.look,
            stop.__bool__,
        )
    except PreemptedError:
        saver.finish(state)
        raise PreemptedError(f"{stop} after step {state.step}") from None
    except RunAbortedError:  # by all ranks alike
        if audit_hook is not None:
            audit_hook.report(run.console.table)
        raise
    saver.finish(state)
    seen.stopping.close()
    run.console.stop()
    if audit_hook is not None:
        audit_hook.report(run.console.table)
    if accelerator.is_main_process:
        run.write_status("finished")
    report_result(run.console, run.folder, state)


def _begin_dashboard(run: RunContext, resolved: dict[str, Any]) -> WandbLogger | None:
    """The W&B run of the main process and, with `tracking.wandb_per_rank`, of every other."""
    tracking, accelerator = run.config.tracking, run.accelerator
    plan = {what: value for what, value in run.plan if what != "note"}
    id = run.start.counters["wandb_id"] if run.start.commit and run.start.is_in(run.folder) else None
    dashboard = None

    def begin(rank: int) -> WandbLogger:
        content = {**resolved, "plan": plan}
        return WandbLogger(
            tracking, run.config.run.name, run.folder, content, accelerator.num_processes, id, run.console.log, rank
        )

    if accelerator.is_main_process:
        dashboard = begin(0)
        id = dashboard.id
    if tracking.wandb_per_rank:
        id = gather_object([id])[0]
        if dashboard is None and id is not None:
            dashboard = begin(accelerator.process_index)
    return dashboard


def _metadata(model: dict[str, Any], config: Config, state: TrainState, protocol: Protocol) -> dict[str, str]:
    """What best.safetensors holds beside the weights, enough to restore and to know what its scores mean."""
    best = dict(state.best)
    epoch, step = best.pop("epoch"), best.pop("step")
    return {
        "model": json.dumps(model),
        "data": json.dumps({"channels": config.data.channels, "scale": config.data.scale}),
        "epoch": str(epoch),
        "step": str(step),
        "metrics": to_json({**best, "protocol": protocol.describe()}),
    }
