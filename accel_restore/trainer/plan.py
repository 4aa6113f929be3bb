"""The plan of a run, printed before step 1: what it will do, on which devices and data, and where it is written."""

import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from accel_restore import __version__
from accel_restore.checkpoint.resume import Start
from accel_restore.config.schema import Config
from accel_restore.data.batch_plan import BatchPlan, BatchSchedule
from accel_restore.data.build import DataSets
from accel_restore.data.identity import find_shared, in_words
from accel_restore.data.training_sets import TrainingSet
from accel_restore.data.val_dataset import ValidationSets
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.models.parameters import unwrapped
from accel_restore.optim.ema import Average, EvalWeights
from accel_restore.optim.schedules import preview_learning_rates
from accel_restore.state import TrainState
from accel_restore.trainer.optim_check import small_optimizer
from accel_restore.utils.redaction import redacted
from accel_restore.utils.words import counted


def plan_rows(
    config: Config,
    accelerator: Accelerator,
    stages: BatchSchedule,
    data: DataSets,
    state: TrainState,
    epochs: int,
    folder: Path,
    start: Start,
) -> list[tuple[str, str]]:
    """Return the resolved plan as rows of (what, value)."""
    plan = stages.plans[-1]
    at = sorted({0, epochs // 2, epochs - 1})
    _, optimizer = small_optimizer(config, state.model, accelerator.device)
    lr = optimizer.param_groups[0]["lr"]
    rates = preview_learning_rates(config.scheduler, lr, epochs, at, optimizer)
    if rates is None:
        rate = f"{lr:.3g}, then lowered on plateaus of validation"
    else:
        rate = " · ".join(f"epoch {epoch + 1}: {value:.3g}" for epoch, value in zip(at, rates, strict=True))
    precision = accelerator.mixed_precision
    if config.train.mixed_precision == "auto":
        precision += " (chosen by auto)"
    rows = [
        ("devices", _devices(plan, accelerator)),
        *_data_rows(config, data, plan.patch_size),
        *_length_rows(stages, epochs),
        *_set_rows(config, data, stages, epochs),
        ("learning rate", f"{config.scheduler.name}: {rate}"),
        ("precision", precision),
        ("model", _model(config, unwrapped(state.model))),
        ("written to", str(folder)),
    ]
    rows += [
        (f"until epoch {end}", f"crops of {early.patch_size}, global batch {_batch_in_words(early)}")
        for end, early in zip(stages.ends, stages.plans, strict=False)
    ]
    rows += [("callback", _in_words(callback.name, callback.arguments)) for callback in config.callbacks]
    if config.train.early_stopping is not None:
        patience = counted(config.train.early_stopping.patience, "validation")
        rows.append(("early stopping", f"after {patience} without a better {config.validation.monitor}"))
    if config.scheduler.warmup_epochs >= epochs:
        warm_up = f"scheduler.warmup_epochs is {config.scheduler.warmup_epochs}, the epochs of the run are {epochs}"
        remedy = "for a short try, set scheduler.warmup_epochs=0"
        rows.append(("note", f"{warm_up}: the rate never reaches optimizer.lr; {remedy}"))
    if plan.batch_size != config.data.batch_size:
        rows.append(("note", f"data.batch_size is {config.data.batch_size}; a smaller one keeps the global batch"))
    made = {one.crops.input is None for one in data.train.sets} | {bool(one.synthetic_share) for one in data.train.sets}
    if made.isdisjoint(one.input is None for one in data.val.sets.values()):
        rows.append(("note", "only one of training and validation has its inputs made by degradation"))
    rows += [("note", note) for note in data.notes]
    if any(data.val.sets):
        sets = ", ".join(f"{name}: {counted(len(one), 'image')}" for name, one in data.val.sets.items())
        rows.append(("validation sets", f"{sets}; best by {config.validation.monitor}"))
    if accelerator.is_main_process and (shared := find_shared(data.identity)):  # it prints and writes the plan
        same = f"{len(shared)} of {len(data.val)} validation images are also training images"
        rows.append(("note", f"{same} (equal gt: {in_words(shared)}), so scores are too high"))
    if start.commit is not None:
        rows.append(
            ("continues", f"{start.commit.name}: {counted(state.epoch, 'epoch')}, {counted(state.step, 'step')} done")
        )
    return [*rows, *(("note", note) for note in _notes_on(state.model, state.ema))]


def _devices(plan: BatchPlan, accelerator: Accelerator) -> str:
    devices = f"{plan.world_size} × {accelerator.device.type}{', FSDP2' * accelerator.is_fsdp2}"
    threads = counted(torch.get_num_threads(), "thread") + " each" * (plan.world_size > 1)
    return f"{devices}, {threads}" if accelerator.device.type == "cpu" else devices


def _data_rows(config: Config, data: DataSets, patch_size: int) -> list[tuple[str, str]]:
    """Return the images, where they are read from, and the crops."""
    (first, *others) = data.train.sets
    images = sum(len(one.crops.images) for one in data.train.sets)
    source = f"{len(data.train.sets)} training sets" if others else _inputs(config, first)
    crop = f"{patch_size}x{patch_size}x{config.data.channels}"
    spec = config.data.image_spec
    crop += f" of gt, input {spec.scale} times smaller," if spec.scale > 1 else ""
    crop += "" if spec.keeps_channels else f" input of {counted(spec.input_channels, 'channel')},"
    crop += "" if others else f" × {first.crops.crops_per_image} per image"
    place = "memory" if data.fits_in_memory else "disk, ahead of training"
    return [
        ("data", f"{counted(images, 'image')} to train on, {len(data.val)} to validate; {source}"),
        ("decoded", f"{_bytes(data.nbytes)}, read from {place}"),
        ("crops", f"{crop}, {', '.join(config.data.augment) or 'no flips'}"),
    ]


def _set_rows(config: Config, data: DataSets, stages: BatchSchedule, epochs: int) -> list[tuple[str, str]]:
    """Return images, share and samples of each training set, where there are several."""
    if len(data.train.sets) == 1:
        return []
    rows, samples = [], _samples_per_epoch(stages, epochs)
    for one, part in zip(data.train.sets, data.train.mixed, strict=True):
        share = part.uses / sum(other.uses for other in data.train.mixed)
        images = f"{counted(len(one.crops.images), 'image')} × {counted(one.crops.crops_per_image, 'crop')}"
        used = share * samples
        passes = f"{used:.6g} of {samples} samples per epoch, {used / part.num_samples:.2f} passes over the set"
        rows.append((f"set {one.name}", f"{images}, {_inputs(config, one)}; share {share:.4g}: {passes}"))
    return rows


def _inputs(config: Config, one: TrainingSet) -> str:
    steps = config.data.degradation_of(config.data.train_sets[one.name])
    made = f"input made by {', '.join(_in_words(step.name, step.arguments) for step in steps)}"
    if one.crops.input is None:
        return made
    return f"pairs, {one.synthetic_share:.4g} of the samples with {made}" if one.synthetic_share else "pairs"


def _notes_on(model: nn.Module, average: Average | None = None) -> Iterator[str]:
    """Yield notes on what in the model makes the result depend on the number of ranks, and on batch statistics."""
    model.train()  # layers that are kept in eval mode stay in it
    if any(map(_drops, model.modules())):
        yield (
            "dropout or stochastic depth: continues bit-identically on the same number of ranks; another number draws "
            "other masks, so it gives another result"
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()):
        yield (
            "batch statistics are those of a rank's own micro-batch: another number of ranks or another batch_size "
            "gives another result"
        )
        if isinstance(average, EvalWeights):
            yield "batch statistics are those of the training weights; the optimizer validates and saves other weights"


def _drops(module: nn.Module) -> bool:
    """Return whether a module drops values or paths at random in training: a layer of torch, or one named like it."""
    kind = type(module).__name__.lower()
    rates = ("p", "prob", "rate") if "drop" in kind or "stochastic" in kind else ()
    return module.training and any(
        isinstance(value, float | int) and not isinstance(value, bool) and 0 < value <= 1
        for name, value in vars(module).items()
        if name in rates or "drop" in name.lower()
    )


def plan_record(
    rows: list[tuple[str, str]],
    epochs: int,
    steps: int,
    precision: str,
    protocols: SetProtocols,
    images: ValidationSets,
) -> dict[str, Any]:
    """Return the content of plan.json: the printed plan, length, precision, protocol, validation images, versions."""
    used = {name: version(name) for name in ("torch", "accelerate", "datasets", "numpy", "pillow")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    system = {"python": platform.python_version(), "cuda": torch.version.cuda or "none", "GPU": device}
    versions = {"accel_restore": __version__, **used, **system, "system": platform.platform()}
    measured: dict[str, Any] = {"protocol": protocols.describe(), "validation_images": images.names}
    if described := protocols.describe_sets():
        measured["validation_sets"] = {
            name: {"protocol": protocol, "images": images.sets[name].names} for name, protocol in described.items()
        }
    return redacted(
        {"plan": rows, "epochs": epochs, "steps": steps, "precision": precision, **measured, "versions": versions}
    )


def _samples_per_epoch(stages: BatchSchedule, epochs: int) -> int:
    """Return the samples of an epoch after the stages."""
    plan, length = stages.plans[-1], stages.steps_per_epoch
    return plan.num_samples if length is None else min(length, stages.num_steps(epochs)) * plan.global_batch


def _length_rows(stages: BatchSchedule, epochs: int) -> list[tuple[str, str]]:
    """Return samples and batch, after the stages; steps; passes over the samples, if an epoch is not one of them."""
    plan, total, length = stages.plans[-1], stages.num_steps(epochs), stages.steps_per_epoch
    samples, passes = _samples_per_epoch(stages, epochs), []
    if length is None:
        parts = [
            f"{early.one_pass(first).num_steps} per epoch × {counted(end - first, 'epoch')}"
            for early, first, end in stages.spans(epochs)
        ]
    else:
        length = min(length, total)
        full, rest = divmod(total, length)
        parts = [f"{length} per epoch × {counted(full, 'epoch')}"] + [f"{rest} in the last"] * (rest > 0)
        last = stages.epoch(epochs - 1)
        whole, each = ((count / plan.num_samples) for count in (last.first + last.num_samples, samples))
        passes = (
            []
            if len(plan.sets) > 1
            else [("passes", f"{whole:.2f} over {counted(plan.num_samples, 'sample')}, {each:.2f} per epoch")]
        )
    return [
        ("samples per epoch", str(samples)),
        ("global batch", _batch_in_words(plan)),
        ("steps", f"{' + '.join(parts)} = {total}"),
        *passes,
    ]


def _batch_in_words(plan: BatchPlan) -> str:
    ranks = counted(plan.world_size, "rank")
    parts = f"{plan.batch_size} per device × {plan.accumulation} accumulated × {ranks}"
    return f"{plan.global_batch} = {parts}"


def _model(config: Config, model: nn.Module) -> str:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    some = f"{trained:,} trained of " if trained < parameters else ""
    source = f", from {config.model.checkpoint}" if config.model.checkpoint else ""
    return f"{config.model.name or type(model).__name__}, {some}{parameters:,} parameters{source}"


def _in_words(name: str, arguments: dict[str, Any]) -> str:
    shown = {key: f"{counted(len(value), 'step')}" if key == "of" else value for key, value in arguments.items()}
    return f"{name}({', '.join(f'{key}={value}' for key, value in shown.items())})" if shown else name


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
