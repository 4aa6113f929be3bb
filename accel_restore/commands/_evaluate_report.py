"""What `accel-restore evaluate` prints and writes: the table of scores, JSON, CSV and pictures."""

import argparse
import csv
import io
from collections.abc import Iterator
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
    """The scored pairs of a set and their scores, in the same order."""

    scorer: "Scorer"
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


def report(options: argparse.Namespace, console: Console, sets: dict[str, Scores]) -> None:
    """Print the scores of each set and write the files."""
    from accel_restore.inference.training_images import changed_validation, training_images

    training = training_images(options.weights)
    marks = {name: training.marks(scores.images) for name, scores in sets.items()}
    found = {name: _described(scores, marks[name], options.seed) for name, scores in sets.items()}
    for name, scores in sets.items():
        _show_set(console, name, scores, marks[name])
    means = {name: one["mean"] for name, one in found.items()}
    scorer, whole = next(iter(sets.values())).scorer, _mean(list(means.values()))
    if len(sets) > 1:
        _show(console, scorer.protocol.metrics, [*means.items(), ("mean of sets", whole)], "means of the sets", "set")
    for number, file in enumerate(options.weights, 1):
        console.log(f"weights{f' {number}' if len(options.weights) > 1 else ''}: {file}")
    for line in _protocol_lines({name: one["protocol"] for name, one in found.items()}):
        console.log(line)
    for name, scores in sets.items():
        changed = changed_validation(options.run, scores.images, name) if options.run is not None else []
        for message in [*changed, *training.messages(scores.images)]:
            console.log(message)
    if options.json is not None:
        weights = [_weights(file, restorer) for file, restorer in zip(options.weights, scorer.restorers, strict=True)]
        content = {"mean": whole, "sets": found} if any(found) else found[""]
        write_report(options.json, {**content, "weights": weights})
    if options.csv is not None:
        _write_csv(options.csv, sets, marks, {**means, "": whole})
    if options.pictures is not None:
        _draw_sets(options.pictures, sets, options.worst or WORST)
        console.log(f"pictures of the worst: {options.pictures}")


def _draw_sets(folder: Path, sets: dict[str, Scores], worst: int) -> None:
    """Draw the worst images of each set, in a folder of its name."""
    for name, scores in sets.items():
        _draw(folder / name, scores.scorer, scores.rows, worst)


def _described(scores: Scores, marks: list[bool] | None, seed: int | None) -> dict[str, Any]:
    """Return a set for JSON: its protocol, means and images; trained_on is null if it is not known."""
    protocol = {**scores.scorer.protocol.describe(), "precision": scores.scorer.precision}
    if seed is not None and scores.pairs[0].input is None:
        protocol["input"] = f"made by a degradation; --seed {seed} and the image's name key its draws"
    images = [
        {"name": pair.name, "gt": str(pair.gt), **({"input": str(pair.input)} if pair.input else {}), **row}
        for pair, row in zip(scores.pairs, scores.rows, strict=True)
    ]
    marked = [{**image, "trained_on": mark if marks is not None else None} for image, mark in _marked(images, marks)]
    return {"protocol": protocol, **scores.means(marks), "images": marked}


def _show_set(console: Console, name: str, scores: Scores, marks: list[bool] | None) -> None:
    """Print the scores of a set's images, and their means."""
    names = [image + " (trained on)" * mark for image, mark in _marked(scores.images.names, marks)]
    means = scores.means(marks).values()
    titles = ["mean", "mean, not trained on"][: len(means)]
    lines = list(zip([*names, *titles], [*scores.rows, *means], strict=True))
    _show(console, scores.scorer.protocol.metrics, lines, f"scores{f' on {name}' * bool(name)}")


def _protocol_lines(protocols: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the protocol: once what all sets have in common, and then what each has of its own."""
    first, *others = protocols.values()
    common = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    for key, value in common.items():
        yield f"{key}: {value}"
    for name, protocol in protocols.items():
        own = {key: value for key, value in protocol.items() if key not in common}
        yield from (f"{name}: {key}: {value}" for key, value in own.items())


def _mean(rows: "list[Row]") -> "Row":
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def _marked(items: list, marks: list[bool] | None) -> list[tuple[Any, bool]]:
    return list(zip(items, marks or [False] * len(items), strict=True))


def _weights(file: Path, restorer: "Restorer") -> dict[str, Any]:
    from accel_restore.inference.evaluate import file_sha256
    from accel_restore.models.weights_file import find_weights

    stored = {key: restorer.metadata.get(key) for key in ("sha256", "epoch", "step", "model")}
    return {"file": str(file), "file_sha256": file_sha256(find_weights(file)), **stored}


def _show(
    console: Console, metrics: tuple[str, ...], lines: "list[tuple[str, Row]]", title: str, of: str = "image"
) -> None:
    """Print a table of scores; a line is a name and its scores."""
    kinds = {"input_{}": "input {}", "{}": "{}", "{}_2": "{} 2", "{}_difference": "{} difference"}
    short = [metric.rpartition(":")[2] for metric in metrics]  # of import paths; the protocol names them in full
    columns = {
        key: title.format(name if short.count(name) == 1 else metric)
        for metric, name in zip(metrics, short, strict=True)
        for form, title in kinds.items()
        if (key := form.format(metric)) in lines[0][1]
    }
    cells = [
        (name, *(format_score(column, row[column], signed=column.endswith("_difference")) for column in columns))
        for name, row in lines
    ]
    console.table(title, cells, (of, *columns.values()))


def _write_csv(
    file: Path, sets: dict[str, Scores], marks: dict[str, list[bool] | None], means: "dict[str, Row]"
) -> None:
    """Write a row per image, and the mean of each set, by name. Of named sets, '' is the mean over sets."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    known, named = any(marks.values()), any(sets)
    writer.writerow([*["set"] * named, "image", *means[""], *(["trained_on"] if known else [])])
    for name, scores in sets.items():
        for (image, mark), row in zip(_marked(scores.images.names, marks[name]), scores.rows, strict=True):
            writer.writerow([*[name] * named, image, *row.values(), *([int(mark)] if known else [])])
    for name, mean in means.items():
        writer.writerow([*[name] * named, "mean", *mean.values(), *([""] if known else [])])
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
            captions = [
                f"{what} {titled_score(metric, row[key])}" if key in row else what
                for what, key in scored[: len(shown) - 1]
            ]
            tiles = worst_part(shown, outputs[0], image["gt"])
            name = scorer.images.names[index].replace("/", "_").encode()[-_MAX_NAME:].decode(errors="ignore")
            draw_samples(folder / f"{place:02d}_{name}.png", [list(zip([*captions, "gt"], tiles, strict=True))])
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
