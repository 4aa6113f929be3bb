"""A training run from its configuration to its files: set up, print the plan, train, report the result."""

import json
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn

from accel_restore.callbacks.audit import Audit
from accel_restore.callbacks.checkpointer import Checkpointer, CommitSource
from accel_restore.callbacks.collapse import CollapseWarning
from accel_restore.callbacks.folder_check import FolderCheck
from accel_restore.callbacks.guarded import AfterCommit
from accel_restore.callbacks.heartbeat import Heartbeat
from accel_restore.callbacks.metrics_logger import MetricsLogger, RunLog, Trackers
from accel_restore.callbacks.nan_monitor import NaNMonitor
from accel_restore.callbacks.pictures import Curves, PreviewPictures, ValidationPictures
from accel_restore.callbacks.preemption import PreemptionCallback
from accel_restore.callbacks.replica_check import ReplicaCheck
from accel_restore.callbacks.straggler import StragglerDetector
from accel_restore.callbacks.validation_progress import ValidationProgress
from accel_restore.checkpoint.run_lock import RunLock, run_folder
from accel_restore.config.load import config_from, load_config
from accel_restore.config.schema import Config
from accel_restore.data.pixels import Pixels
from accel_restore.distributed.accelerator import create_accelerator, restored_states
from accel_restore.distributed.heartbeat import RankMonitor
from accel_restore.engine import train
from accel_restore.errors import PART_ERRORS, PreemptedError, UserError
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.models.parameters import unwrapped
from accel_restore.state import Callback, TrainState
from accel_restore.tracking.console import Console
from accel_restore.tracking.drawings import Drawings
from accel_restore.tracking.pictures import Samples
from accel_restore.tracking.tensorboard_logger import TensorBoardLogger
from accel_restore.tracking.wandb_client import check_settings
from accel_restore.tracking.wandb_logger import WandbLogger
from accel_restore.trainer.continued_model import facts_of_model
from accel_restore.trainer.ending import Ending
from accel_restore.trainer.objects import given_objects, with_objects
from accel_restore.trainer.run_context import RunContext
from accel_restore.trainer.setup import prepare
from accel_restore.trainer.summary import report_result, stopped_by
from accel_restore.utils.files import to_json
from accel_restore.utils.globals import restored_globals
from accel_restore.utils.launch import is_restarted
from accel_restore.utils.redaction import redacted
from accel_restore.utils.signals import EXIT_CODE, StopRequest, listening

_running = threading.Lock()  # held while `fit` trains


