"""`accel-restore evaluate`: score weights on pairs, or on clean images that are degraded."""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_restore.commands._evaluate_options import degradation_steps, given_settings, parse
from accel_restore.commands._evaluate_report import Scores, report
from accel_restore.commands._processes import Processes, choose_precision, joined
from accel_restore.errors import UserError, raise_problems
from accel_restore.tracking.console import Console
from accel_restore.utils.words import counted

if TYPE_CHECKING:
    import torch

    from accel_restore.data.decode import ImageSource
    from accel_restore.data.identity import ImageSet
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
    sets, notes = processes.run_together(lambda: _prepare(options, steps, given, processes.device))
    for note in dict.fromkeys(notes):
        console.log(f"note: {note}")
    total = sum(len(pairs) for _, pairs in sets.values())
    scored: dict[str, Scores] = {}
    problems: list[str] = []
    first = 0  # place of a set's first image among all: they are dealt out to the processes together
    for name, (scorer, pairs) in sets.items():
        mine = range((processes.rank - first) % processes.world_size, len(pairs), processes.world_size)
        first += len(pairs)
        rows, images, more = _score(scorer, pairs, mine, name, processes, console)
        scored[name] = Scores(scorer, pairs, rows, images)
        problems += more
    raise_problems(f"{len(problems)} of {total} images cannot be scored", problems)
    if processes.rank == 0:
        report(options, console, scored)
    return 0


def _score(
    scorer: "Scorer", pairs: "list[Pair]", mine: range, name: str, processes: Processes, console: Console
) -> "tuple[list[Row], ImageSet, list[str]]":
    """Return the scores of a set's images, their digests, and the problems of all processes; `mine` are scored here."""
    what = f"scoring {counted(len(pairs), 'image')}{f' of {name}' * bool(name)}"
    found, problems = processes.run_together(
        lambda: scorer.score(mine, lambda items: console.track(items, len(mine), what))
    )
    digests = dict(processes.gather([(index, scorer.digests(index)) for index, _ in found]))
    problems, rows = processes.gather(problems), dict(processes.gather(found))
    places = sorted(rows)
    images = _image_set([pairs[place] for place in places], [digests[place] for place in places])
    return [rows[place] for place in places], images, problems


def _prepare(
    options: argparse.Namespace, steps: list, given: dict[str, Any], device: "torch.device"
) -> "tuple[dict[str, tuple[Scorer, list[Pair]]], list[str]]":
    """Return for each set what scores it and its pairs, and notes for the user."""
    from accel_restore.inference.evaluate import find_misfits
    from accel_restore.inference.run_validation import read_validation

    restorers = _load(options.weights, device)
    first = restorers[0]
    if options.run is not None:
        validations = read_validation(options.run, first.images)
    else:
        validations = {"": _named_images(options, steps, first)}
    if options.seed is not None and all(one.pairs[0].input is not None for one in validations.values()):
        raise UserError("--seed: chooses the draws of a degradation, but the input is in files; omit it")
    sets: dict[str, tuple[Scorer, list[Pair]]] = {}
    built_once: dict[tuple[str, str], Any] = {}  # metrics, which are the same for all sets
    notes: list[str] = []
    misfits: list[str] = []
    for name, validation in validations.items():
        scorer, more = _scorer(options, validation, restorers, given, built_once)
        sets[name] = scorer, validation.pairs
        notes += more
        protocol, max_pixels = scorer.protocol, options.max_pixels or validation.max_pixels
        misfits += find_misfits(validation.pairs, first.scale, protocol.smallest_side, max_pixels, protocol.crop_gt)
    _raise_misfits(misfits)
    return {name: (_for_pixels(scorer, pairs[0].gt), pairs) for name, (scorer, pairs) in sets.items()}, notes


