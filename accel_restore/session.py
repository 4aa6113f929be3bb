"""A training run from its configuration to its files: build, check, print the plan, train, say what came of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from accel_restore.audit import Audit
from accel_restore.checkpoint import load_commit, remove_leftovers, save_best
from accel_restore.config import Config
from accel_restore.console import Screen
from accel_restore.dashboard import Dashboard
from accel_restore.data.loader import TrainLoader
from accel_restore.data.order import Plan, make_plan
from accel_restore.data.sources import DataSets, open_data
from accel_restore.distributed import create_accelerator
from accel_restore.engine import TrainState, setup_model_and_optimizer, train
from accel_restore.errors import Diverged, UserError
from accel_restore.files import replace_file
from accel_restore.losses import build_loss
from accel_restore.optim import preview_rates
from accel_restore.parsing import to_yaml
from accel_restore.pictures import Samples
from accel_restore.quality import METRICS, Protocol
from accel_restore.records import read_status, write_status
from accel_restore.resume import Start, check_same_data, clear, find_start, identity_digest
from accel_restore.tracking import Saver, Tracker


def run_training(config: Config, *, cpu: bool, audit: bool, overwrite: bool, overrides: list[str]) -> None:
    """Train as the configuration says; every rank calls it.

    Raises: UserError, Diverged, AuditFailed.
    """
    accelerator = create_accelerator(config, cpu)
    screen = Screen(accelerator.is_main_process)
    folder = Path(config.run.dir).expanduser() / config.run.name
    start = _on_main(accelerator, lambda: find_start(folder, config, overwrite, overrides, screen.say))
    if start.finished:
        if accelerator.is_main_process and read_status(folder).get("state") == "running":
            _finish_status(folder, start.counters, accelerator)
        screen.say(f"{folder}: the run is finished ({start.counters['epoch']} epochs); --overwrite starts it again")
        return

    protocol = Protocol(config.validation.crop_border, config.validation.y_channel)
    smallest = protocol.smallest_side(config.validation.metrics)
    data = open_data(config.data, config.run.seed, smallest, accelerator.device, screen.say)
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
    loss_fn = build_loss(config.loss)
    state = setup_model_and_optimizer(config, accelerator, epochs)
    loader = TrainLoader(data.train, plan, accelerator, data.degrade, config.train.channels_last)
    if start.commit is not None:
        load_commit(start.commit, state, accelerator)

    if accelerator.is_main_process:
        _prepare_folder(folder, config, start)
        write_status(folder, "running", epoch=state.epoch, step=state.step, world_size=plan.world_size, best=state.best)
    accelerator.wait_for_everyone()
    screen.table("plan", _plan_rows(config, accelerator, plan, data, state, epochs, folder, start))
    try:
        _fit(config, accelerator, screen, folder, data, state, loader, loss_fn, epochs, start, protocol, audit)
    except BaseException as error:
        if accelerator.is_main_process:
            reached = {"epoch": state.epoch, "step": state.step, "world_size": plan.world_size, "best": state.best}
            write_status(folder, "diverged" if isinstance(error, Diverged) else "failed", **reached, error=str(error))
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
            "data": identity_digest(data.identity),
            "wandb_id": dashboard.id if dashboard else None,
        }

    def save(state: TrainState) -> None:
        save_best(folder / "best.safetensors", state, accelerator, _metadata(config, state, protocol))

    hooks = [tracker, Saver(folder, accelerator, config.checkpoint, loader, epochs, beside_counters)]
    audit_hook = Audit(folder, state, loader, accelerator) if audit else None
    if audit_hook is not None:
        hooks.append(audit_hook)

    def scored(metric: Callable) -> Callable:
        return lambda output, gt: metric(protocol.prepare(output), protocol.prepare(gt))

    metrics = {name: scored(METRICS[name]) for name in config.validation.metrics}
    try:
        train(state, loader, data.val, loss_fn, accelerator, config, epochs, hooks, metrics, save, samples.look)
    finally:
        tracker.close()
    if audit_hook is not None:
        audit_hook.report(screen.table)
    if main:
        _finish_status(folder, {"epoch": state.epoch, "step": state.step, "best": state.best}, accelerator)
        _say_result(screen, folder, state)


def _on_main(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """The result of an action that reads the run's folder, done by the main process, the same on all ranks."""
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [action()]
        except UserError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]


