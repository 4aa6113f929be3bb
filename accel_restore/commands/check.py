"""`accel-restore check`: errors that stop training, warnings about the data, and the cost of an epoch."""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from accel_restore.commands._arguments import ConfigurationParser, take_configuration
from accel_restore.commands._outputs import check_writable, write_report
from accel_restore.commands.bench.data import loading_rate
from accel_restore.config.load import load_config
from accel_restore.config.schema import Config
from accel_restore.data.batch_plan import BatchPlan, BatchSchedule
from accel_restore.data.build import build_sets, degradations_of
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.identity import kind_of
from accel_restore.data.previews import find_previews
from accel_restore.data.scan import ScannedData, find_data
from accel_restore.data_check.contact_sheet import SheetRow, contact_sheet
from accel_restore.data_check.findings import GRAY, Finding, find_in_set, find_leaks
from accel_restore.data_check.float_ranges import span
from accel_restore.data_check.made_inputs import find_one_sided, find_unscaled_noise, make_input, measure_inputs
from accel_restore.data_check.shares import find_unseen, shares_of
from accel_restore.data_check.survey import Part, find_in_headers, find_in_values, survey
from accel_restore.errors import UserError, one_line
from accel_restore.losses import build_loss
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.tracking.console import Console
from accel_restore.trainer.batch_size import assume_batch_size
from accel_restore.utils.files import to_json
from accel_restore.utils.words import counted

_SHOWN = 8  # warnings of one kind; a JSON report lists all
_SHEET = 24  # pairs of a contact sheet
_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {  # of the table
    "pairs": lambda part: f"{part['pairs']} ({part['examined']} examined)",
    "size of gt": lambda part: f"{_span(part['width'])} x {_span(part['height'])}",
    "files of gt": lambda part: _counted(part["gt_files"]),
    "files of input": lambda part: _counted(part["input_files"]),
    "float values": lambda part: _values(part["values"]),
    "PSNR of input": lambda part: _psnr(part["psnr"]),
    "mean level": lambda part: f"gt {_level(part['gt_level'])}, input {_level(part['input_level'])} of 255",
}


def main(arguments: list[str]) -> int:
    """Check the data of a configuration and return the exit code: 2 with errors, else 0.

    Raises: UserError for an invalid configuration.
    """
    options = _parse(arguments)
    console = Console(options.json != "-")
    config = assume_batch_size(load_config(options.config, options.overrides), console.log)
    report, draw = check(config, console, options.limit, options.pairs_per_second, options.picture)
    if options.json == "-":
        print(to_json(report, indent=2), flush=True)
    else:
        _show(report, console)
        if options.json:
            write_report(Path(options.json), report)
    if options.picture is not None and (sheet := draw()) is not None:
        try:
            sheet.save(options.picture)
        except OSError as error:
            raise UserError(f"{options.picture}: cannot be written ({error})") from error
    return 2 if report["errors"] else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = ConfigurationParser(prog="accel-restore check", description=__doc__)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the report (no FILE: print it)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw a contact sheet: input, gt, difference × 4")
    parser.add_argument("--limit", type=int, metavar="N", help="compare the pixels of N pairs per set, spread evenly")
    parser.add_argument("--pairs-per-second", type=float, metavar="N", help="training speed; warn if loading is slower")
    options = parser.parse_configuration(arguments)
    if options.json and ("=" in options.json or options.json.lower().endswith((".yaml", ".yml"))):
        options.overrides.append(options.json)  # an override or the configuration, not the name of a report
        options.json = "-"
        take_configuration(options)
    if options.limit is not None and options.limit < 1:
        raise UserError("check: --limit must be above 0")
    if options.json not in (None, "-"):
        check_writable(Path(options.json), inputs=[Path(options.config)] if options.config else [])
    return options


def check(
    config: Config, console: Console, limit: int | None, pairs_per_second: float | None, picture: Path | None
) -> tuple[dict[str, Any], Callable[[], Image.Image | None]]:
    """Return the report and a function that draws a contact sheet, or returns None without pairs.

    Raises: UserError for an invalid degradation or loss, or if `picture` cannot be written.
    """
    check_writable(picture, picture=True)
    degradations = degradations_of(config.data)
    loss = build_loss(config.loss, config.data.channels, config.data.patch_sizes)
    smallest_sides = SetProtocols.of(config).smallest_sides(loss.smallest_side)
    found = find_data(config.data, smallest_sides, console.track, crop_gt=config.validation.crop_gt)
    check_writable(picture, picture=True, inputs=[image for image in found.sources() if isinstance(image, Path)])
    parts = {name: survey(one, config.data, limit, console.track, name) for name, one in found.sets.items()}
    degrade = {name: degradations[one.key] for name, one in found.sets.items()}
    made, failures = _measure_inputs(parts, degrade)
    _, of_previews = find_previews(config.data, console.track)
    errors = [*found.problems, *of_previews, *failures]
    epoch = None if errors else _epoch(found, config, degradations)
    warnings = [*_find(found, parts, config, degrade), *_find_slow_loading(epoch, pairs_per_second)]
    warnings += find_unseen(epoch["samples_of_run"], epoch["sets"]) if epoch else []
    report = {
        "errors": errors,
        "warnings": [asdict(finding) for finding in warnings],
        **{name: _statistics(part, made.get(name)) for name, part in parts.items()},
        "validation_images": [pair.name for one in found.val.values() for pair in one.pairs],
        "epoch": epoch,
    }
    return report, partial(_sheet, parts, warnings, degrade)


