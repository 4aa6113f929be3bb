"""Convert the options: sections in the order in which they depend on each other, then comments on all other keys."""

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from math import gcd
from typing import Any

from accel_restore.config.convert.adversarial import convert_adversarial
from accel_restore.config.convert.data import convert_batches, convert_data
from accel_restore.config.convert.degradation import convert_degradation
from accel_restore.config.convert.draft import Draft
from accel_restore.config.convert.losses import convert_losses
from accel_restore.config.convert.networks import convert_network
from accel_restore.config.convert.optim import GENERATOR, convert_optimizer, convert_schedule, is_schedule_free
from accel_restore.config.convert.steps import Steps
from accel_restore.config.convert.tables import LOST, NUMBERS, SWITCHES, UNKNOWN, UNNEEDED
from accel_restore.errors import UserError

_CLIPPING = ("ImageRestorationModel", "ImageCleanModel")  # NAFNet's and Restormer's, which clip to a norm of 0.01
_METRICS = {"calculate_psnr": "psnr", "calculate_ssim": "ssim", "calculate_lpips": "lpips", "calculate_dists": "dists"}
_WEIGHTS = {"lpips": "alexnet-owt-7be5be79.pth", "dists": "vgg16-397923af.pth"}  # torchvision's


def convert(
    tree: dict,
    where: str,
    known: Collection[str],
    presets_of: Callable[[str], Collection[str]],
    arguments_of: Callable[[str], Collection[str] | None],
) -> Draft:
    """Return the draft of a configuration. See `convert_network` for the models that it takes.

    Raises: UserError if the tree is not an option file for training.
    """
    _check_kind(tree, where)
    draft = Draft(tree)
    kind = draft.peek("model_type")
    _convert_name(draft)
    steps = _convert_length(draft)
    convert_network(draft, known, presets_of, arguments_of)
    convert_data(draft)
    convert_degradation(draft)
    convert_batches(draft, steps)
    eps_is_squared = kind != "ImageCleanModel" and draft.peek("datasets.train.type") != "Dataset_PairedImage"
    convert_losses(draft, eps_is_squared)
    convert_optimizer(draft, GENERATOR)
    convert_schedule(draft, steps, draft.config["train"].get("max_steps"))
    convert_adversarial(draft)
    _convert_weights(draft)
    _convert_numbers(draft)
    _convert_training(draft, kind)
    _convert_validation(draft)
    _convert_logging(draft, steps)
    _explain_rounding(draft, steps)
    _comment_on_rest(draft)
    return draft


def _check_kind(tree: dict, where: str) -> None:
    found = [name for name in ("network_g", "train") if isinstance(tree.get(name), dict)]
    if isinstance(tree.get("data"), dict) and "network_g" not in found:
        raise UserError(f"{where}: is a configuration of accel_restore already; start it with accel-restore train")
    if found == ["network_g"]:
        raise UserError(f"{where}: has no section train; for an option file for testing, use accel-restore evaluate")
    if len(found) < 2:
        raise UserError(f"{where}: is not an option file of BasicSR or traiNNer-redux; it has no section network_g")


def _convert_name(draft: Draft) -> None:
    name = draft.take("name")
    if name is not None:
        folder = str(name).replace("/", "_").replace("\\", "_")
        draft.put("run.name", folder, "name")
        if folder != name:
            draft.change("name", f"the run's folder is {folder}")


def _convert_length(draft: Draft) -> Steps:
    """Carry the length of the run over. An epoch is as long as the time between two validations."""
    option = draft.first("val.val_freq", "logger.save_checkpoint_freq")
    length = draft.whole(option) if option == "val.val_freq" else draft.peek(option)
    if not isinstance(length, int | float) or not 1 <= length < 2**53:
        length = 1000
        draft.changes.append("The file has no val.val_freq, so an epoch has 1000 steps.")
    steps = Steps(int(length))
    draft.put("train.steps_per_epoch", steps.length, option)
    total = draft.first("train.total_iter", "train.total_iters", "logger.total_iter")
    count = draft.whole(total)
    if count is not None:
        draft.put("train.max_steps", count, total)
    else:
        draft.todo.append("train.max_steps: set the number of steps of the run")
    draft.changes.insert(
        0,
        f"An epoch has {steps.length} steps. Validation and the schedule step once per epoch, so the learning rate "
        "changes then, not after every step.",
    )
    return steps


