"""`accel-restore check`: what would stop training, what would only spoil it, and what an epoch will cost."""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from accel_restore.commands._outputs import check_writable, write_report
from accel_restore.commands.bench.data import loading_rate
from accel_restore.commands.config import add_configuration
from accel_restore.config.load import load_config
from accel_restore.config.schema import Config
from accel_restore.data.batch_plan import make_batch_plan
from accel_restore.data.build import ScannedData, build_sets, degradation_of, find_data
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.pairs import Pair
from accel_restore.data.val_dataset import seed_of
from accel_restore.data_check.contact_sheet import SheetRow, contact_sheet
from accel_restore.data_check.findings import Finding, find_in_set, find_leaks
from accel_restore.data_check.survey import Part, find_in_headers, survey
from accel_restore.errors import UserError
from accel_restore.losses import build_loss
from accel_restore.metrics.protocol import Protocol
from accel_restore.metrics.psnr_ssim import psnr
from accel_restore.models.blocks import upscale
from accel_restore.tracking.console import Console
from accel_restore.trainer.batch_size import assume_batch_size
from accel_restore.utils.files import to_json

_SHOWN = 8  # warnings of one kind; a JSON report holds all
_SHEET = 24  # pairs of a contact sheet
_MADE = 8  # images of a set of which the input is made, to measure it


def main(arguments: list[str]) -> int:
    """Examine the data of a configuration; the exit code: 2 with errors, 0 with warnings.

    Raises: UserError for a configuration that cannot be used.
    """
    parser = argparse.ArgumentParser(prog="accel-restore check", description=__doc__)
    add_configuration(parser)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the report (no FILE: print it)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw a contact sheet: input, gt, difference × 4")
    parser.add_argument("--limit", type=int, metavar="N", help="compare the pixels of N pairs a set, spread evenly")
    parser.add_argument("--pairs-per-second", type=float, metavar="N", help="what training takes: can loading keep up?")
    options = parser.parse_intermixed_args(arguments)
    if options.json and "=" in options.json:  # an override, not the name of a file
        options.overrides.append(options.json)
        options.json = "-"
    if options.limit is not None and options.limit < 1:
        raise UserError("check: --limit must be above 0")
    if options.json not in (None, "-"):
        check_writable(Path(options.json), inputs=[Path(options.config)] if options.config else [])
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
        _save(sheet, options.picture)
    return 2 if report["errors"] else 0


def _save(sheet: Image.Image, file: Path) -> None:
    try:
        sheet.save(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error})") from error


def check(
    config: Config, console: Console, limit: int | None, pairs_per_second: float | None, picture: Path | None
) -> tuple[dict[str, Any], Callable[[], Image.Image | None]]:
    """The report, and what draws a contact sheet, None where no pair could be examined.

    Raises: UserError for degradations or losses that cannot be used, and where `picture` cannot be made.
    """
    check_writable(picture, picture=True)
    degrade = degradation_of(config.data)
    loss = build_loss(config.loss, config.data.channels, config.data.patch_sizes)
    smallest_side = max(Protocol.of(config).smallest_side, loss.smallest_side)
    found = find_data(config.data, smallest_side, console.track)
    sources = [image for pair in (*found.train_pairs, *found.val_pairs) for image in (pair.gt, pair.input)]
    check_writable(picture, picture=True, inputs=[image for image in sources if isinstance(image, Path)])
    parts = {
        "train": survey(found.train, found.train_pairs, config.data, limit, console.track, "train"),
        "val": survey(found.val, found.val_pairs, config.data, limit, console.track, "val"),
    }
    warnings: list[Finding] = []
    for part in parts.values():
        warnings += find_in_headers(part)
        warnings += find_in_set(part.facts, part.gts, part.inputs)
    warnings += find_leaks(parts["train"].facts, parts["train"].gts, parts["val"].facts, parts["val"].gts)
    if found.train and found.val and (found.train.input is None) != (found.val.input is None):
        made, given = ("data.train", "data.val") if found.train.input is None else ("data.val", "data.train")
        text = f"the inputs of {made} are made by data.degradation, those of {given} are files: is that meant?"
        warnings.append(Finding("unlike", text))
    headers = [header for part in parts.values() for pair in part.headers for header in pair if header is not None]
    for_colour = config.data.channels == 3 and config.model.checkpoint is None  # whose channels decide
    if for_colour and headers and all("gray" in header.mode for header in headers):
        text = f"all {len(headers)} files examined are gray, and are trained on as colour: set data.channels=1"
        warnings.append(Finding("gray", text))
    made: dict[str, list[float]] = {}
    errors = list(found.problems)
    for name, part in parts.items():
        if part.pairs and part.inputs is None:
            try:
                made[name] = _made_psnr(part, degrade)
            except UserError as error:
                errors.append(str(error))
    if degrade.steps:
        warnings += _faint([step.model_dump() for step in config.data.degradation])
    epoch = None if errors else _epoch(found, config, degrade)
    if epoch and pairs_per_second and epoch["loading_pairs_per_second"] < pairs_per_second:
        text = (
            f"loading gives {epoch['loading_pairs_per_second']:.0f} pairs/s, training takes {pairs_per_second:g}: "
            "raise data.num_threads; `accel-restore bench data` tells where the time goes"
        )
        warnings.append(Finding("slow", text))
    report = {
        "errors": errors,
        "warnings": [asdict(finding) for finding in warnings],
        **{name: _statistics(part, made.get(name)) for name, part in parts.items()},
        "validation_images": [pair.name for pair in found.val_pairs],
        "epoch": epoch,
    }
    return report, (lambda: _sheet(parts, warnings, degrade))


