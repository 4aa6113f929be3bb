"""The command line of `accel-restore evaluate`, and what its words mean."""

import argparse
import re
from pathlib import Path
from typing import Any

from accel_restore.commands._outputs import check_writable
from accel_restore.commands._processes import add_device
from accel_restore.commands.restore import add_max_pixels, add_tiles
from accel_restore.config.safe_yaml import parse_yaml
from accel_restore.errors import UserError

_SHORT = re.compile(r"\s*([\w.:]+)\s*(?:\((.*)\))?\s*", re.DOTALL)  # gaussian_noise(sigma=25)
WORST = 4  # pictures


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises: UserError for values that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="accel-restore evaluate",
        description="Score weights by the protocol that is stored beside them, that of their validation; options "
        "change it. With two weights, both are scored on the same images. Several processes share the images.",
    )
    parser.add_argument("weights", nargs="+", type=Path, metavar="WEIGHTS", help="one or two files best.safetensors")
    parser.add_argument("--gt", nargs="+", help="clean images: a folder, a pattern with {}, or files")
    parser.add_argument("--input", nargs="+", help="degraded images, given as gt is; equal names make a pair")
    parser.add_argument(
        "--degrade", metavar="SPEC", help="makes the input: 'gaussian_noise(sigma=25)' or as in data.degradation"
    )
    parser.add_argument("--run", type=Path, metavar="RUN_DIR", help="a run's own validation: its images, as it scores")
    parser.add_argument("--recursive", action="store_true", help="take the sub-folders of folders too")
    parser.add_argument("--seed", type=int, help="other draws of --degrade (default: those of validation)")
    parser.add_argument("--metrics", help="such as psnr,ssim")
    parser.add_argument("--metric-weights", action="append", default=[], metavar="NAME=FILE", help="of lpips and dists")
    parser.add_argument("--crop-border", type=int, metavar="N", help="pixels left out at each side")
    for name, what in (("y-channel", "score the luma"), ("quantize", "round output and gt to 8 bits first")):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=what)
    add_tiles(parser, None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write protocol, scores and means there")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the images of the worst scores there")
    parser.add_argument("--worst", type=int, metavar="N", help=f"how many pictures (default: {WORST})")
    add_max_pixels(parser)
    add_device(parser)
    parser.set_defaults(precision=None)  # that of the run, where one is named
    options = parser.parse_intermixed_args(arguments)
    if len(options.weights) > 2:
        raise UserError("evaluate: give one or two files of weights, before --gt and --input")
    _check_images(options)
    if options.tile == "auto":
        raise UserError("--tile: auto would make scores depend on this machine's memory; give a number, or none")
    if options.worst is not None and (options.pictures is None or options.worst < 1):
        raise UserError("--worst: is the number of --pictures, above 0; give both")
    inputs = [*options.weights, *map(Path, [*(options.gt or []), *(options.input or [])])]
    if options.run is not None:
        from accel_restore.checkpoint.resume import RUN_FILES  # imports torch

        inputs += [options.run / name for name in RUN_FILES]
    for file in (options.json, options.csv):
        check_writable(file, inputs=inputs)
    if options.pictures is not None and options.pictures.exists() and not options.pictures.is_dir():
        raise UserError(f"{options.pictures}: is a file; name a folder for the pictures")
    return options


def _check_images(options: argparse.Namespace) -> None:
    """Raise `UserError` unless the images are named in one way: by `--run`, or by `--gt` with what the input is."""
    if options.run is not None:
        named = {"--gt": options.gt, "--input": options.input, "--degrade": options.degrade}
        named["--recursive"] = options.recursive or None
        if others := [name for name, value in named.items() if value is not None]:
            raise UserError(
                f"evaluate: --run and {others[0]} exclude each other: --run takes the images of the run's own "
                f"validation; leave one of them out"
            )
        return
    if options.gt is None:
        raise UserError("evaluate: nothing says which images: give --gt with --input or --degrade, or --run RUN_DIR")
    if options.input is None and options.degrade is None:
        raise UserError(
            "evaluate: nothing says what the input is: give --input FOLDER, or --degrade such as "
            "'gaussian_noise(sigma=25)' to make it from --gt (a run's own is data.degradation in its config.yaml)"
        )
    if options.input is not None and options.degrade is not None:
        raise UserError("evaluate: --input and --degrade exclude each other; give one")


def degradation_steps(text: str) -> list[dict[str, Any]]:
    """The list of steps that a SPEC means: a list, one mapping, or name(argument=value)."""
    spec = text if _SHORT.fullmatch(text) else parse_yaml(text, "--degrade")
    steps = []
    for entry in spec if isinstance(spec, list) else [] if spec is None else [spec]:
        short = _SHORT.fullmatch(entry) if isinstance(entry, str) else None
        if short is not None:
            named = re.sub(r"(\w+)\s*=", r"\1: ", short[2] or "")
            entry = {"name": short[1], **(parse_yaml(f"{{{named}}}", "--degrade") or {})}
        if not isinstance(entry, dict):
            raise UserError(f"--degrade: '{entry}' is no degradation; write it as 'gaussian_noise(sigma=25)'")
        steps.append(entry)
    if not steps:
        raise UserError("--degrade: is empty; name a degradation, such as 'gaussian_noise(sigma=25)'")
    return steps


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the protocol that the command line names."""
    names = ("crop_border", "y_channel", "quantize", "self_ensemble", "tile_overlap")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.tile is not None:
        given["tile"] = None if options.tile == "none" else options.tile
    if options.metrics is not None:
        given["metrics"] = [name.strip() for name in options.metrics.split(",")]
    pairs = [text.partition("=") for text in options.metric_weights]
    if any(not file for _, _, file in pairs):
        raise UserError("--metric-weights: write NAME=FILE, such as lpips=alexnet-owt-7be5be79.pth")
    if pairs:
        given["weights"] = {name: file for name, _, file in pairs}
    return given
