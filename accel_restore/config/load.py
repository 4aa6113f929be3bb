"""From YAML and `key=value` overrides to a checked `Config`; all mistakes are reported at once, with suggestions."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from accel_restore.config.explain import explain
from accel_restore.config.optim import OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS
from accel_restore.config.safe_yaml import MAX_BYTES, Dumper, parse_yaml, plain_copy
from accel_restore.config.schema import DEFAULT_NAMES, Config
from accel_restore.errors import UserError, raise_problems
from accel_restore.utils.redaction import redacted

_MAX_PROBLEM_LENGTH = 500  # characters; a problem quotes the value, which may be as long as the file


def shipped(folder: str, name: str) -> Path:
    """Return the path of a file that ships with accel_restore: in the wheel, or next to the package in a checkout."""
    package = Path(__file__).parents[1]
    for root in (package.parent, package):
        if (root / folder / name).is_file() and (root / "pyproject.toml").is_file() == (root != package):
            return root / folder / name
    raise UserError(f"{folder}/{name}: is not installed with accel_restore; pass a configuration with --config")


def read_mapping(path: Path) -> dict:
    """Return the top-level mapping of a YAML file. Raises: UserError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # a device or a pipe may have no end
        text = data.decode()
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a configuration ({error})") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES // 2**20} MB; name folders or patterns instead of files")
    tree = parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping of sections such as 'data:' and 'model:'")
    return tree


def apply_override(tree: dict, override: str) -> None:
    """Set one dotted key of `tree`; a mapping replaces the whole subtree. Elements of lists are named by index."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")) or not key.isprintable():
        raise UserError(f"'{override}': is not an override; write key=value, such as data.batch_size=4")
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
            raise UserError(f"{key}: '{above}' is {node!r}, not a section; set {above}={{...}}")
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    else:
        node[last] = value


def _index(items: list, name: str, key: str) -> int:
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(items):
        raise UserError(f"{key}: '{name}' is not an element of this list of {len(items)}; count from 0")
    return int(name)


def _forget_former_choice(tree: dict, overrides: list[str]) -> None:
    """If an override changes a section's `name`, drop the file's arguments that the new choice does not have."""
    named: dict[str, Any] = {"model": {}, "optimizer": OPTIMIZER_SECTIONS, "scheduler": SCHEDULE_SECTIONS}
    for section, choices in named.items():
        former = tree.get(section)
        texts = [text for key, _, text in (o.partition("=") for o in overrides) if key == f"{section}.name"]
        if not texts or not isinstance(former, dict):
            continue
        name = parse_yaml(texts[-1], f"{section}.name")
        if name != former.get("name", DEFAULT_NAMES[section]):
            known = choices[name].model_fields if isinstance(name, str) and name in choices else {"name"}
            tree[section] = {key: value for key, value in former.items() if key in known}


def load_config(path: str | Path | None = None, overrides: list[str] | tuple = ()) -> Config:
    """Return the configuration of a YAML file (None: the demo) with `key=value` overrides, of which the last one wins.

    Raises: UserError that lists every mistake with its dotted key.
    """
    path = Path(path) if path is not None else shipped("configs", "demo.yaml")
    return config_from(read_mapping(path), list(overrides), str(path))


def load_run_config(folder: Path) -> Config:
    """Return the configuration of the run in a folder. Raises: UserError."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: is not the folder of a run; it has no config.yaml")
    return load_config(file)


def config_from(tree: dict, overrides: list[str] | tuple = (), where: str = "configuration") -> Config:
    """Return the configuration of a mapping with overrides; see `load_config`."""
    tree = plain_copy(tree, where)
    problems: list[str] = []
    given: list[str] = []  # mistakes in the overrides
    with suppress(UserError):  # an override with invalid YAML is reported when it is applied
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
        for line in dict.fromkeys(line for detail in error.errors() for line in explain(detail)):
            (given if _is_set_by(keys, line) else problems).append(line)
    _raise_all(problems, given, where)
    return config


def _is_set_by(keys: list[str], problem: str) -> bool:
    """Return whether an override of one of `keys` set the key that a problem starts with, or a section around it."""
    wrong = problem.partition(": ")[0]
    return any(f"{wrong}.".startswith(f"{key}.") for key in keys)


def _raise_all(problems: list[str], given: list[str], where: str) -> None:
    """Raise `UserError` if there are problems in the file `where` or in those `given` as key=value."""
    if given and problems:
        where, given = f"{where} and the command line", [f"{problem} (on the command line)" for problem in given]
    elif given:
        where = "command line (key=value)"
    found = [p if len(p) <= _MAX_PROBLEM_LENGTH else f"{p[:_MAX_PROBLEM_LENGTH]}..." for p in [*given, *problems]]
    raise_problems(f"{where}: {len(found)} error{'s' * (len(found) != 1)} in the configuration", found)


def to_yaml(config: Config, escape: bool = False) -> str:
    """Return the resolved configuration as YAML for `--config`; secrets are replaced by `***`.

    With `escape`, characters other than ASCII are written as escapes, which mean the same in every encoding.
    """
    tree = redacted(config.model_dump(mode="json"))
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=not escape, width=100)
