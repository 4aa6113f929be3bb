"""`accel-restore models`: list the networks that can be trained by name, or describe one."""

import argparse
import warnings
from pathlib import Path
from typing import Any

import yaml

from accel_restore.commands._outputs import check_writable, write_report
from accel_restore.errors import UserError
from accel_restore.models.architectures import model_names, refused_names
from accel_restore.models.catalogue import describe_model
from accel_restore.tracking.console import Console
from accel_restore.utils.imports import unknown_choice


def main(arguments: list[str]) -> int:
    """Print the table, or one model's arguments, presets, paper and licence; return the exit code.

    Raises: UserError for a name that does not exist, or if the file cannot be written.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="accel-restore models",
        description=f"{__doc__} Parameters are those of the default arguments, for 3 channels at the first scale.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model's name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all fields as JSON")
    options = parser.parse_args(arguments)
    check_writable(options.json)
    if (reason := refused_names().get(options.name)) is not None:
        raise UserError(f"models: {reason}")
    if options.name is not None and options.name not in model_names():
        raise UserError(f"models: {unknown_choice(options.name, model_names())}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the architectures' code
        models = [describe_model(name) for name in ([options.name] if options.name else model_names())]
    if options.name:
        _print_model(models[0])
    else:
        _print_table(models)
    if options.json is not None:
        write_report(options.json, models)
    return 0


def _print_table(models: list[dict[str, Any]]) -> None:
    console = Console(True)
    rows = [
        (
            model["name"],
            f"{model['parameters'] / 1e6:.2f}",
            " ".join(map(str, model["scales"])),
            " ".join(model["presets"]),
            model["licence"].partition(" (")[0],
            model["paper"].partition(",")[0],
        )
        for model in models
    ]
    header = ("name", "million parameters", "scales", "presets", "licence", "paper")
    console.table("Models", rows, header)
    console.log(f"{len(models)} models; accel-restore models NAME prints the arguments of one")
    for reason in refused_names().values():
        console.log(f"not here: {reason}")
    console.log("nafnet and dncnn are accel_restore's own, which take the place of spandrel's of the same name")


def _print_model(model: dict[str, Any]) -> None:
    scale = model["scales"][0]
    example: dict[str, Any] = {"name": model["name"]}
    if model["presets"]:
        example["preset"] = next(iter(model["presets"]))
    else:
        example |= dict(list(model["arguments"].items())[:2])
    lines = [
        f"{model['name']}  ({model['source']})",
        f"paper:       {model['paper']}",
        f"licence:     {model['licence']}",
        f"scales:      {', '.join(map(str, model['scales']))} (data.scale)",
        f"parameters:  {model['parameters']:,} (default arguments, 3 channels, scale {scale})",
        "arguments, with their defaults:",
        *(f"  {key}: {_yaml(value)}" for key, value in model["arguments"].items()),
        *(["presets:"] if model["presets"] else []),
        *(f"  {key}: {_yaml(values)}" for key, values in model["presets"].items()),
        "example:",
        f"  data: {_yaml({'scale': scale})}",
        f"  model: {_yaml(example)}",
    ]
    print("\n".join(lines), flush=True)


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()
