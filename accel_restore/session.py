"""A training run from its configuration to its files: build, check, print the plan, train, say what came of it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.audit import Audit
from accel_restore.checkpoint import load_commit, remove_leftovers, save_best
from accel_restore.config import Config
from accel_restore.console import Screen
from accel_restore.dashboard import Dashboard
from accel_restore.data.loader import TrainLoader
from accel_restore.data.order import make_plan
from accel_restore.data.sources import DataSets, open_data
from accel_restore.distributed import create_accelerator
from accel_restore.engine import TrainState, setup_model_and_optimizer, train
from accel_restore.errors import AuditFailed, Diverged, UserError
from accel_restore.files import replace_file, to_json
from accel_restore.losses import build_loss
from accel_restore.models import build_model
from accel_restore.parsing import config_from, load_config, to_yaml
from accel_restore.pictures import Samples
from accel_restore.plan import plan_rows
from accel_restore.quality import METRICS, Protocol
from accel_restore.records import read_status, write_status
from accel_restore.resume import Start, check_same_data, clear, find_start, identity_digest
from accel_restore.tracking import Saver, Tracker


def fit(
    config: dict | str | Path, *overrides: str, cpu: bool = False, audit: bool = False, overwrite: bool = False
) -> Path:
    """The folder of the run that it trains: `accel-restore train` from Python.

    `config` is a YAML file or a mapping like one, in which `data.train.dataset` and `data.val.dataset` may be
    `datasets.Dataset` objects; `overrides` are `key=value`.

    Raises: UserError for wrong input, Diverged, AuditFailed.
    """
    resolved = config_from(config, overrides) if isinstance(config, dict) else load_config(config, overrides)
    run_training(resolved, cpu=cpu, audit=audit, overwrite=overwrite, overrides=list(overrides))
    return Path(resolved.run.dir).expanduser() / resolved.run.name


def run_training(config: Config, *, cpu: bool, audit: bool, overwrite: bool, overrides: list[str]) -> None:
    """Train as the configuration says; every rank calls it.

    Raises: UserError, Diverged, AuditFailed.
    """
    accelerator = create_accelerator(config, cpu)
    screen = Screen(accelerator.is_main_process)
    folder = Path(config.run.dir).expanduser() / config.run.name
    precision = accelerator.mixed_precision
    start = _together(
        accelerator, lambda: find_start(folder, config, overwrite, overrides, precision, screen.say), only_main=True
    )
    if start.finished:
        _say_finished(folder, start, accelerator, screen, audit)
        return

    loss_fn = build_loss(config.loss)  # wrong arguments show before images are decoded
    build_model(config.model.name, config.model.arguments, config.data.channels, config.data.scale)
    protocol = Protocol(config.validation.crop_border, config.validation.y_channel)
    smallest = protocol.smallest_side(config.validation.metrics)
    builder = Screen(True)  # whichever rank decodes the images shows it
    data = _together(
        accelerator,
        lambda: open_data(config.data, config.run.seed, smallest, accelerator.device, builder.track, screen.say),
    )
    seen = gather_object([identity_digest(data.identity)])
    if others := [rank for rank, digest in enumerate(seen) if digest != seen[0]]:
        raise UserError(f"data: rank {others[0]} sees other images than rank 0; all machines must hold the same")
    check_same_data(start, identity_digest(data.identity))
    plan = make_plan(
        len(data.train),
        config.data.batch_size,
        config.train.gradient_accumulation_steps,
        start.global_batch or config.train.global_batch_size,
        accelerator.num_processes,
        config.run.seed,
    )
    epochs = config.train.epochs
    if config.train.max_steps is not None:
        epochs = -(-config.train.max_steps // plan.steps_per_epoch)
    state = setup_model_and_optimizer(config, accelerator, epochs)
    loader = TrainLoader(
        data.train, plan, accelerator, data.degrade, config.train.channels_last, config.data.num_threads
    )
    if start.commit is not None:
        _together(accelerator, lambda: load_commit(start.commit, state, accelerator))
        if not start.commit.resolve().is_relative_to(folder.resolve()):
            state.best_val_loss, state.best = math.inf, None  # the best weights lie in the other run's folder
        if epochs < state.epoch:
            raise UserError(f"train.epochs: {epochs}, but {start.commit} has completed {state.epoch}; raise it")

    _together(accelerator, lambda: _prepare_folder(folder, config, start, state, plan.world_size), only_main=True)
    screen.table("plan", plan_rows(config, accelerator, plan, data, state, epochs, folder, start))
    try:
        _fit(config, accelerator, screen, folder, data, state, loader, loss_fn, epochs, start, protocol, audit)
    except BaseException as error:
        if accelerator.is_main_process:
            reached = {"epoch": state.epoch, "step": state.step, "world_size": plan.world_size, "best": state.best}
            write_status(
                folder,
                "diverged" if isinstance(error, Diverged) else "failed",
                **reached,
                error=str(error) or type(error).__name__,
            )
        raise


def _fit(
    config: Config,
    accelerator: Accelerator,
    screen: Screen,
    folder: Path,
    data: DataSets,
    state: TrainState,
    loader: TrainLoader,
    loss_fn: Callable,
    epochs: int,
    start: Start,
    protocol: Protocol,
    audit: bool,
) -> None:
    """Attach what observes the loop, train, and write what a finished run leaves."""
    main, resolved = accelerator.is_main_process, config.model_dump(mode="json")
    samples = Samples(config.validation.num_samples, data.val.names)
    dashboard = None
    if main:
        wandb_id = start.counters["wandb_id"] if start.counters else None
        dashboard = Dashboard(
            config.tracking, config.run.name, folder, resolved, loader.plan.world_size, wandb_id, screen.say
        )
    tracker = Tracker(
        folder,
        state,
        accelerator,
        loader,
        epochs=epochs,
        log_every_steps=config.tracking.log_every_steps,
        screen=screen,
        samples=samples,
        dashboard=dashboard,
    )

    def beside_counters() -> dict[str, Any]:
        return {
            "config": resolved,
            "epochs": epochs,
            "global_batch": loader.plan.global_batch,
            "precision": accelerator.mixed_precision,
            "data": identity_digest(data.identity),
            "wandb_id": dashboard.id if dashboard else None,
        }

    def save(state: TrainState) -> None:
        save_best(folder / "best.safetensors", state, accelerator, _metadata(config, state, protocol))

    hooks = [tracker, Saver(folder, accelerator, config.checkpoint, loader, epochs, tracker, beside_counters)]
    audit_hook = Audit(folder, state, loader, accelerator) if audit else None
    if audit_hook is not None:
        hooks.append(audit_hook)

    def scored(metric: Callable) -> Callable:
        return lambda output, gt: metric(protocol.prepare(output), protocol.prepare(gt))

    metrics = {name: scored(METRICS[name]) for name in config.validation.metrics}
    try:
        train(state, loader, data.val, loss_fn, accelerator, config, epochs, hooks, metrics, save, samples.look)
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)
    if audit_hook is not None:
        audit_hook.report(screen.table)
    if main:
        _finish_status(folder, {"epoch": state.epoch, "step": state.step, "best": state.best}, accelerator)
        _say_result(screen, folder, state)


def _together(accelerator: Accelerator, action: Callable[[], Any], only_main: bool = False) -> Any:
    """The result of an action on every rank, or the main process's; a UserError of one rank is raised on all."""
    result, error = None, None
    if accelerator.is_main_process or not only_main:
        try:
            result = action()
        except UserError as raised:
            error = raised
    ranks = gather_object([(error, result if only_main else None)])
    if errors := [raised for raised, _ in ranks if raised is not None]:
        raise errors[0]
    return ranks[0][1] if only_main else result


