"""`accel-restore evaluate`: the scores of weights on pairs, or on clean images that are degraded."""

import argparse
import csv
import io
import re
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from accel_restore.commands.processes import Processes, add_device, choose_precision, joined
from accel_restore.commands.report import check_writable, write_report
from accel_restore.commands.restore import add_tiles
from accel_restore.console import Screen
from accel_restore.errors import UserError, raise_problems
from accel_restore.files import replace_file
from accel_restore.scores import format_score, titled_score
from accel_restore.yaml_text import parse_yaml

if TYPE_CHECKING:
    from accel_restore.evaluation import Row, Scorer
    from accel_restore.quality import Protocol

_SHORT = re.compile(r"\s*([\w.:]+)\s*(?:\((.*)\))?\s*", re.DOTALL)  # gaussian_noise(sigma=25)
_WORST = 4


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises: UserError for values that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="accel-restore evaluate",
        description="Score weights by the protocol that is stored beside them, that of their validation; options "
        "change it. With two weights, both are scored on the same images. Several processes share the images.",
    )
    parser.add_argument("weights", nargs="+", type=Path, metavar="WEIGHTS", help="one or two files best.safetensors")
    parser.add_argument("--gt", nargs="+", required=True, help="clean images: a folder, a pattern with {}, or files")
    parser.add_argument("--input", nargs="+", help="degraded images, given as gt is; equal names make a pair")
    parser.add_argument(
        "--degrade", metavar="SPEC", help="makes the input: 'gaussian_noise(sigma=25)' or as in data.degradation"
    )
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
    parser.add_argument("--worst", type=int, metavar="N", help=f"how many pictures (default: {_WORST})")
    add_device(parser)
    options = parser.parse_intermixed_args(arguments)
    if len(options.weights) > 2:
        raise UserError("evaluate: give one or two files of weights, before --gt and --input")
    if options.input is None and options.degrade is None:
        raise UserError(
            "evaluate: nothing says what the input is: give --input FOLDER, or --degrade such as "
            "'gaussian_noise(sigma=25)' to make it from --gt"
        )
    if options.input is not None and options.degrade is not None:
        raise UserError("evaluate: --input and --degrade exclude each other; give one")
    if options.tile == "auto":
        raise UserError("--tile: auto would make scores depend on this machine's memory; give a number, or none")
    if options.worst is not None and (options.pictures is None or options.worst < 1):
        raise UserError("--worst: is the number of --pictures, above 0; give both")
    inputs = [*options.weights, *map(Path, [*(options.gt or []), *(options.input or [])])]
    for file in (options.json, options.csv):
        check_writable(file, inputs=inputs)
    if options.pictures is not None and options.pictures.exists() and not options.pictures.is_dir():
        raise UserError(f"{options.pictures}: is a file; name a folder for the pictures")
    return options


def main(arguments: list[str]) -> int:
    """Score, print and write; the exit code.

    Raises: UserError for what cannot be used.
    """
    options = parse(arguments)
    steps = _degradation(options.degrade) if options.degrade else []
    given = _given(options)
    with joined(options.device) as processes:
        return _evaluate(options, steps, given, processes)


def _degradation(text: str) -> list[dict[str, Any]]:
    """The list of steps that a SPEC means: a list, one mapping, or name(argument=value)."""
    spec = text if _SHORT.fullmatch(text) else parse_yaml(text, "--degrade")
    steps = []
    for entry in spec if isinstance(spec, list) else [spec]:
        short = _SHORT.fullmatch(entry) if isinstance(entry, str) else None
        if short is not None:
            named = re.sub(r"(\w+)\s*=", r"\1: ", short[2] or "")
            entry = {"name": short[1], **(parse_yaml(f"{{{named}}}", "--degrade") or {})}
        if not isinstance(entry, dict):
            raise UserError(f"--degrade: '{entry}' is no degradation; write it as 'gaussian_noise(sigma=25)'")
        steps.append(entry)
    return steps


def _given(options: argparse.Namespace) -> dict[str, Any]:
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


def _evaluate(options: argparse.Namespace, steps: list, given: dict[str, Any], processes: Processes) -> int:
    screen = Screen(processes.is_main)
    scorer, pairs, notes = processes.together(lambda: _prepare(options, steps, given, processes))
    for note in notes:
        screen.say(f"note: {note}")
    mine = range(processes.rank, len(pairs), processes.world_size)
    rows, problems = processes.together(
        lambda: scorer.score(mine, lambda items: screen.track(items, len(mine), f"scoring {len(pairs)} images"))
    )
    problems, rows = processes.gather(problems), dict(processes.gather(rows))
    raise_problems(f"{len(problems)} of {len(pairs)} images cannot be scored", problems)
    if not processes.is_main:
        return 0
    rows = [rows[index] for index in range(len(pairs))]
    mean = {name: fmean(row[name] for row in rows) for name in rows[0]}
    names = [pair.name for pair in pairs]
    protocol = _described(scorer.protocol, steps, options.seed, scorer.precision)
    _show(screen, scorer.protocol, names, rows, mean, options.weights, protocol)
    if options.json is not None:
        images = [
            {"name": pair.name, "gt": str(pair.gt), **({"input": str(pair.input)} if pair.input else {}), **row}
            for pair, row in zip(pairs, rows, strict=True)
        ]
        weights = [_weights(file, restorer) for file, restorer in zip(options.weights, scorer.restorers, strict=True)]
        write_report(options.json, {"protocol": protocol, "weights": weights, "mean": mean, "images": images})
    if options.csv is not None:
        _write_csv(options.csv, [*names, "mean"], [*rows, mean])
    if options.pictures is not None:
        _draw(options.pictures, scorer, rows, options.worst or _WORST)
        screen.say(f"pictures of the worst: {options.pictures}")
    return 0