def fit(
    config: dict | str | Path,
    *overrides: str,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    callbacks: Iterable[Callback] = (),
    cpu: bool = False,
    audit: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train, as `accel-restore train` does, and return the folder of the run.

    `config` is a YAML file or a mapping like one, in which `data.train.dataset` and `data.val.dataset` may be
    `datasets.Dataset` objects. Paths, tuples, numpy scalars and arrays are taken as YAML would give them. `overrides`
    are `key=value`. One training at a time runs in a process.

    `model`, `loss` and `callbacks` take the place of names in the configuration. A copy of `model` is trained, from the
    weights that it has now; a function or class that builds it serves models that cannot be copied. `loss` maps
    (output, gt) to one value per sample, (B,). `callbacks` come after those of the configuration. With several ranks,
    every rank passes the same objects, and the main process's weights count. To continue a run, pass them again.

    At the end, also after an exception, the process is as it was before. Restored are: environment variables; the
    random numbers of Python, numpy and torch; torch's deterministic algorithms, cuDNN's `benchmark` and
    `deterministic`, the number of threads, and dynamo's `recompile_limit`; warning filters; signal handlers;
    `sys.excepthook`, `sys.unraisablehook` and `sys.exit`; the states that Accelerators share, so that your own may have
    another precision; the verbosity and progress bars of `datasets`; the verbosity of W&B. Not changed are: Pillow's
    limits; torch's default dtype and TF32; loggers; the start method of processes; matplotlib's backend; malloc, which
    only commands tune (without it a step on CPUs is 15 to 20 % slower). What stays: imported modules; W&B's background
    process; with several ranks, the process group. A process that a launcher started ends when its launcher dies.

    Raises: UserError for wrong input, MemoryError, DivergedError, CallbackError, RunAbortedError, AuditError; when
    stopped by a signal, after saving: KeyboardInterrupt for SIGINT, otherwise SystemExit.
    """
    resolved = config_from(config, overrides) if isinstance(config, dict) else load_config(config, overrides)
    resolved = with_objects(resolved, model, loss, callbacks)
    with (
        _alone(),
        warnings.catch_warnings(),
        restored_globals(bool(resolved.train.compile)),
        restored_states(),
        listening() as stop,
    ):
        try:
            run_training(resolved, cpu=cpu, audit=audit, overwrite=overwrite, overrides=list(overrides), stop=stop)
        except PreemptedError as error:
            if stop.signal == signal.SIGINT:
                raise KeyboardInterrupt(*error.args) from error
            raise SystemExit(EXIT_CODE) from error
    return run_folder(resolved)


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second training in this process, in another thread or from within the first.

    Both would share the random numbers, precision and process group, and get other results than alone.
    """
    if not _running.acquire(blocking=False):
        raise UserError(
            "fit: another training is running in this process; wait until it has returned, or start each in a process "
            "of its own"
        )
    try:
        yield
    finally:
        _running.release()


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
    """Train as the configuration says. Every rank calls it.

    Raises: UserError, MemoryError, DivergedError, CallbackError, RunAbortedError, AuditError; PreemptedError when asked
    to stop, or after step `stop_after`.
    """
    check_settings(config.tracking)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata; `fit` restores the filters
    accelerator = create_accelerator(config, cpu)
    console = Console(accelerator.is_main_process)
    if not console.main:  # all ranks get the same warnings from libraries
        warnings.simplefilter("ignore")
    lock = RunLock(run_folder(config), console.log)
    ending = Ending(accelerator.process_index, overwrite)
    monitor = RankMonitor(accelerator, config.train.rank_timeout, ending.give_up)
    monitor.start()
    failed = True
    try:
        ending.run = prepare(config, accelerator, console, lock, audit, overwrite and not is_restarted(), overrides)
        if ending.run is not None:
            _fit(ending.run, monitor, stop, stop_after, audit)
        failed = False
    except PreemptedError as error:
        failed = False
        error.recorded = ending.run is not None
        ending.record(str(error), state="preempted")
        raise
    except PART_ERRORS as error:
        stop.is_over = True
        final = ending.explain(error, monitor)
        if final is error:
            raise
        raise final from error
    finally:
        monitor.close()
        if ending.run is not None:
            ending.run.close(failed)
        lock.release()


def _fit(run: RunContext, monitor: RankMonitor, stop: StopRequest, stop_after: int | None, audit: bool) -> None:
    """Train, and write what a finished run leaves."""
    callbacks = make_callbacks(run, monitor, stop, stop_after, audit)
    stop.may_save = True
    ended: BaseException | None = None
    try:
        train(run, callbacks, stop.__bool__)
    except BaseException as error:
        ended = error
    try:
        for callback in callbacks:
            callback.on_exit(run.state, ended)
    except BaseException as error:
        ended = error
        raise
    finally:
        run.own.close(run.state, ended)  # last: a commit at the end holds what they have counted
    if isinstance(ended, PreemptedError):
        raise PreemptedError(f"{stop} after step {run.state.step}")
    if ended is not None:
        raise ended
    if run.accelerator.is_main_process:
        run.write_status("finished", **stopped_by(run.state.stop_reason))
    report_result(run.console, run.folder, run.state)


def make_callbacks(
    run: RunContext, monitor: RankMonitor, stop: StopRequest, stop_after: int | None = None, audit: bool = False
) -> list[Callback]:
    """The callbacks of a run, in the order in which they are called. Opens the run's files."""
    config, accelerator, state, loader = run.config, run.accelerator, run.state, run.loader
    resolved = redacted(config.model_dump(mode="json"))
    run.log = log = RunLog(run.folder, state, accelerator.is_main_process, run.console)
    run.trackers = _open_trackers(run, resolved)
    if accelerator.is_main_process:
        run.drawings = Drawings(run.folder, run.console.log)
    samples = Samples(config.validation.num_samples, run.data.val, run.protocols)
    logger = MetricsLogger(
        log,
        state,
        accelerator,
        loader,
        run.trackers,
        every_steps=config.tracking.log_every_steps,
        window_sums=run.window_sums,
        monitor=config.validation.monitor,
    )
    limit = config.train.max_skipped_steps
    nan_monitor = NaNMonitor(accelerator, loader, run.loss_fn, limit, log.write, run.console.log)
    folder_check = FolderCheck(accelerator, run.lock)
    replica_check = ReplicaCheck(accelerator, config.train.check_ranks_every_steps)
    checkpointer = Checkpointer(
        config.checkpoint,
        accelerator,
        _commit_source(run, resolved),
        stages=loader.stages,
        logger=logger,
        folder_check=folder_check,
        replica_check=replica_check,
        writer=run.writer,
    )
    return [
        StragglerDetector(accelerator, loader, state, run.console.log),  # first: measures from step to step
        Heartbeat(monitor, loader, state),
        folder_check,  # before all that write
        ValidationProgress(run.console, len(run.data.val), accelerator.num_processes),
        # The user's: before all that must know whether the run stops early, and before the checkpointer, so that a
        # commit holds their state.
        *([run.own] if run.own.callbacks else []),
        # Before the logger: its line makes W&B look for the picture.
        ValidationPictures(log, samples, accelerator, state.epochs),
        *_preview_pictures(run, log, stop),
        logger,
        *_collapse_warning(run),  # after the logger, whose lines it reads
        Curves(run.drawings),
        nan_monitor,  # these two before the checkpointer: a diverged or damaged state is not committed
        replica_check,
        checkpointer,  # after the logger: the lines of a step are on disk before its commit
        # A user's error does not cost the commit of its step.
        *([AfterCommit(run.own, checkpointer.ends_epoch, checkpointer.wait)] if run.own.callbacks else []),
        # After the checkpointer; it raises, and `Checkpointer.on_exit` then commits.
        PreemptionCallback(accelerator, stop, stop_after, config.train.rank_timeout),
        *([Audit(run.folder, state, loader, accelerator, run.console.table)] if audit else []),
    ]


def _preview_pictures(run: RunContext, log: RunLog, stop: StopRequest) -> list[Callback]:
    if run.previews is None:
        return []
    protocol, epochs = run.protocols.whole, run.state.epochs
    return [PreviewPictures(log, run.previews, protocol, run.accelerator, epochs, stop.__bool__)]


def _collapse_warning(run: RunContext) -> list[Callback]:
    """The callback that warns of a collapse, on the main process of a run with a discriminator."""
    config, log = run.config, run.log
    if config.adversarial is None or log is None or not run.accelerator.is_main_process:
        return []
    every_steps = config.tracking.log_every_steps
    path = run.folder / "metrics.jsonl"
    return [CollapseWarning(path, config.adversarial, every_steps, log.write, run.console.log)]


def _commit_source(run: RunContext, resolved: dict[str, Any]) -> CommitSource:
    """The content of commits and best.safetensors other than the state of training."""
    config, plans = run.config, run.loader.stages.plans
    model = redacted(run.description)
    built = facts_of_model(unwrapped(run.state.model), model, redacted(run.taken))

    def counters() -> dict[str, Any]:
        return {
            "config": resolved,
            **built,
            "epochs": run.state.epochs,
            "objects": given_objects(config),
            "stopped": run.own.stop_reason(run.state),
            "callbacks": run.own.state_dicts(run.state),
            "global_batches": [plan.global_batch for plan in plans],
            "precision": run.accelerator.mixed_precision,
            "noise_by_batch": run.data.train.sets[0].degrade.by_batch,
            "data": run.data.found.facts,
            "wandb_id": run.trackers.wandb.id if run.trackers.wandb else None,
        }

    return CommitSource(
        counters, lambda state: _metadata(model, config, state, run.protocols, run.data.pixels), run.best
    )


def _open_trackers(run: RunContext, resolved: dict[str, Any]) -> Trackers:
    """TensorBoard and W&B of the main process; with `tracking.wandb_per_rank`, W&B of every other rank too."""
    tracking, accelerator = run.config.tracking, run.accelerator
    plan = {what: value for what, value in run.plan if what != "note"}
    id = run.start.counters["wandb_id"] if run.start.counters is not None and run.start.is_in(run.folder) else None
    tensorboard = wandb = None

    def open_wandb(rank: int) -> WandbLogger:
        content = {**resolved, "plan": plan}
        return WandbLogger(
            tracking, run.config.run.name, run.folder, content, accelerator.num_processes, id, run.console.log, rank
        )

    if accelerator.is_main_process:
        wandb = open_wandb(0)
        id = wandb.id
        if wandb.notice is not None:
            run.console.log(wandb.notice)
        if tracking.tensorboard:
            tensorboard = TensorBoardLogger(run.folder, resolved, accelerator.num_processes, run.console.log)
    if tracking.wandb_per_rank:
        id = gather_object([id])[0]
        if wandb is None and id is not None:
            wandb = open_wandb(accelerator.process_index)
    return Trackers(wandb, tensorboard)


def _metadata(
    model: dict[str, Any], config: Config, state: TrainState, protocols: SetProtocols, pixels: Pixels
) -> dict[str, str]:
    """The metadata of best.safetensors: enough to restore, and to know what its scores mean."""
    assert state.best is not None  # called when best weights have been found
    images, best = config.data.image_spec, dict(state.best)
    inputs = {} if images.keeps_channels else {"input_channels": images.input_channels}
    epoch, step = best.pop("epoch"), best.pop("step")
    return {
        "model": json.dumps(model),
        "data": json.dumps({"channels": images.channels, "scale": images.scale, **inputs, **pixels.metadata()}),
        "epoch": str(epoch),
        "step": str(step),
        "metrics": to_json(protocols.describe_scores(best)),
    }
