"""From YAML and `key=value` overrides to a checked `Config`; all mistakes are reported at once, with suggestions."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from accel_restore.config.explain import explain
from accel_restore.config.overrides import apply_overrides
from accel_restore.config.safe_yaml import MAX_BYTES, Dumper, parse_yaml, plain_copy
from accel_restore.config.schema import Config
from accel_restore.errors import UserError, raise_problems
from accel_restore.utils.redaction import redacted

_MAX_PROBLEM_LENGTH = 1000  # characters; room for all names of models; a quoted value may be as long as the file


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
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text in UTF-8; save it in this encoding") from None
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


def load_config(path: str | Path | None = None, overrides: list[str] | tuple = ()) -> Config:
    """Return the configuration of a YAML file (None: the demo) with `key=value` overrides; the last one wins.

    The demo's `data.val` is forgotten if overrides name `data.train` and not `data.val`.

    Raises: UserError that lists every mistake with its dotted key.
    """
    if path is not None:
        return config_from(read_mapping(Path(path)), list(overrides), str(path))
    demo = shipped("configs", "demo.yaml")
    tree = read_mapping(demo)
    named = {".".join(override.partition("=")[0].split(".")[:2]) for override in overrides}
    if "data.train" in named and "data.val" not in named:  # the demo's pictures would say nothing about other data
        tree["data"].pop("val", None)
    return config_from(tree, list(overrides), str(demo))


def load_run_config(folder: Path) -> Config:
    """Return the configuration of the run in a folder. Raises: UserError."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: is not the folder of a run; it has no config.yaml")
    return load_config(file)


def config_from(tree: dict, overrides: list[str] | tuple = (), where: str = "configuration") -> Config:
    """Return the configuration of a mapping with overrides; see `load_config`."""
    own = plain_copy(tree, where)
    tree = plain_copy(tree, where)
    problems: list[str] = []
    given = apply_overrides(tree, overrides)  # mistakes in the overrides
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        keys = [override.partition("=")[0] for override in overrides]
        for line in dict.fromkeys(line for detail in error.errors() for line in explain(detail)):
            (given if _is_set_by(keys, line, own) else problems).append(line)
    _raise_all(problems, given, where)
    return config


def _is_set_by(keys: list[str], problem: str, own: dict) -> bool:
    """Return whether an override of one of `keys` set the key that a problem starts with.

    It may also have set a section around the key, or added a part of a section that the mapping `own` does not have.
    """
    wrong = problem.partition(": ")[0]
    if any(f"{wrong}.".startswith(f"{key}.") for key in keys):
        return True
    found: object = own
    for name in wrong.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found is None and any(key.startswith(f"{wrong}.") for key in keys)


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