def _say_finished(folder: Path, start: Start, accelerator: Accelerator, screen: Screen, audit: bool) -> None:
    """Tell that there is nothing to do; an audit that failed, or was never made, stays an error."""
    audited = folder / "audit.json"
    if audited.exists() and not json.loads(audited.read_bytes())["ok"]:
        raise AuditFailed(f"{folder}: the run is finished, but its audit failed: see {audited}")
    if audit and not audited.exists():
        raise UserError(f"{folder}: the run is finished and was not audited; --overwrite --audit starts it again")
    if accelerator.is_main_process and read_status(folder).get("state") == "running":
        _finish_status(folder, start.counters, accelerator)
    screen.say(f"{folder}: the run is finished ({start.counters['epoch']} epochs); --overwrite starts it again")


def _prepare_folder(folder: Path, config: Config, start: Start, state: TrainState, world_size: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear(folder, start)
        write_status(folder, "running", epoch=state.epoch, step=state.step, world_size=world_size, best=state.best)
        remove_leftovers(folder / "checkpoints")
        replace_file(folder / "config.yaml", to_yaml(config).encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set run.dir or run.name") from error


def _finish_status(folder: Path, counters: dict[str, Any], accelerator: Accelerator) -> None:
    write_status(
        folder,
        "finished",
        epoch=counters["epoch"],
        step=counters["step"],
        world_size=accelerator.num_processes,
        best=counters["best"],
    )


def _metadata(config: Config, state: TrainState, protocol: Protocol) -> dict[str, str]:
    """What best.safetensors holds beside the weights, enough to restore and to know what its scores mean."""
    best = dict(state.best)
    epoch, step = best.pop("epoch"), best.pop("step")
    return {
        "model": json.dumps({"name": config.model.name, "arguments": config.model.arguments}),
        "data": json.dumps({"channels": config.data.channels, "scale": config.data.scale}),
        "epoch": str(epoch),
        "step": str(step),
        "metrics": to_json({**best, "protocol": protocol.describe()}),
    }


def _say_result(screen: Screen, folder: Path, state: TrainState) -> None:
    best = state.best
    if best is None:
        screen.say(f"finished: no validation gave a number, so there is no {folder / 'best.safetensors'}")
        return
    shown = [("psnr", "{:.2f} dB (input {:.2f})"), ("ssim", "{:.4f} (input {:.4f})")]
    gains = [f"{n} {text.format(best[n], best[f'input_{n}'])}" for n, text in shown if n in best]
    screen.say(f"finished: best epoch {best['epoch']}: {', '.join(gains) or 'loss {:.4g}'.format(best['loss'])}")
    screen.say(f"weights  {folder / 'best.safetensors'}")
    if (folder / "samples").is_dir():
        screen.say(f"look at  {folder / 'samples'}, {folder / 'curves.png'}")
    if (folder / "wandb").is_dir():
        screen.say(
            f"W&B      wandb leet {folder / 'wandb'}, upload with: wandb sync {folder / 'wandb' / 'offline-run-*'}"
        )