def _prepare_folder(folder: Path, config: Config, start: Start) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear(folder, start)
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
        "metrics": json.dumps({**best, "protocol": protocol.describe()}),
    }


def _plan_rows(
    config: Config,
    accelerator: Accelerator,
    plan: Plan,
    data: DataSets,
    state: TrainState,
    epochs: int,
    folder: Path,
    start: Start,
) -> list[tuple[str, str]]:
    """The resolved plan, as (what, value)."""
    at = sorted({0, epochs // 2, epochs - 1})
    rates = preview_rates(config.scheduler, config.optimizer.lr, epochs, at)
    if rates is None:
        rate = f"{config.optimizer.lr:.3g}, then as validation goes (plateau)"
    else:
        rate = " · ".join(f"epoch {epoch}: {value:.3g}" for epoch, value in zip(at, rates, strict=True))
    crop = f"{config.data.patch_size}x{config.data.patch_size}x{config.data.channels}"
    made = [f"{d.name} {d.arguments}".replace("{", "(").replace("}", ")") for d in config.data.degradation]
    source = "pairs" if data.train.input is not None else f"input made by {', '.join(made)}"
    precision = accelerator.mixed_precision
    if config.train.mixed_precision == "auto":
        precision += " (chosen by auto)"
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    rows = [
        ("devices", f"{plan.world_size} × {accelerator.device.type}"),
        ("data", f"{len(data.train.images)} images to train on, {len(data.val)} to validate; {source}"),
        ("crops", f"{crop} × {config.data.crops_per_image} per image, {', '.join(config.data.augment) or 'no flips'}"),
        ("samples per epoch", str(plan.num_samples)),
        (
            "global batch",
            f"{plan.global_batch} = {plan.batch_size} per device × {plan.accumulation} accumulated"
            f" × {plan.world_size} ranks",
        ),
        ("steps", f"{plan.steps_per_epoch} per epoch × {epochs} epochs = {plan.steps_per_epoch * epochs}"),
        ("learning rate", f"{config.scheduler.name}: {rate}"),
        ("precision", precision),
        ("model", f"{config.model.name}, {parameters:,} parameters"),
        ("written to", str(folder)),
    ]
    if start.commit is not None:
        rows.append(("continues", f"{start.commit.name}: epoch {state.epoch}, step {state.step}"))
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if any(isinstance(module, kinds) for module in state.model.modules()):
        rows.append(("note", "batch statistics or dropout: another number of devices gives another result"))
    return rows


def _say_result(screen: Screen, folder: Path, state: TrainState) -> None:
    best = state.best
    if best is None:
        screen.say(f"finished: no validation gave a number, so there is no {folder / 'best.safetensors'}")
        return
    gains = [f"{n} {best[f'input_{n}']:.2f} → {best[n]:.2f}" for n in ("psnr", "ssim") if f"input_{n}" in best]
    screen.say(f"finished: best epoch {best['epoch']}, {', '.join(gains) or 'loss {:.4g}'.format(best['loss'])}")
    screen.say(f"weights  {folder / 'best.safetensors'}")
    if (folder / "samples").is_dir():
        screen.say(f"look at  {folder / 'samples'}, {folder / 'curves.png'}")
    if (folder / "wandb").is_dir():
        screen.say(
            f"curves   wandb leet {folder / 'wandb'}, upload with: wandb sync {folder / 'wandb' / 'offline-run-*'}"
        )