def _scorer(
    options: argparse.Namespace,
    validation: "ValidationSettings",
    restorers: "list[Restorer]",
    given: dict[str, Any],
    built_once: dict[tuple[str, str], Any],
) -> "tuple[Scorer, list[str]]":
    """Return what scores the images of a set, and notes for the user."""
    from accel_restore.inference.evaluate import Scorer, protocol_of, whole_images

    first, device = restorers[0], restorers[0].device
    protocol, notes = protocol_of(first, validation.steps, {**validation.settings, **given})
    protocol = replace(protocol, built_once=built_once, made_by=validation.made_by)
    notes += validation.notes
    _ = protocol.scores  # loads the weights of metrics, so that errors appear now
    protocol.try_own(device)
    if options.pictures is not None:
        protocol.check_direction(protocol.metrics[0], "--pictures")
    max_pixels, seed, float_range = options.max_pixels or validation.max_pixels, options.seed, first.pixels.range
    images = whole_images(validation.pairs, first.images, validation.degrade, device, seed, max_pixels, float_range)
    wanted = options.precision or validation.precision
    if options.precision is None and wanted == "fp16" and device.type == "cpu":
        notes.append("the run was validated in fp16, which needs a GPU; here it is scored in float32")
        wanted = "no"
    return Scorer(restorers, images, protocol, choose_precision(wanted, device)), notes


def _for_pixels(scorer: "Scorer", gt: "ImageSource") -> "Scorer":
    """Return what scores by the protocol for the kind of pixels of a gt, which all others have."""
    from accel_restore.data.decode import read_header

    kind, range = read_header(gt, sys.maxsize).dtype, scorer.restorers[0].pixels.range
    try:
        return replace(scorer, protocol=scorer.protocol.for_pixels(kind, range))
    except UserError:
        raise UserError("--quantize: rounds to 8 bits, but gt has float pixels; give --no-quantize") from None


def _load(files: list[Path], device: "torch.device") -> "list[Restorer]":
    """Load weights. Raises: UserError if they cannot be compared on the same images."""
    from accel_restore.inference.restorer import load

    restorers = [load(file, device) for file in files]
    first = restorers[0]
    for file, other in zip(files, restorers, strict=True):
        if other.pixels.range != first.pixels.range:
            raise UserError(
                f"{file}: was trained with data.range {list(other.pixels.range)}, but {files[0]} with "
                f"{list(first.pixels.range)}; they cannot be compared on the same images"
            )
        if other.images != first.images:
            raise UserError(
                f"{file}: has {other.images.in_words}, but {files[0]} has {first.images.in_words}; they cannot be "
                "compared on the same images"
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
            degrade = build_degradation(named, restorer.scale, restorer.channels, restorer.input_channels)
        except UserError as error:
            raise UserError(str(error).replace("data.degradation", "--degrade")) from None
    input = None if options.input is None else _place(options.input)
    notes: list[str] = []
    pairs, problems = find_pairs(_place(options.gt), input, "evaluate", options.recursive, notes)
    _raise_misfits([_with_options(problem) for problem in problems])
    return ValidationSettings(list(pairs), degrade, steps, {}, notes=[_with_options(note) for note in notes])


def _with_options(message: str) -> str:
    """Name the options in place of keys."""
    text = re.sub(r"\bevaluate\.(gt|input)", r"--\1", message)
    return text.replace("recursive: true searches", "--recursive searches")


def _raise_misfits(problems: list[str]) -> None:
    raise_problems(f"the images cannot be used: {len(problems)} problem{'s' * (len(problems) != 1)}", problems)


def _place(given: list[str]) -> str | list[str]:
    """Return a single folder or pattern as such, and files as a list."""
    return given[0] if len(given) == 1 and not Path(given[0]).is_file() else given


def _image_set(pairs: "list[Pair]", digests: list[tuple[str, str | None]]) -> "ImageSet":
    from accel_restore.data.identity import ImageSet

    gts, inputs = [gt for gt, _ in digests], [input for _, input in digests if input is not None]
    return ImageSet([pair.name for pair in pairs], gts, inputs or None)