def _convert_numbers(draft: Draft) -> None:
    for option, target, is_whole, least in NUMBERS:
        given = draft.peek(option)
        if isinstance(given, int | float) and given < least:
            continue  # off, which the tables explain
        value = draft.whole(option) if is_whole else draft.number(option)
        if value is not None:
            draft.put(target, value, option)
    if is_schedule_free(draft) and "ema_decay" in draft.config["train"]:
        draft.drop("train.ema_decay", "the optimizer is schedule-free, so it averages the weights itself")
    for option, target in SWITCHES:
        if isinstance(draft.peek(option), bool):
            draft.put(target, draft.take(option), option)


def _convert_weights(draft: Draft) -> None:
    """Carry the weights to start from over."""
    option = draft.first("path.pretrain_network_g", "path.pretrain_model_g")
    file = draft.take(option)
    strict = draft.first("path.strict_load_g", "path.strict_load")
    if isinstance(file, str) and file:
        draft.put("model.checkpoint", file, option)
        if draft.peek(strict) is False:
            draft.take(strict)
            draft.put("model.partial", True, strict)
        if draft.peek("path.param_key_g") == "params":
            draft.lose("path.param_key_g", "if the file has EMA weights, they are taken")
    elif file is not None:
        draft.refuse(option, "is not a file")
    if draft.peek("path.resume_state") is not None:
        draft.lose("path.resume_state", "a run continues from its own commits; start from weights by model.checkpoint")


def _convert_training(draft: Draft, kind: Any) -> None:
    """Carry precision and clipping over."""
    if draft.peek("use_amp") is not None:
        is_half = draft.peek("amp_bf16") is False or draft.peek("amp_bf16") is None
        if draft.flag("use_amp"):
            draft.take("amp_bf16")
            draft.put("train.mixed_precision", "fp16" if is_half else "bf16", "use_amp", "amp_bf16")
        else:
            draft.put("train.mixed_precision", "no", "use_amp")
    clips = draft.peek("train.use_grad_clip")
    if clips is True or (clips is None and kind in _CLIPPING):
        draft.put("train.max_grad_norm", 0.01, "train.use_grad_clip")
        draft.take("train.use_grad_clip")
        draft.changes.append(
            f"{kind or 'The trainer'} clips gradients to a norm of 0.01, so train.max_grad_norm is 0.01."
        )
    if draft.peek("train.grad_clip") is True:
        draft.put("train.max_grad_norm", 1.0, "train.grad_clip")
        draft.change("train.grad_clip", "gradients are clipped to a norm of 1 (train.max_grad_norm)")
    elif draft.is_positive("train.grad_clip"):
        draft.put("train.max_grad_norm", draft.take("train.grad_clip"), "train.grad_clip")
    if draft.peek("train.use_moa") is not True:
        draft.skip("train.use_moa", "pairs are not mixed")
        for name in draft.section("train"):
            if name.startswith("moa_"):
                draft.skip(f"train.{name}", "pairs are not mixed")