def _statistics(part: Part, made: list[float] | None) -> dict[str, Any] | None:
    """What the table shows of a part; `made`: the PSNR of some inputs where they are no files."""
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
            side: dict(Counter(f"{h.format} {h.bits}-bit {h.mode}" for h in heads if h is not None))
            for side, heads in zip(("input_files", "gt_files"), zip(*part.headers, strict=True), strict=True)
        },
        "psnr": {"lowest": min(decibels), "median": float(np.median(decibels)), "highest": max(decibels)}
        if decibels
        else None,
        **{f"{side}_level": 255 * float(np.mean(values)) for side, values in levels.items()},
    }


def _epoch(found: ScannedData, config: Config, degrade: DegradationPipeline) -> dict[str, Any]:
    """What an epoch on one device takes."""
    sets = build_sets(found, config.data, config.run.seed, degrade, torch.device("cpu"))
    accumulation = config.train.gradient_accumulation_steps or 1
    batch = config.train.global_batch_size or config.data.batch_size * accumulation
    plan = make_batch_plan(len(sets.train), batch, 1, None, 1, 0, config.data.patch_size)
    rate = loading_rate(sets, config, 1.0)
    return {
        "samples": plan.num_samples,
        "steps": plan.steps_per_epoch,
        "global_batch": plan.global_batch,
        "decoded_bytes": sets.nbytes,
        "fits_in_memory": sets.fits_in_memory,
        "loading_pairs_per_second": rate,
        "loading_seconds": plan.num_samples / rate,
    }


def _sheet(parts: dict[str, Part], warnings: list[Finding], degrade: DegradationPipeline) -> Image.Image | None:
    """Pairs with findings first, then those of the lowest PSNR; the input of clean images is made."""
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
            input, gt = (images[0].permute(1, 2, 0).numpy() for images in _made(part.pairs[place], gt, degrade))
        drawn.append(SheetRow(f"{name}: {part.pairs[place].name}", input, gt, part.facts[place].psnr, labels))
    return contact_sheet(drawn) if drawn else None


def _made(pair: Pair, gt: np.ndarray, degrade: DegradationPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """The input that validation makes of gt (H, W, C), and gt, cut to multiples of the scale: (1, C, H, W).

    Raises: UserError that names the image where the degradation fails.
    """
    height, width = (side - side % degrade.scale for side in gt.shape[:2])
    images = torch.from_numpy(gt[:height, :width]).permute(2, 0, 1)[None]
    try:
        return degrade(images, np.array([seed_of(pair.name)], np.uint64)), images
    except Exception as error:  # the function may be the user's
        raise UserError(f"data.degradation: cannot work on {pair.gt}: {error}") from error


def _made_psnr(part: Part, degrade: DegradationPipeline) -> list[float]:
    """The PSNR in dB of the inputs that are made of a few of the images, spread evenly; see `_made`."""
    found = []
    for place in range(0, len(part.pairs), -(-len(part.pairs) // _MADE)):
        input, gt = _made(part.pairs[place], part.pixels(place)[1], degrade)
        found.append(float(psnr(upscale(input, degrade.scale).clamp(0, 1), gt)))
    return found


def _faint(steps: list[dict[str, Any]]) -> list[Finding]:
    """A finding for each step of noise, compositions included, that seems to be meant in units of [0, 1]."""
    found = []
    for step in steps:
        if step["name"] in ("sequence", "random_order", "choice"):
            found += _faint(step["of"])
        elif step["name"] == "gaussian_noise" and 0 < np.max(step.get("sigma", 0)) <= 1:
            text = (
                f"data.degradation: gaussian_noise has sigma {step['sigma']}, which counts levels of 255; "
                "if units of [0, 1] are meant, multiply it by 255"
            )
            found.append(Finding("faint", text))
    return found


def _show(report: dict[str, Any], console: Console) -> None:
    names = [name for name in ("train", "val") if report[name]]
    if names:
        rows = [
            (what, *(show(report[name]) for name in names))
            for what, show in (
                ("pairs", lambda s: f"{s['pairs']} ({s['examined']} examined)"),
                ("size of gt", lambda s: f"{_span(s['width'])} x {_span(s['height'])}"),
                ("files of gt", lambda s: _counted(s["gt_files"])),
                ("files of input", lambda s: _counted(s["input_files"])),
                ("PSNR of input", lambda s: _psnr(s["psnr"])),
                ("mean level", lambda s: f"gt {_level(s['gt_level'])}, input {_level(s['input_level'])} of 255"),
            )
        ]
        console.table("data", rows, ("", *names))
    if epoch := report["epoch"]:
        where = "memory" if epoch["fits_in_memory"] else "the disk, ahead of training"
        console.log(
            f"an epoch: {epoch['samples']} samples, {epoch['steps']} steps of {epoch['global_batch']}; "
            f"{epoch['decoded_bytes'] / 1e9:.2f} GB decoded, read from {where} at "
            f"{epoch['loading_pairs_per_second']:,.0f} pairs/s: {epoch['loading_seconds']:.1f} s of loading"
        )
    for error in report["errors"]:
        console.log(f"error: {error}")
    for kind, group in groupby(sorted(report["warnings"], key=lambda w: w["kind"]), lambda w: w["kind"]):
        texts = [warning["text"] for warning in group]
        for text in texts[:_SHOWN]:
            console.log(f"warning ({kind}): {text}")
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


def _psnr(psnr: dict[str, float] | None) -> str:
    return "{lowest:.2f} to {highest:.2f} dB, median {median:.2f}".format(**psnr) if psnr else "-"