def _measure_inputs(
    parts: dict[str, Part], degrade: dict[str, DegradationPipeline]
) -> tuple[dict[str, list[float]], list[str]]:
    """Return the PSNR of some inputs of each set whose inputs are made, and the errors of the degradation."""
    made, errors = {}, []
    for name, part in parts.items():
        if part.pairs and part.inputs is None:
            try:
                made[name] = measure_inputs(part, degrade[name])
            except UserError as error:
                errors.append(str(error))
    return made, errors


def _find(
    found: ScannedData, parts: dict[str, Part], config: Config, degrade: dict[str, DegradationPipeline]
) -> list[Finding]:
    """Return the findings about files, sets and the settings that concern them."""
    warnings = [Finding("left out", note) for note in found.notes]
    for part in parts.values():
        warnings += find_in_headers(part)
        warnings += find_in_set(part.facts, part.gts, part.inputs)
    trained = [part for name, part in parts.items() if kind_of(name) == "train"]
    facts, gts = [fact for part in trained for fact in part.facts], [gt for part in trained for gt in part.gts]
    for part in (part for name, part in parts.items() if kind_of(name) == "val"):
        warnings += find_leaks(facts, gts, part.facts, part.gts)
    warnings += find_one_sided(found, config.data)
    warnings += find_in_values(parts, config.data.range)
    colours = [
        colour for part in parts.values() for fact in part.facts for colour in (fact.gt_colour, fact.input_colour)
    ]
    colours = [colour for colour in colours if not np.isnan(colour)]
    for_colour = config.data.channels == 3 and config.model.checkpoint is None  # a checkpoint decides the channels
    if for_colour and colours and max(colours) < GRAY:
        text = f"all {len(colours)} examined files are gray, but training is in colour; set data.channels=1"
        warnings.append(Finding("gray", text))
    if any(pipeline.steps for pipeline in degrade.values()):
        warnings += find_unscaled_noise(config.data)
    return list(dict.fromkeys(warnings))  # several sets may hold the same images


def _find_slow_loading(epoch: dict[str, Any] | None, pairs_per_second: float | None) -> list[Finding]:
    if not (epoch and pairs_per_second) or epoch["loading_pairs_per_second"] >= pairs_per_second:
        return []
    text = (
        f"loading gives {epoch['loading_pairs_per_second']:.0f} pairs/s, but training takes {pairs_per_second:g}; "
        "raise data.num_threads (`accel-restore bench data` shows where the time goes)"
    )
    return [Finding("slow", text)]


def _statistics(part: Part, made: list[float] | None) -> dict[str, Any] | None:
    """Return the figures of a set; `made`: the PSNR of some inputs if they are not files."""
    if not part.facts:
        return None
    gts = [gt for _, gt in part.headers]
    decibels = made or [fact.psnr for fact in part.facts if np.isfinite(fact.psnr)]
    levels = {"gt": [fact.gt_mean for fact in part.facts], "input": [fact.input_mean for fact in part.facts]}
    return {
        "pairs": part.total,
        "examined": len(part.facts),
        "height": [min(gt.height for gt in gts), max(gt.height for gt in gts)],
        "width": [min(gt.width for gt in gts), max(gt.width for gt in gts)],
        **{
            side: dict(Counter(f"{h.format} {h.depth} {h.mode}" for h in heads if h is not None))
            for side, heads in zip(("input_files", "gt_files"), zip(*part.headers, strict=True), strict=True)
        },
        "values": _spans(part),
        "psnr": {"lowest": min(decibels), "median": float(np.median(decibels)), "highest": max(decibels)}
        if decibels
        else None,
        **{f"{side}_level": 255 * float(np.mean(values)) for side, values in levels.items()},
    }


def _spans(part: Part) -> dict[str, list[float] | None]:
    """The smallest and the largest value of float pixels; None for integers."""
    totals = {side: span(values) for side, values in zip(("input", "gt"), zip(*part.values, strict=True), strict=True)}
    return {side: total and [total.lowest, total.highest] for side, total in totals.items()}


