"""`accel-restore evaluate`: score weights on pairs, or on clean images that are degraded."""

import argparse
import csv
import io
import re
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from accel_restore.commands._evaluate_options import WORST, degradation_steps, given_settings, parse
from accel_restore.commands._outputs import write_output, write_report
from accel_restore.commands._processes import Processes, choose_precision, joined
from accel_restore.errors import UserError, raise_problems
from accel_restore.metrics.format import format_score, titled_score
from accel_restore.tracking.console import Console

if TYPE_CHECKING:
    import torch

    from accel_restore.data.pairs import Pair
    from accel_restore.inference.evaluate import Row, Scorer
    from accel_restore.inference.restorer import Restorer
    from accel_restore.inference.run_validation import ValidationSettings


def main(arguments: list[str]) -> int:
    """Score weights, print and write the scores, and return the exit code.

    Raises: UserError for invalid arguments, weights or images.
    """
    options = parse(arguments)
    steps = degradation_steps(options.degrade) if options.degrade is not None else []
    given = given_settings(options)
    with joined(options.device) as processes:
        return _evaluate(options, steps, given, processes)


def _evaluate(options: argparse.Namespace, steps: list, given: dict[str, Any], processes: Processes) -> int:
    console = Console(processes.rank == 0)
    scorer, pairs, notes = processes.run_together(lambda: _prepare(options, steps, given, processes.device))
    for note in notes:
        console.log(f"note: {note}")
    mine = range(processes.rank, len(pairs), processes.world_size)
    scored, problems = processes.run_together(
        lambda: scorer.score(mine, lambda items: console.track(items, len(mine), f"scoring {len(pairs)} images"))
    )
    problems, by_index = processes.gather(problems), dict(processes.gather(scored))
    raise_problems(f"{len(problems)} of {len(pairs)} images cannot be scored", problems)
    if processes.rank == 0:
        _report(options, console, scorer, pairs, [by_index[index] for index in range(len(pairs))])
    return 0


def _prepare(
    options: argparse.Namespace, steps: list, given: dict[str, Any], device: "torch.device"
) -> "tuple[Scorer, list[Pair], list[str]]":
    """Return the scorer, the pairs that it scores, and notes for the user."""
    from accel_restore.inference.evaluate import Scorer, find_misfits, protocol_of, whole_images
    from accel_restore.inference.run_validation import read_validation

    restorers = _load(options.weights, device)
    first = restorers[0]
    if options.run is not None:
        validation = read_validation(options.run, first.channels, first.scale)
    else:
        validation = _named_images(options, steps, first)
    pairs = validation.pairs
    if options.seed is not None and pairs[0].input is not None:
        raise UserError("--seed: chooses the draws of a degradation, but the input is in files; omit it")
    protocol, notes = protocol_of(first, validation.steps, {**validation.settings, **given})
    _ = protocol.scores  # loads the weights of metrics, so that errors appear now
    max_pixels = options.max_pixels or validation.max_pixels
    _raise_misfits(find_misfits(pairs, first.scale, protocol.smallest_side, max_pixels))
    images = whole_images(pairs, first.channels, first.scale, validation.degrade, device, options.seed, max_pixels)
    wanted = options.precision or validation.precision
    if options.precision is None and wanted == "fp16" and device.type == "cpu":
        notes.append("the run was validated in fp16, which needs a GPU; here it is scored in float32")
        wanted = "no"
    return Scorer(restorers, images, protocol, choose_precision(wanted, device)), pairs, notes


def _load(files: list[Path], device: "torch.device") -> "list[Restorer]":
    """Load weights. Raises: UserError if they cannot be compared on the same images."""
    from accel_restore.inference.restorer import load

    restorers = [load(file, device) for file in files]
    first = restorers[0]
    for file, other in zip(files, restorers, strict=True):
        if (other.channels, other.scale) != (first.channels, first.scale):
            raise UserError(
                f"{file}: restores {other.channels} channels at scale {other.scale}, but {files[0]} "
                f"{first.channels} at scale {first.scale}; they cannot be compared on the same images"
            )
    return restorers