def _convert_validation(draft: Draft) -> None:
    """Carry the metrics over. BasicSR measures images of 8 bits, unless `use_image` is off."""
    if draft.peek("val.val_enabled") is False:
        draft.lose("val.val_enabled", "validation is always on: it decides which weights are best")
    metrics: dict[str, str] = {}
    for name, section in draft.section("val.metrics").items():
        option = f"val.metrics.{name}"
        kind = section.get("type") if isinstance(section, dict) else None
        if not isinstance(kind, str) or kind not in _METRICS or _METRICS[kind] in metrics:
            draft.lose(option, "accel_restore has no such metric; name your own as mypackage.scores:mine")
            continue
        draft.take(f"{option}.type")
        metrics[_METRICS[kind]] = option
        _convert_protocol(draft, option)
    if not metrics:
        return
    draft.put("validation.metrics", list(metrics), *metrics.values())
    if draft.peek("val.metrics_enabled") is False:
        draft.lose("val.metrics_enabled", "the metrics are always measured")
    draft.put("validation.monitor", next(iter(metrics)), *list(metrics.values())[:1])
    draft.changes.append(
        f"The weights with the best {next(iter(metrics))} become best.safetensors (validation.monitor)."
    )
    draft.put("validation.quantize", draft.peek("val.use_image") is not False, "val.use_image")
    for name in _WEIGHTS.keys() & metrics.keys():
        draft.put(f"validation.weights.{name}", _WEIGHTS[name], metrics[name])
        draft.todo.append(
            f"validation.weights.{name}: write where torchvision's {_WEIGHTS[name]} is; nothing is downloaded"
        )


def _convert_protocol(draft: Draft, option: str) -> None:
    """Carry the border and the luma of one metric over; all metrics here share them."""
    gray = draft.config.get("data", {}).get("channels") == 1
    for name, key in (("crop_border", "crop_border"), ("test_y_channel", "y_channel")):
        value = draft.take(f"{option}.{name}")
        if value is None:
            continue
        if key == "y_channel" and gray and value is True:
            draft.change(f"{option}.{name}", "gray images are luma already")
            continue
        target = f"validation.{key}"
        shared = draft.config.get("validation", {}).get(key, value)
        if shared != value:
            draft.refuse(f"{option}.{name}", f"all metrics share {target}, which is {shared}")
        else:
            draft.put(target, value, *draft.origins.get(target, ()), f"{option}.{name}")


def _convert_logging(draft: Draft, steps: Steps) -> None:
    """Carry commits and W&B over."""
    option = "logger.save_checkpoint_freq"
    every = draft.whole(option)
    if every is not None and every >= 1:
        epochs, rest = divmod(every, steps.length)
        draft.put(*(("checkpoint.every_steps", every) if rest else ("checkpoint.every_epochs", epochs)), option)
        draft.changes.append(
            "The two newest commits and best.safetensors are kept (checkpoint.keep), not one file for every checkpoint."
        )
    project = draft.take("logger.wandb.project")
    if project is not None:
        draft.put("tracking.project", project, "logger.wandb.project")
    else:
        draft.put("tracking.wandb", "disabled", "logger.wandb.project")


def _explain_rounding(draft: Draft, steps: Steps) -> None:
    """Say which length of an epoch would divide all numbers of steps."""
    if steps.rounded:
        exact = gcd(steps.length, *steps.rounded)
        draft.changes.append(
            f"Numbers of steps that are no multiple of {steps.length} are rounded; they are exact with "
            f"train.steps_per_epoch={exact} validation.every_epochs={steps.length // exact}, if the schedule and the "
            "stages count these epochs."
        )


def _comment_on_rest(draft: Draft) -> None:
    """Comment on all options that are still unread."""
    for option in list(draft.unread):
        value = draft.unread.get(option)
        if option not in draft.unread:  # commented on together with another one
            continue
        if value is None or value == {}:
            draft.skip(option, "is not set")
            continue
        lost = _reason(LOST, option)
        if reason := _reason(UNNEEDED, option):
            draft.skip(option, reason)
        elif lost and (value is False or value == 0):
            draft.skip(option, "is off")
        else:
            draft.lose(option, lost or UNKNOWN)


def _reason(table: dict[str, str], option: str) -> str | None:
    parts = option.split(".")
    for pattern, reason in table.items():
        wanted = pattern.split(".")
        if len(parts) >= len(wanted) and all(
            part == name or ("*" in name and fnmatchcase(part, name)) for part, name in zip(parts, wanted, strict=False)
        ):
            return reason
    return None
