"""From YAML and `key=value` overrides to a checked `Config`; all mistakes are reported at once, with suggestions."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from accel_restore.config.safe_yaml import MOST_BYTES, Dumper, parse_yaml, plain_copy
from accel_restore.config.schema import DEFAULT_NAMES, OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS, Config
from accel_restore.errors import UserError, raise_problems
from accel_restore.utils.imports import did_you_mean, unknown_choice
from accel_restore.utils.redaction import redacted

_LONGEST_PROBLEM = 500  # characters: a value may be as long as its file
# Kinds of errors of our own validators, which need no more words.
_WORDED = {
    "unknown_choice", "dataset", "accumulation", "monitor", "nesterov", "patch_size", "stages", "tile", "home",
    "batch_size",
}  # fmt: skip


def shipped(folder: str, name: str) -> Path:
    """The path of a file that ships with the package: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    for root in (package.parent, package):
        if (root / folder / name).is_file() and (root / "pyproject.toml").is_file() == (root != package):
            return root / folder / name
    raise UserError(f"{folder}/{name}: not installed with this package; name a file of your own with --config")


def read_mapping(path: Path) -> dict:
    """The top-level mapping of a YAML file."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)  # a device or a pipe may have no end
        text = data.decode()
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a configuration ({error})") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: has more than {MOST_BYTES // 2**20} MB; name folders or patterns instead of files")
    tree = parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a configuration is a mapping of sections, such as 'data:' and 'model:'")
    return tree


def apply_override(tree: dict, override: str) -> None:
    """Set one dotted key of `tree`; a mapping replaces the whole subtree. Elements of lists go by number."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")) or not key.isprintable():
        raise UserError(f"'{override}': not an override; write key=value, such as data.batch_size=4")
    value = parse_yaml(text, key)
    *parents, last = key.split(".")
    node: Any = tree
    for depth, name in enumerate(parents):
        if isinstance(node, list):
            node = node[_index(node, name, key)]
        else:
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
        if not isinstance(node, dict | list):
            above = ".".join(parents[: depth + 1])
            raise UserError(f"{key}: '{above}' is the value {node!r}, not a section; set {above}={{...}}")
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    else:
        node[last] = value


def _index(items: list, name: str, key: str) -> int:
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(items):
        raise UserError(f"{key}: '{name}' is not one of the elements 0 to {len(items) - 1}")
    return int(name)


def _forget_former_choice(tree: dict, overrides: list[str]) -> None:
    """Where an override changes a section's `name`, drop the file's arguments that the new choice does not have."""
    for section, choices in (("model", {}), ("optimizer", OPTIMIZER_SECTIONS), ("scheduler", SCHEDULE_SECTIONS)):
        former = tree.get(section)
        texts = [text for key, _, text in (o.partition("=") for o in overrides) if key == f"{section}.name"]
        if not texts or not isinstance(former, dict):
            continue
        name = parse_yaml(texts[-1], f"{section}.name")
        if name != former.get("name", DEFAULT_NAMES[section]):
            known = choices[name].model_fields if isinstance(name, str) and name in choices else {"name"}
            tree[section] = {key: value for key, value in former.items() if key in known}


def load_config(path: str | Path | None = None, overrides: list[str] | tuple = ()) -> Config:
    """The checked configuration of a YAML file (None: the demo) and `key=value` overrides, later ones winning.

    Raises: UserError that lists every mistake with its dotted key.
    """
    path = Path(path) if path is not None else shipped("configs", "demo.yaml")
    return config_from(read_mapping(path), list(overrides), str(path))