def _epoch(found: ScannedData, config: Config, degradations: dict[str, DegradationPipeline]) -> dict[str, Any]:
    """Return the cost of an epoch on one device."""
    sets = build_sets(found, config.data, config.run.seed, degradations, torch.device("cpu"))
    accumulation = config.train.gradient_accumulation_steps or 1
    batch = config.train.global_batch_size or config.data.batch_size * accumulation
    plan = BatchPlan(len(sets.train), batch, 1, 1, 0, config.data.patch_size, mixed=sets.train.mixed)
    stages = BatchSchedule((plan,), (), config.train.steps_per_epoch, config.train.max_steps)
    epoch, epochs = stages.epoch(0), config.train.epochs
    if config.train.max_steps is not None:
        epochs = stages.num_epochs(config.train.max_steps)
    last = stages.epoch(epochs - 1)
    rate = loading_rate(sets, config, 1.0)
    return {
        "samples": epoch.num_samples,
        "samples_of_run": last.first + last.num_samples,
        "sets": shares_of(sets.train.mixed, config.data),
        "steps": epoch.num_steps,
        "global_batch": batch,
        "decoded_bytes": sets.nbytes,
        "fits_in_memory": sets.fits_in_memory,
        "loading_pairs_per_second": rate,
        "loading_seconds": epoch.num_samples / rate,
    }


def _sheet(
    parts: dict[str, Part], warnings: list[Finding], degrade: dict[str, DegradationPipeline]
) -> Image.Image | None:
    """Draw the pairs with findings, then those of the lowest PSNR; the input of clean images is made."""
    kinds: dict[str, list[str]] = {}
    for finding in warnings:
        for file in finding.files:
            kinds.setdefault(file, []).append(finding.kind)
    rows = [
        (tuple(dict.fromkeys(kinds.get(str(pair.input), []) + kinds.get(str(pair.gt), []))), name, place)
        for name, part in parts.items()
        for place, pair in enumerate(part.pairs)
    ]
    rows.sort(key=lambda row: (not row[0], parts[row[1]].facts[row[2]].psnr))
    drawn = []
    for labels, name, place in rows[:_SHEET]:
        part = parts[name]
        input, gt = part.pixels(place)
        if input is None:
            made = make_input(part.pairs[place], gt, degrade[name])
            input, gt = (images[0].permute(1, 2, 0).numpy() for images in made)
        drawn.append(SheetRow(f"{name}: {part.pairs[place].name}", input, gt, part.facts[place].psnr, labels))
    return contact_sheet(drawn) if drawn else None


def _show(report: dict[str, Any], console: Console) -> None:
    names = [name for name in report if kind_of(name) in ("train", "val") and report[name]]
    if names:
        rows = [(what, *(show(report[name]) for name in names)) for what, show in _ROWS.items()]
        console.table("data", rows, ("", *names))
    if epoch := report["epoch"]:
        where = "memory" if epoch["fits_in_memory"] else "the disk, ahead of training"
        console.log(
            f"an epoch: {counted(epoch['samples'], 'sample')}, {counted(epoch['steps'], 'step')} of "
            f"{epoch['global_batch']}; "
            f"{epoch['decoded_bytes'] / 1e9:.2f} GB decoded, read from {where} at "
            f"{epoch['loading_pairs_per_second']:,.0f} pairs/s: {epoch['loading_seconds']:.1f} s of loading"
        )
    for error in report["errors"]:
        console.log(f"error: {one_line(error)}")
    for kind, group in groupby(sorted(report["warnings"], key=lambda w: w["kind"]), lambda w: w["kind"]):
        texts = [warning["text"] for warning in group]
        for text in texts[:_SHOWN]:
            console.log(f"warning ({kind}): {one_line(text)}")
        if len(texts) > _SHOWN:
            console.log(f"warning ({kind}): ... and {len(texts) - _SHOWN} more; --json FILE lists all")
    console.log(", ".join(_number(report[what], what) for what in ("errors", "warnings")))


def _number(found: list, what: str) -> str:
    return f"{len(found)} {what if len(found) != 1 else what.removesuffix('s')}"


def _level(level: float) -> str:
    return "-" if np.isnan(level) else f"{level:.0f}"


def _span(ends: list[int]) -> str:
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _counted(files: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in files.items()) or "made by data.degradation"


def _values(values: dict[str, list[float] | None]) -> str:
    spans = (f"{side} {ends[0]:g} to {ends[1]:g}" for side in ("gt", "input") if (ends := values[side]) is not None)
    return ", ".join(spans) or "-"


def _psnr(psnr: dict[str, float] | None) -> str:
    return "{lowest:.2f} to {highest:.2f} dB, median {median:.2f}".format(**psnr) if psnr else "-"