def _named_images(options: argparse.Namespace, steps: list, restorer: "Restorer") -> "ValidationSettings":
    """Return the images that `--gt`, `--input` and `--degrade` name."""
    from accel_restore.data.degradations.pipeline import DegradationPipeline, build_degradation
    from accel_restore.data.pairs import find_pairs
    from accel_restore.inference.run_validation import ValidationSettings

    degrade = DegradationPipeline([], restorer.scale)
    if steps:
        named = [(str(step.get("name", "")), {k: v for k, v in step.items() if k != "name"}) for step in steps]
        try:
            degrade = build_degradation(named, restorer.scale, restorer.channels)
        except UserError as error:
            raise UserError(str(error).replace("data.degradation", "--degrade")) from None
    input = None if options.input is None else _place(options.input)
    pairs, problems = find_pairs(_place(options.gt), input, "evaluate", options.recursive)
    _raise_misfits([re.sub(r"\bevaluate\.(gt|input)", r"--\1", problem) for problem in problems])
    return ValidationSettings(pairs, degrade, steps, {})


def _raise_misfits(problems: list[str]) -> None:
    raise_problems(f"the images cannot be used: {len(problems)} problem{'s' * (len(problems) != 1)}", problems)


def _place(given: list[str]) -> str | list[str]:
    """Return a single folder or pattern as such, and files as a list."""
    return given[0] if len(given) == 1 and not Path(given[0]).is_file() else given


def _report(
    options: argparse.Namespace, console: Console, scorer: "Scorer", pairs: "list[Pair]", rows: "list[Row]"
) -> None:
    """Print the scores and write the files."""
    mean = {name: fmean(row[name] for row in rows) for name in rows[0]}
    names = [pair.name for pair in pairs]
    protocol = {**scorer.protocol.describe(), "precision": scorer.precision}
    if options.seed is not None:
        protocol["input"] = f"made by a degradation; --seed {options.seed} and the image's name key its draws"
    _show(console, scorer.protocol.metrics, [*names, "mean"], [*rows, mean])
    for number, file in enumerate(options.weights, 1):
        console.log(f"weights{f' {number}' if len(options.weights) > 1 else ''}: {file}")
    for key, value in protocol.items():
        console.log(f"{key}: {value}")
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
        _draw(options.pictures, scorer, rows, options.worst or WORST)
        console.log(f"pictures of the worst: {options.pictures}")


def _weights(file: Path, restorer: "Restorer") -> dict[str, Any]:
    from accel_restore.inference.evaluate import file_sha256
    from accel_restore.models.weights_file import find_weights

    stored = {key: restorer.metadata.get(key) for key in ("sha256", "epoch", "step", "model")}
    return {"file": str(file), "file_sha256": file_sha256(find_weights(file)), **stored}


def _show(console: Console, metrics: tuple[str, ...], names: list[str], rows: "list[Row]") -> None:
    """Print the table of scores."""
    columns = [name for metric in metrics for name in rows[0] if re.fullmatch(rf"(input_)?{metric}(_\w+)?", name)]
    lines = [
        (name, *(format_score(column, row[column], signed=column.endswith("_difference")) for column in columns))
        for name, row in zip(names, rows, strict=True)
    ]
    console.table("scores", lines, ("image", *(name.replace("_", " ") for name in columns)))


def _write_csv(file: Path, names: list[str], rows: "list[Row]") -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *rows[0]])
    writer.writerows([name, *row.values()] for name, row in zip(names, rows, strict=True))
    write_output(file, text.getvalue())


def _draw(folder: Path, scorer: "Scorer", rows: "list[Row]", count: int) -> None:
    """Draw the images with the worst scores of the first metric, cropped to their worst part."""
    from accel_restore.metrics import get_metric
    from accel_restore.models.blocks import upscale
    from accel_restore.tracking.pictures import draw_samples, worst_part

    metric = scorer.protocol.metrics[0]
    lowest_first = get_metric(metric).higher_is_better
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
