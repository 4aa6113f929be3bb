"""Turn validation errors into lines of `dotted.key: what is wrong; what to do`."""

import re
from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from accel_restore.config.base import DEFAULT_NAMES
from accel_restore.config.keys import sections_in
from accel_restore.config.optim import BY_PATH, OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS, OwnOptimizer, OwnSchedule
from accel_restore.config.schema import Config
from accel_restore.config.sets import NO_SECTIONS, SEVERAL
from accel_restore.utils.imports import did_you_mean, misspelt, nearest, unknown_choice, unknown_name

_CHOICES: dict[str, Mapping[str, type[BaseModel]]] = {
    "optimizer": OPTIMIZER_SECTIONS | {BY_PATH: OwnOptimizer},
    "scheduler": SCHEDULE_SECTIONS | {BY_PATH: OwnSchedule},
}
_MORE = {
    "optimizer": "torch.optim:RAdam or, after pip install 'accel-restore[optimizers]', pytorch_optimizer:Lion",
    "scheduler": "torch.optim.lr_scheduler:PolynomialLR",
}
_OF_PYDANTIC = frozenset(get_args(ErrorType))  # the messages of other kinds are our own, and complete
_IMAGES = "a folder, a pattern with {}, a list of folders, patterns or files, or a column of a dataset"

_EMPTY = {
    "data.degradation": "needs at least one step; remove the key for the default, or give inputs (data.train.input)"
}

# Keys of BasicSR's option files, and the keys here with the same meaning.
BASICSR_KEYS = {
    "datasets": "data",
    "dataroot_gt": "gt of data.train or data.val",
    "dataroot_lq": "input of data.train or data.val",
    "gt_size": "data.patch_size",
    "batch_size_per_gpu": "data.batch_size",
    "num_worker_per_gpu": "data.num_threads",
    "network_g": "model",
    "pretrain_network_g": "model.checkpoint",
    "total_iter": "train.max_steps",
    "optim_g": "optimizer",
    "network_d": "adversarial.discriminator",
    "optim_d": "adversarial.optimizer",
    "gan_opt": "adversarial.loss, and adversarial.weight",
    "pixel_opt": "loss",
    "perceptual_opt": "loss.perceptual",
    "ldl_opt": "loss.ldl",
    "net_d_iters": "adversarial.generator_every",
    "r1_reg_weight": "adversarial.r1",
    "val_freq": "train.steps_per_epoch, or validation.every_epochs, counted in epochs",
    "save_checkpoint_freq": "checkpoint.every_steps",
    "logger": "tracking",
    "manual_seed": "run.seed",
}


# Names that other trainers and commands use, and the keys here with the same meaning.
OTHER_NAMES = {
    "accumulation_steps": "train.gradient_accumulation_steps",
    "amp": "train.mixed_precision",
    "batch": "data.batch_size",
    "clip_grad_norm": "train.max_grad_norm",
    "crop_size": "data.patch_size",
    "data_dir": "data.train.gt",
    "dataset": "data.train.dataset",
    "ema": "train.ema_decay",
    "fp16": "train.mixed_precision",
    "gt": "data.train.gt",
    "input": "data.train.input",
    "epoch_length": "train.steps_per_epoch",
    "iterations": "train.max_steps",
    "iters_per_epoch": "train.steps_per_epoch",
    "learning_rate": "optimizer.lr",
    "limit_train_batches": "train.steps_per_epoch",
    "lr_scheduler": "scheduler.name",
    "max_epochs": "train.epochs",
    "max_iter": "train.max_steps",
    "name": "run.name",
    "num_epochs": "train.epochs",
    "num_workers": "data.num_threads",
    "output": "run.dir",
    "output_dir": "run.dir",
    "precision": "train.mixed_precision",
    "pretrained": "model.checkpoint",
    "save_dir": "run.dir",
    "val_dir": "data.val.gt",
    "warmup": "scheduler.warmup_epochs",
    "wd": "optimizer.weight_decay",
    "weights": "model.checkpoint",
    "workers": "data.num_threads",
}
_DEPEND_ON_SECTION = (  # what these keys mean
    "name", "dir", "train", "weight", "weights", "every_epochs", "every_steps", "optimizer", "scheduler", "loss",
)  # fmt: skip


def explain(detail: ErrorDetails) -> list[str]:
    """Return the lines for one error of pydantic."""
    kind = detail["type"]
    if kind == "inconsistent":  # the message has the dotted keys
        return detail["msg"].splitlines()
    if kind == "default_factory_not_called":  # it needs a section that has an error of its own
        return []
    section, path = _locate(detail["loc"])
    if kind == "extra_forbidden":
        name = str(detail["loc"][-1])
        if path[-1:] != [name]:  # the key has no form that any key has
            path.append(name or "''")
        return [f"{'.'.join(path)}: unknown key; {_hint('.'.join(path), path[-1], section)}"]
    key = ".".join(path)
    if kind == "source":  # each line starts with what follows the section's key
        return [f"{key}{line}" for line in detail["msg"].splitlines()]
    if kind == NO_SECTIONS:
        return [_explain_set(key, str(name), value, section) for name, value in detail["ctx"]["sets"].items()]
    if kind == "union_tag_invalid":
        text = unknown_name(str(detail["ctx"]["tag"]), _quoted(detail["ctx"]["expected_tags"]))
        return [f"{key}.name: {text}; others have import paths, such as {_MORE[path[-1]]}"]
    return [f"{key}: {_explain_value(detail, path, section)}"]


