"""The callbacks of a run, and what they write: commits, metadata of the best weights, TensorBoard and W&B."""

import json
from typing import Any

from accelerate.utils import gather_object

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
from accel_restore.config.schema import Config
from accel_restore.data.pixels import Pixels
from accel_restore.distributed.heartbeat import RankMonitor
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.models.parameters import unwrapped
from accel_restore.state import Callback, TrainState
from accel_restore.tracking.drawings import Drawings
from accel_restore.tracking.pictures import Samples
from accel_restore.tracking.tensorboard_logger import TensorBoardLogger
from accel_restore.tracking.wandb_logger import WandbLogger
from accel_restore.trainer.continued_model import facts_of_model
from accel_restore.trainer.objects import given_objects
from accel_restore.trainer.run_context import RunContext
from accel_restore.utils.files import to_json
from accel_restore.utils.redaction import redacted
from accel_restore.utils.signals import StopRequest


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
