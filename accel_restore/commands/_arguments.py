"""Groups of command-line arguments that several commands share."""

import argparse
import os
import sys
from pathlib import Path

from accel_restore.config.explain import suggest_key
from accel_restore.config.keys import can_be_off, is_key, kinds_of, sections_in
from accel_restore.config.schema import Config
from accel_restore.errors import UserError, raise_problems
from accel_restore.utils.imports import did_you_mean

_CONFIGURATION = ("c", "f", "opt", "cfg", "conf", "yaml", "config_file", "config_path", "configuration")
_DEVICES = ("gpu", "gpu_id", "gpu_ids", "device", "device_id", "cuda", "no_cuda")
_SETTINGS = {  # options without a value
    "amp": "train.mixed_precision=auto",
    "bf16": "train.mixed_precision=bf16",
    "fp16": "train.mixed_precision=fp16",
    "half": "train.mixed_precision=fp16",
    "no_wandb": "tracking.wandb=disabled",
    "wandb": "tracking.wandb=online",
}
_IN_SECTIONS = {  # sections, and the key in them that a single value means
    "checkpoint": "model.checkpoint",
    "data": "data.train.gt",
    "model": "model.name",
    "optimizer": "optimizer.name",
    "scheduler": "scheduler.name",
    "train": "data.train.gt",
    "val": "data.val.gt",
}
_LAUNCHERS_OPTIONS = ("gpus", "num_gpus", "n_gpus", "devices", "nproc", "nproc_per_node", "num_processes", "world_size")


class ConfigurationParser(argparse.ArgumentParser):
    """Parses a command that takes a configuration: --config FILE, or the YAML file alone, and key=value overrides."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--config", metavar="FILE", help="YAML configuration (default: configs/demo.yaml)")
        self.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="override keys: data.batch_size=4 scheduler.name=constant; or the YAML file without --config",
        )

    def parse_configuration(self, arguments: list[str] | None = None) -> argparse.Namespace:
        """Parse flags and overrides in any order. Raises: UserError for an unknown flag or a second file."""
        given = sys.argv[1:] if arguments is None else arguments
        options, unknown = self.parse_known_intermixed_args(given)
        problems = [self._explain(option, given) for option in unknown if option.startswith("-")]  # others are values
        raise_problems("unknown options:", problems)
        take_configuration(options)
        return options

    def _explain(self, option: str, given: list[str]) -> str:
        """Return what to write in place of an unknown option, such as `train.epochs=5` for `--epochs 5`."""
        name, equals, value = option.partition("=")
        following = given[given.index(option) + 1 :][:1]
        if not equals and following and not following[0].startswith("-") and "=" not in following[0]:
            value = following[0]
        word = name.lstrip("-")
        plain = word.replace("-", "_")
        if plain in _CONFIGURATION:
            return f"{name}: write --config {value or 'FILE'}"
        if plain in _LAUNCHERS_OPTIONS:
            return f"{name}: the launcher starts the processes: torchrun --nproc_per_node {value or 'N'} ..."
        if plain in _DEVICES:
            return (
                f"{name}: choose GPUs by CUDA_VISIBLE_DEVICES={value if value.isdecimal() else '0'} before the command"
            )
        flags = [known.lstrip("-") for known in self._option_string_actions]
        longer = [flag for flag in flags if len(word) > 2 and flag.startswith(word)]
        if flag := longer[0] if len(longer) == 1 else did_you_mean(word, flags):
            return f"{name}: did you mean --{flag}?"
        return f"{name}: {write_as_key(plain if '.' not in word else word, value) or f'see {self.prog} --help'}"


def write_as_key(word: str, value: str) -> str | None:
    """Return the advice to write a key=value that sets what an option without a `--` names, or None."""
    if word == "loss":
        return f"write 'loss={{{value or 'l1'}: 1}}'"
    if word in _SETTINGS:
        return f"write {_SETTINGS[word]}"
    key = _IN_SECTIONS.get(word) or (word if is_key(word) and not _is_section(word) else suggest_key(word))
    if key is None and word.startswith("no_"):
        key, value = suggest_key(word.removeprefix("no_")), "false"
        return f"write {key}=false" if key and can_be_off(key) else None
    if key is None or _is_section(key):
        return None
    if kinds_of(key) == {bool} and value not in ("true", "false"):  # the next word is not its value
        value = "true"
    return f"write {key}={'...' if not value or _is_yaml(value) else value}"


def _is_section(key: str) -> bool:
    return any(sections_in(field.annotation) for field in [Config.model_fields.get(key)] if field)


def take_configuration(options: argparse.Namespace) -> None:
    """Take a YAML file among the overrides as the configuration. Raises: UserError if there are two files."""
    files = [text for text in options.overrides if _is_yaml(text)]
    options.overrides = [text for text in options.overrides if not _is_yaml(text)]
    if len(found := [*filter(None, [options.config]), *files]) > 1:
        raise UserError(f"{', '.join(found)}: give one configuration, and change its keys with key=value")
    raise_problems("these are not overrides:", [_explain_path(text) for text in options.overrides if _is_path(text)])
    options.config = found[0] if found else None


def _is_yaml(text: str) -> bool:
    return text.lower().endswith((".yaml", ".yml")) and ("=" not in text or Path(text).is_file())


def _is_path(text: str) -> bool:
    return "=" not in text and not is_key(text) and os.path.exists(text)  # noqa: PTH110  False for any error


def _explain_path(text: str) -> str:
    """Return what to write in place of a file or folder that is no configuration."""
    path = Path(text)
    if (path / "config.yaml").is_file():
        return f"{text}: is the folder of a run; the command that started it continues it (run.name={path.name})"
    if path.is_dir():
        return f"{text}: is a folder; to train on its images, write data.train.gt={text}"
    if path.suffix.lower() in (".safetensors", ".pth"):
        return f"{text}: is a file of weights; to start from them, write model.checkpoint={text}"
    return f"{text}: is not a configuration (.yaml or .yml)"


def add_device(parser: argparse.ArgumentParser, precision: str | None = "no") -> None:
    """Add the arguments for the device and the precision of a network; the default None is that of `--run`."""
    default = "no, which is float32" if precision else "with --run that of the run, else no, which is float32"
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--device", help="such as cuda:1 (default: a GPU if available, one per process)")
    group.add_argument("--cpu", action="store_const", const="cpu", dest="device", help="the same as --device cpu")
    parser.add_argument(
        "--precision",
        choices=["no", "bf16", "fp16", "auto"],
        default=precision,
        help=f"precision of the network (default: {default})",
    )


def add_tiles(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the arguments for tiles and the self-ensemble."""
    meaning = "auto: tiles if memory is short" if default == "auto" else "as in the protocol"
    parser.add_argument(
        "--tile",
        type=_tile,
        default=default,
        metavar="N",
        help=f"side of tiles in input pixels, none or auto (default: {meaning})",
    )
    parser.add_argument("--tile-overlap", type=int, metavar="N", help="pixels that neighbouring tiles share (64)")
    parser.add_argument(
        "--self-ensemble",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the mean over 8 flips and rotations: 8 times slower, slightly better",
    )


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the largest image that is read."""
    help = "reject larger images as decompression bombs"
    parser.add_argument("--max-pixels", type=_max_pixels, metavar="N", help=help)


def _max_pixels(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError("--max-pixels: must be a whole number above 0")
    return int(text)


def _tile(text: str) -> int | str:
    return text if text in ("auto", "none") else int(text)
