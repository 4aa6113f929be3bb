"""What `accel-restore evaluate` prints and writes: the table of scores, JSON, CSV and pictures."""

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from accel_restore.commands._evaluate_options import WORST
from accel_restore.commands._outputs import write_output, write_report
from accel_restore.errors import UserError
from accel_restore.metrics.format import format_score, titled_score
from accel_restore.tracking.console import Console

if TYPE_CHECKING:
    from accel_restore.data.identity import ImageSet
    from accel_restore.data.pairs import Pair
    from accel_restore.inference.evaluate import Row, Scorer
    from accel_restore.inference.restorer import Restorer


@dataclass(frozen=True)
class Scores:
    """The scored pairs and their scores, in the same order."""

    pairs: "list[Pair]"
    rows: "list[Row]"
    images: "ImageSet"  # the same pairs, with the digests of their pixels

    def means(self, marks: list[bool] | None) -> "dict[str, Row]":
        """Return the mean of all images and, if some and not all were trained on, that of the others."""
        means = {"mean": _mean(self.rows)}
        if marks is not None and any(marks) and not all(marks):
            means["mean_not_trained_on"] = _mean([r for r, mark in zip(self.rows, marks, strict=True) if not mark])
        return means


_MAX_NAME = 200  # bytes of an image's name in that of its picture; disks take 255


def report(options: argparse.Namespace, console: Console, scorer: "Scorer", scores: Scores) -> None:
    """Print the scores and write the files."""
    from accel_restore.inference.training_images import changed_validation, training_images

    training = training_images(options.weights)
    marks = training.marks(scores.images)
    means = scores.means(marks)
    protocol = {**scorer.protocol.describe(), "precision": scorer.precision}
    if options.seed is not None:
        protocol["input"] = f"made by a degradation; --seed {options.seed} and the image's name key its draws"
    names = [name + " (trained on)" * mark for name, mark in _marked(scores.images.names, marks)]
    titles = ["mean", "mean, not trained on"][: len(means)]
    _show(console, scorer.protocol.metrics, [*names, *titles], [*scores.rows, *means.values()])
    for number, file in enumerate(options.weights, 1):
        console.log(f"weights{f' {number}' if len(options.weights) > 1 else ''}: {file}")
    for key, value in protocol.items():
        console.log(f"{key}: {value}")
    changed = changed_validation(options.run, scores.images) if options.run is not None else []
    for message in [*changed, *training.messages(scores.images)]:
        console.log(message)
    if options.json is not None:
        weights = [_weights(file, restorer) for file, restorer in zip(options.weights, scorer.restorers, strict=True)]
        images = _described(scores, marks)
        write_report(options.json, {"protocol": protocol, "weights": weights, **means, "images": images})
    if options.csv is not None:
        _write_csv(options.csv, scores, marks, means["mean"])
    if options.pictures is not None:
        _draw(options.pictures, scorer, scores.rows, options.worst or WORST)
        console.log(f"pictures of the worst: {options.pictures}")


def _mean(rows: "list[Row]") -> "Row":
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def _marked(items: list, marks: list[bool] | None) -> list[tuple[Any, bool]]:
    return list(zip(items, marks or [False] * len(items), strict=True))


def _described(scores: Scores, marks: list[bool] | None) -> list[dict[str, Any]]:
    """Return the images with their scores, for JSON; trained_on is null if it is not known."""
    images = [
        {"name": pair.name, "gt": str(pair.gt), **({"input": str(pair.input)} if pair.input else {}), **row}
        for pair, row in zip(scores.pairs, scores.rows, strict=True)
    ]
    return [{**image, "trained_on": mark if marks is not None else None} for image, mark in _marked(images, marks)]


def _weights(file: Path, restorer: "Restorer") -> dict[str, Any]:
    from accel_restore.inference.evaluate import file_sha256
    from accel_restore.models.weights_file import find_weights

    stored = {key: restorer.metadata.get(key) for key in ("sha256", "epoch", "step", "model")}
    return {"file": str(file), "file_sha256": file_sha256(find_weights(file)), **stored}


def _show(console: Console, metrics: tuple[str, ...], names: list[str], rows: "list[Row]") -> None:
    """Print the table of scores."""
    kinds = {"input_{}": "input {}", "{}": "{}", "{}_2": "{} 2", "{}_difference": "{} difference"}
    short = [metric.rpartition(":")[2] for metric in metrics]  # of import paths; the protocol names them in full
    columns = {
        key: title.format(name if short.count(name) == 1 else metric)
        for metric, name in zip(metrics, short, strict=True)
        for form, title in kinds.items()
        if (key := form.format(metric)) in rows[0]
    }
    lines = [
        (name, *(format_score(column, row[column], signed=column.endswith("_difference")) for column in columns))
        for name, row in zip(names, rows, strict=True)
    ]
    console.table("scores", lines, ("image", *columns.values()))


def _write_csv(file: Path, scores: Scores, marks: list[bool] | None, mean: "Row") -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    known = marks is not None
    writer.writerow(["image", *mean, *(["trained_on"] if known else [])])
    for (name, mark), row in zip(_marked(scores.images.names, marks), scores.rows, strict=True):
        writer.writerow([name, *row.values(), *([int(mark)] if known else [])])
    writer.writerow(["mean", *mean.values(), *([""] if known else [])])
    write_output(file, text.getvalue())


def _draw(folder: Path, scorer: "Scorer", rows: "list[Row]", count: int) -> None:
    """Draw the images with the worst scores of the first metric, cropped to their worst part."""
    from accel_restore.models.blocks import upscale
    from accel_restore.tracking.pictures import draw_samples, worst_part

    metric = scorer.protocol.metrics[0]
    lowest_first = scorer.protocol.built[metric].higher_is_better
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
            name = scorer.images.names[index].replace("/", "_").encode()[-_MAX_NAME:].decode(errors="ignore")
            draw_samples(folder / f"{place:02d}_{name}.png", [list(zip([*captions, "gt"], tiles, strict=True))])
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