def _explain_set(key: str, name: str, value: object, section: type[BaseModel] | None) -> str:
    """Return the line for a text in place of a named set, whose name may also be meant as a key."""
    is_of_others = name in BASICSR_KEYS or name in OTHER_NAMES
    if is_of_others or (section and misspelt(name, list(section.model_fields))):
        return f"{key}.{name}: unknown key; {_hint(f'{key}.{name}', name, section)}"
    return f"{key}.{name}: a set is a section; write {{{name}: {{gt: {value!s:.200}}}}}"


_REMEDIES = {"list_type": "; put it in brackets: [...]"}  # by kind of error


def _explain_value(detail: ErrorDetails, path: list[str], section: type[BaseModel] | None) -> str:
    kind, value, message = detail["type"], detail["input"], detail["msg"]
    if kind not in _OF_PYDANTIC:
        return message
    if kind == "missing":
        return f"missing; set it in the file or as {'.'.join(path)}=..."
    if kind == "literal_error":
        return _explain_choice(value, detail["ctx"]["expected"])
    if path[0] == "loss" and kind in ("float_type", "dict_type", "greater_than", "finite_number"):
        return f"must be a weight above 0 or a section {{weight: ..., ...}}, not {value!r}"
    if path[-1] in ("input", "gt") and kind in ("string_type", "list_type"):
        return f"must be {_IMAGES}, not {value!r}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"must be text, not {value!r}; put it in quotes: {path[-1]}: '{value}'"
    if kind == "too_short":
        return _EMPTY.get(".".join(path), "is empty; give at least one item, or remove the key")
    if kind in ("model_type", "model_attributes_type"):
        if isinstance(value, str) and (place := ".".join(path)) in DEFAULT_NAMES:
            return f"is a section; write {place}.name={value:.80}, or {path[-1]}: {{name: {value:.80}}} in a file"
        return f"must be a section such as {_example_of(section)}, not {value!r}"
    return f"{message[0].lower()}{message[1:]}, not {value!r}{_REMEDIES.get(kind, '')}"


def _example_of(section: type[BaseModel] | None) -> str:
    """Return a section with its first key that has a number or text as its default; with `gt` for images."""
    fields = section.model_fields if section else {}
    if "gt" in fields:
        return "{gt: FOLDER}"
    plain = (key for key, field in fields.items() if isinstance(field.default, int | float | str) and field.default)
    key = next(plain, None)
    return f"{{{key}: {fields[key].default}}}" if key else "{key: value}"


def _explain_choice(value: object, expected: str) -> str:
    expected = expected.replace("False", "'false'").replace("True", "'true'")  # as in YAML
    if isinstance(value, str) and (choices := _quoted(expected)):
        return unknown_choice(value, choices)
    return f"must be {expected}, not {value!r}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _locate(location: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """Return the section of an error and its dotted path, without the parts that pydantic adds for unions."""
    section: type[BaseModel] | None = Config
    path: list[str] = []
    last = 0  # the position of the last key
    for position, part in enumerate(location):
        if position and location[position - 1] == SEVERAL:  # the name of a set
            path.append(str(part))
            continue
        choices = _CHOICES.get(path[-1], {}) if path else {}
        if position - last in (1, 2) and part in choices:  # after the kind of name
            section = choices[str(part)]
        elif isinstance(part, int):  # the sections of a list are of one kind
            path.append(str(part))
        elif re.fullmatch(r"\w[\w:.-]*", part) and not _is_of_union(part, path):
            path.append(part)
            last = position
            inner = _inner_section(section, part)
            section = inner if inner is not None else (section if position == len(location) - 1 else None)
    return section, path


def _is_of_union(part: str, path: list[str]) -> bool:
    """Return whether a part of a location names a member of a union rather than a key."""
    return (path[:1] == ["loss"] and len(path) == 2) or part in ("str", "float") or part.startswith("constrained-")


def _inner_section(section: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    field = section.model_fields.get(key) if section else None
    return next(iter(sections_in(field.annotation)), None) if field else None


def _hint(key: str, name: str, section: type[BaseModel] | None) -> str:
    if name in BASICSR_KEYS:
        return f"BasicSR's {name} corresponds to {BASICSR_KEYS[name]}"
    known, elsewhere = list(section.model_fields) if section else [], _keys_of_sections()
    place = key.removesuffix(name)
    guesses = (
        place + guess if (guess := misspelt(name, known)) else None,
        suggest_key(name) if key == name else elsewhere.get(name) or OTHER_NAMES.get(name),
        place + guess if (guess := did_you_mean(name, known)) else None,
    )
    for guess in guesses:
        if guess and guess != key:  # equal: the key belongs to another choice of the section's name
            return f"did you mean '{guess}'?"
    return f"known keys: {', '.join(known)}" if known else "remove it"


def suggest_key(name: str) -> str | None:
    """Return the dotted key that a name without a section, such as `lr` or `batch-size`, stands for, or None."""
    keys = OTHER_NAMES | _keys_of_sections()
    if name.replace("-", "_") in keys:
        return keys[name.replace("-", "_")]
    words = set(name.lower().replace("-", "_").split("_"))
    holding = {keys[other] for other in keys if len(name) > 2 and words <= set(other.split("_"))}
    found = holding if len(holding) == 1 else {keys[other] for other in nearest(name, keys)}
    return found.pop() if len(found) == 1 else None


def _keys_of_sections() -> dict[str, str]:
    """Map each key of a section to its dotted key; of equal keys, the key of the first section is kept."""
    return {
        key: f"{name}.{key}"
        for name, field in reversed(Config.model_fields.items())
        for section in sections_in(field.annotation)
        for key in section.model_fields
        if key not in _DEPEND_ON_SECTION
    }