def load_run_config(folder: Path) -> Config:
    """The configuration of the run in a folder. Raises: UserError."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: is not the folder of a run, it has no config.yaml")
    return load_config(file)


def config_from(tree: dict, overrides: list[str] | tuple = (), where: str = "configuration") -> Config:
    """The checked configuration of a mapping and overrides; see `load_config`."""
    tree = plain_copy(tree, where)
    problems: list[str] = []
    given: list[str] = []  # mistakes in the overrides themselves
    with suppress(UserError):  # an override that is no YAML is reported when it is applied
        _forget_former_choice(tree, list(overrides))
    for override in overrides:
        try:
            apply_override(tree, override)
        except UserError as error:
            given.append(str(error))
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        keys = [override.partition("=")[0] for override in overrides]
        for line in dict.fromkeys(line for detail in error.errors() for line in _explain(detail)):
            (given if _is_set_by(keys, line) else problems).append(line)
    _raise_all(problems, given, where)
    return config


def _is_set_by(keys: list[str], problem: str) -> bool:
    """Whether the key that a problem begins with was set by an override of one of `keys`, or of a section above it."""
    wrong = problem.partition(": ")[0]
    return any(f"{wrong}.".startswith(f"{key}.") for key in keys)


def _raise_all(problems: list[str], given: list[str], where: str) -> None:
    """Raise `UserError` with the problems of the file `where` and those that were `given` as key=value, if any."""
    if given and problems:
        where, given = f"{where} and the command line", [f"{problem} (on the command line)" for problem in given]
    elif given:
        where = "command line (key=value)"
    found = [p if len(p) <= _LONGEST_PROBLEM else f"{p[:_LONGEST_PROBLEM]}..." for p in [*given, *problems]]
    raise_problems(f"{where}: {len(found)} error{'s' * (len(found) != 1)} in the configuration", found)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `--config` reads back to the same run; secrets are hidden in it."""
    tree = redacted(config.model_dump(mode="json"))
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def _explain(detail: dict) -> list[str]:
    """One pydantic error as lines of `dotted.key: what is wrong; remedy`."""
    section, path = _locate(detail["loc"])
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden" and path[-1:] != [str(detail["loc"][-1])]:
        path.append(str(detail["loc"][-1]) or "''")  # a key that looks like nothing that a section has
    key = ".".join(path)
    if kind == "extra_forbidden":
        hint = _key_hint(path[-1], section)
        if f"'{key}'" in hint:  # it belongs to another choice of the section's name
            hint = f"known here: {', '.join(section.model_fields)}"
        return [f"{key}: unknown key; {hint}"]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        if choices and isinstance(given, str):
            return [f"{key}: {unknown_choice(given, choices)}"]
        return [f"{key}: must be {detail['ctx']['expected']}, not {given!r}"]
    if kind == "union_tag_invalid":
        choices = re.findall(r"'([^']*)'", detail["ctx"]["expected_tags"])
        return [f"{key}.name: {unknown_choice(str(detail['ctx']['tag']), choices)}"]
    if kind == "inconsistent":
        return detail["msg"].splitlines()
    if kind == "source":
        return [f"{key}{line}" for line in detail["msg"].splitlines()]
    if path[0] == "loss" and kind in ("float_type", "dict_type", "greater_than", "finite_number"):
        return [f"{key}: must be a weight above 0 or a section {{weight: ..., ...}}, not {given!r}"]
    if path[-1] in ("input", "gt") and kind in ("string_type", "list_type"):
        return [
            f"{key}: must be a folder, a pattern with {{}}, a list of those or of files, or a column, not {given!r}"
        ]
    if kind == "default_factory_not_called":  # for want of a section that is in error itself
        return []
    if kind == "missing":
        return [f"{key}: missing; give it in the file or as {key}=..."]
    if kind == "model_type" or kind == "model_attributes_type":
        return [f"{key}: must be a section of keys such as {{key: value}}, not {given!r}"]
    if kind in _WORDED:
        return [f"{key}: {detail['msg']}"]
    return [f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}, not {given!r}"]


def _locate(location: tuple) -> tuple[type[BaseModel] | None, list[str]]:
    """The section that an error lies in, and its dotted path without what pydantic adds for unions."""
    section: Any = Config
    path: list[str] = []
    for position, part in enumerate(location):
        tags = {"optimizer": OPTIMIZER_SECTIONS, "scheduler": SCHEDULE_SECTIONS}.get(path[0], {}) if path else {}
        if position == 1 and part in tags:
            section = tags[part]
        elif isinstance(part, int) or (isinstance(part, str) and re.fullmatch(r"\w[\w:.-]*", part)):
            if path and path[0] == "loss" and len(path) == 2:
                continue  # which member of the union was tried
            if part in ("str", "float") or str(part).startswith(("list[", "dict[", "constrained-")):
                continue
            path.append(str(part))
            if isinstance(part, int):  # the sections of a list are of one kind
                continue
            field = section.model_fields.get(part) if isinstance(section, type) else None
            inner = _section_of(field.annotation) if field else None
            section = inner if inner is not None else (section if position == len(location) - 1 else None)
    return section, path


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


# Keys of BasicSR's option files, and what means the same here.
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
    "pixel_opt": "loss",
    "perceptual_opt": "loss.perceptual",
    "val_freq": "validation.every_epochs, counted in epochs",
    "save_checkpoint_freq": "checkpoint.every_steps",
    "logger": "tracking",
    "manual_seed": "run.seed",
}


def _key_hint(name: str, section: type[BaseModel] | None) -> str:
    if name in BASICSR_KEYS:
        return f"BasicSR's {name} is here {BASICSR_KEYS[name]}"
    known = list(section.model_fields) if section else []
    guess = did_you_mean(name, known)
    if guess:
        return f"did you mean '{guess}'?"
    elsewhere = {
        key: f"{part}.{key}"
        for part, field in reversed(Config.model_fields.items())  # of equal names the first section's stays
        for inner in [_section_of(field.annotation)]
        + (
            list(OPTIMIZER_SECTIONS.values())
            if part == "optimizer"
            else list(SCHEDULE_SECTIONS.values())
            if part == "scheduler"
            else []
        )
        if inner is not None
        for key in inner.model_fields
        if key not in ("name", "dir", "train")
    }
    guess = did_you_mean(name, elsewhere)
    if guess:
        return f"did you mean '{elsewhere[guess]}'?"
    return f"known here: {', '.join(known)}" if known else "remove it"
