"""The command line of `accel-restore evaluate`, and the meaning of its arguments."""

import argparse
import re
from pathlib import Path
from typing import Any

from accel_restore.commands._arguments import add_device, add_max_pixels, add_tiles
from accel_restore.commands._outputs import check_writable
from accel_restore.config.safe_yaml import parse_yaml
from accel_restore.errors import UserError

_SHORT = re.compile(r"\s*([\w.:]+)\s*(?:\((.*)\))?\s*", re.DOTALL)  # gaussian_noise(sigma=25)
WORST = 4  # default number of pictures


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Raises: UserError for invalid values."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="accel-restore evaluate",
        description="Score weights by the protocol of their validation, which is stored with them; options change it. "
        "Two files of weights are scored on the same images. Several processes share the images.",
    )
    parser.add_argument("weights", nargs="+", type=Path, metavar="WEIGHTS", help="one or two best.safetensors files")
    _add_images(parser)
    _add_protocol(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write protocol, scores and means to FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table to FILE")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the images with the worst scores to DIR")
    parser.add_argument("--worst", type=int, metavar="N", help=f"number of pictures (default: {WORST})")
    add_max_pixels(parser)
    add_device(parser, precision=None)
    options = parser.parse_intermixed_args(arguments)
    if len(options.weights) > 2:
        raise UserError("evaluate: give one or two files of weights, before --gt and --input")
    _check_images(options)
    if options.tile == "auto":
        raise UserError("--tile: with auto, scores would depend on the memory of this machine; give a number or none")
    if options.worst is not None and (options.pictures is None or options.worst < 1):
        raise UserError("--worst: is the number of --pictures, above 0; give both")
    _check_outputs(options)
    return options


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gt", nargs="+", help="clean images: a folder, a pattern with {}, or files")
    parser.add_argument("--input", nargs="+", help="degraded images, given like --gt; equal names make a pair")
    parser.add_argument(
        "--degrade", metavar="SPEC", help="make the input: 'gaussian_noise(sigma=25)', or as in data.degradation"
    )
    parser.add_argument(
        "--run", type=Path, metavar="RUN_DIR", help="repeat the validation of a run, with its images and protocol"
    )
    parser.add_argument("--recursive", action="store_true", help="include subfolders")
    parser.add_argument("--seed", type=int, help="other draws of --degrade (default: those of validation)")


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics", help="such as psnr,ssim,mypackage.scores:gmsd; with arguments: '[psnr, {name: PATH, key: value}]'"
    )
    parser.add_argument(
        "--metric-weights", action="append", default=[], metavar="NAME=FILE", help="weights of lpips and dists"
    )
    parser.add_argument("--crop-border", type=int, metavar="N", help="pixels to ignore at each side")
    switches = {
        "y-channel": "score the luma",
        "quantize": "round output and gt to 8 bits first",
        "crop-gt": "crop gt that is larger by less than the scale",
    }
    for name, what in switches.items():
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=what)
    add_tiles(parser, None)


def _check_images(options: argparse.Namespace) -> None:
    """Raise `UserError` unless the images are given in one way: `--run`, or `--gt` with `--input` or `--degrade`."""
    if options.run is not None:
        given = {"--gt": options.gt, "--input": options.input, "--degrade": options.degrade}
        given["--recursive"] = options.recursive or None
        if others := [name for name, value in given.items() if value is not None]:
            raise UserError(
                f"evaluate: --run and {others[0]} exclude each other, since --run uses the images of the run's own "
                "validation; omit one of them"
            )
        return
    if options.gt is None:
        raise UserError("evaluate: no images are given; give --gt with --input or --degrade, or --run RUN_DIR")
    if options.input is None and options.degrade is None:
        raise UserError(
            "evaluate: no input is given; give --input FOLDER, or make it from --gt with --degrade, such as "
            "'gaussian_noise(sigma=25)' (the degradation of a run is data.degradation in its config.yaml)"
        )
    if options.input is not None and options.degrade is not None:
        raise UserError("evaluate: --input and --degrade exclude each other; give one")


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise `UserError` if an output cannot be written or is an input."""
    inputs = [*options.weights, *map(Path, [*(options.gt or []), *(options.input or [])])]
    if options.run is not None:
        from accel_restore.checkpoint.folder import RUN_FILES  # imports torch

        inputs += [options.run / name for name in RUN_FILES]
    for file in (options.json, options.csv):
        check_writable(file, inputs=inputs)
    if options.pictures is not None and options.pictures.exists() and not options.pictures.is_dir():
        raise UserError(f"{options.pictures}: is a file; name a folder for the pictures")


def degradation_steps(text: str) -> list[dict[str, Any]]:
    """Return the steps of a SPEC, which is a list, a mapping, or name(argument=value)."""
    spec = text if _SHORT.fullmatch(text) else parse_yaml(text, "--degrade")
    steps = []
    for entry in spec if isinstance(spec, list) else [] if spec is None else [spec]:
        short = _SHORT.fullmatch(entry) if isinstance(entry, str) else None
        if short is not None:
            named = re.sub(r"(\w+)\s*=", r"\1: ", short[2] or "")
            entry = {"name": short[1], **(parse_yaml(f"{{{named}}}", "--degrade") or {})}
        if not isinstance(entry, dict):
            raise UserError(f"--degrade: '{entry}' is not a degradation; write it as 'gaussian_noise(sigma=25)'")
        steps.append(entry)
    if not steps:
        raise UserError("--degrade: is empty; name a degradation, such as 'gaussian_noise(sigma=25)'")
    return steps


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the protocol that are given on the command line."""
    names = ("crop_border", "y_channel", "quantize", "crop_gt", "self_ensemble", "tile_overlap")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.tile is not None:
        given["tile"] = None if options.tile == "none" else options.tile
    if options.metrics is not None:
        text = options.metrics
        listed = parse_yaml(text, "--metrics") if text.lstrip().startswith("[") else text.split(",")
        given["metrics"] = [name.strip() if isinstance(name, str) else name for name in listed]
    pairs = [text.partition("=") for text in options.metric_weights]
    if any(not file for _, _, file in pairs):
        raise UserError("--metric-weights: write NAME=FILE, such as lpips=alexnet-owt-7be5be79.pth")
    if pairs:
        given["weights"] = {name: file for name, _, file in pairs}
    return given