def _prepare(options: argparse.Namespace, steps: list, given: dict[str, Any], processes: Processes) -> tuple:
    """The scorer, the pairs, and notes for the user."""
    from accel_restore.data.degrade import Degrade, build_degradation
    from accel_restore.data.pairs import find_pairs
    from accel_restore.evaluation import Scorer, find_misfits, protocol_of, whole_images
    from accel_restore.restorer import load

    restorers = [load(file, processes.device) for file in options.weights]
    first = restorers[0]
    for file, other in zip(options.weights, restorers, strict=True):
        if (other.channels, other.scale) != (first.channels, first.scale):
            raise UserError(
                f"{file}: restores {other.channels} channels at scale {other.scale}, {options.weights[0]} "
                f"{first.channels} at scale {first.scale}; they cannot be compared on the same images"
            )
    protocol, notes = protocol_of(first, options.input is None, given)
    _ = protocol.scores  # files of metrics that are wrong show now
    degrade = Degrade([], first.scale)
    if steps:
        named = [(str(step.get("name", "")), {k: v for k, v in step.items() if k != "name"}) for step in steps]
        try:
            degrade = build_degradation(named, first.scale, first.channels)
        except UserError as error:
            raise UserError(str(error).replace("data.degradation", "--degrade")) from None
    pairs, problems = find_pairs(_places(options.gt), _places(options.input), "evaluate", options.recursive)
    problems = problems or find_misfits(pairs, first.scale, protocol.smallest_side)
    problems = [re.sub(r"\bevaluate\.(gt|input)", r"--\1", problem) for problem in problems]
    raise_problems(f"the images cannot be used: {len(problems)} problem{'s' * (len(problems) != 1)}", problems)
    images = whole_images(pairs, first.channels, first.scale, degrade, processes.device, options.seed)
    precision = choose_precision(options.precision, processes.device)
    return Scorer(restorers, images, protocol, precision), pairs, notes


def _places(given: list[str] | None) -> str | list[str] | None:
    """One folder or pattern as such, files as a list."""
    return given[0] if given is not None and len(given) == 1 and not Path(given[0]).is_file() else given


def _described(protocol: "Protocol", steps: list, seed: int | None, precision: str) -> dict[str, Any]:
    described = {**protocol.describe(), "precision": precision}
    if steps:
        described["degradation"] = steps
    if seed is not None:
        described["input"] = f"made by --degrade; its draws are keyed by --seed {seed} and the image's name"
    return described


def _weights(file: Path, restorer) -> dict[str, Any]:
    from accel_restore.evaluation import file_sha256
    from accel_restore.weights_file import find_weights

    stored = {key: restorer.metadata.get(key) for key in ("sha256", "epoch", "step", "model")}
    return {"file": str(file), "file_sha256": file_sha256(find_weights(file)), **stored}


def _show(
    screen: Screen,
    protocol: "Protocol",
    names: list[str],
    rows: "list[Row]",
    mean: "Row",
    files: list[Path],
    described: dict[str, Any],
) -> None:
    columns = [name for metric in protocol.metrics for name in mean if re.fullmatch(rf"(input_)?{metric}(_\w+)?", name)]

    def cells(row: "Row") -> list[str]:
        return [format_score(name, row[name], signed=name.endswith("_difference")) for name in columns]

    header = ["image", *(name.replace("_", " ") for name in columns)]
    shown = [(name, *cells(row)) for name, row in zip(names, rows, strict=True)]
    screen.table("scores", [*shown, ("mean", *cells(mean))], tuple(header))
    for number, file in enumerate(files, 1):
        screen.say(f"weights{f' {number}' if len(files) > 1 else ''}: {file}")
    for key, value in described.items():
        screen.say(f"{key}: {value}")


def _write_csv(file: Path, names: list[str], rows: "list[Row]") -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *rows[0]])
    writer.writerows([name, *row.values()] for name, row in zip(names, rows, strict=True))
    try:
        replace_file(file, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error


def _draw(folder: Path, scorer: "Scorer", rows: "list[Row]", count: int) -> None:
    """Draw the images of the worst scores by the first metric, where they are worst."""
    from accel_restore.models.blocks import upscale
    from accel_restore.pictures import draw_samples, worst_part
    from accel_restore.quality import METRICS

    metric = scorer.protocol.metrics[0]
    lowest_first = METRICS[metric].higher_is_better
    order = sorted(range(len(rows)), key=lambda index: rows[index][metric], reverse=not lowest_first)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place, index in enumerate(order[:count], 1):
            image, row = scorer.images[index], rows[index]
            outputs = scorer.outputs(image)
            shown = [upscale(image["input"], scorer.images.scale), *outputs, image["gt"]]
            scored = [("input", f"input_{metric}"), ("output", metric), ("output 2", f"{metric}_2")]
            captions = [f"{what} {titled_score(metric, row[key])}" for what, key in scored if key in row]
            tiles = worst_part(shown, outputs[0], image["gt"])
            name = scorer.images.names[index].replace("/", "_")
            draw_samples(folder / f"{place:02d}_{name}.png", [list(zip([*captions, "gt"], tiles, strict=True))])
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
