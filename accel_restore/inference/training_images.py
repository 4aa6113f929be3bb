"""Which scored images the weights were trained on, by the record of their run: images.json next to the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_restore.config.sets import key_of
from accel_restore.data.identity import RECORD, ImageSet, in_words, of_kind, read_record
from accel_restore.models.weights_file import find_weights


@dataclass(frozen=True)
class TrainingImages:
    """The images that files of weights were trained on: digests and run of each file, None if they are not recorded."""

    files: list[Path]
    digests: list[set[str] | None]
    runs: list[Path | None]

    def marks(self, scored: ImageSet) -> list[bool] | None:
        """Return for each scored image whether any of the weights was trained on it, or None if that is not known."""
        known = [digests for digests in self.digests if digests is not None]
        return [any(digests & image for digests in known) for image in _by_image(scored)] if known else None

    def messages(self, scored: ImageSet) -> list[str]:
        """Return a warning for each file that was trained on scored images, and a note where that is not known."""
        found = []
        for file, digests, run in zip(self.files, self.digests, self.runs, strict=True):
            if digests is None:
                found.append(f"note: no {RECORD} next to {file}, so images that it was trained on cannot be marked")
                continue
            names = [name for name, image in zip(scored.names, _by_image(scored), strict=True) if digests & image]
            if names:
                found.append(
                    f"warning: {file} was trained on {len(names)} of these {len(scored.names)} images "
                    f"({in_words(names)}); their scores do not show how well it restores other images; give "
                    f"other images, or --run {run} for those that the run held out"
                )
        return found


def training_images(files: Sequence[Path]) -> TrainingImages:
    """Return what is recorded next to the weights, in the folder of their run or one below it."""
    digests: list[set[str] | None] = []
    runs: list[Path | None] = []
    for file in files:
        path = find_weights(file)
        folders = path.parents[:3] if len(path.parents) > 2 else path.absolute().parents[:3]
        # The first for best.safetensors, the second for hub/…, the third for checkpoints/step-…/….
        run, record = next(((f, record) for f in folders if (record := read_record(f)) is not None), (None, None))
        digests.append(set().union(*(images.digests() for images in of_kind(record, "train"))) if record else None)
        runs.append(run)
    return TrainingImages(list(files), digests, runs)


def changed_validation(run: Path, scored: ImageSet, name: str = "") -> list[str]:
    """Return a warning if the images of a run's validation set with this name have changed since the run."""
    record = (read_record(run) or {}).get(key_of("val", name))
    changes = ", ".join(record.differences(scored.without_secrets())) if record is not None else ""
    what = f"the validation images of {run}{f' in {name}' * bool(name)}"
    return [f"warning: {what} have changed since the run: {changes}"] if changes else []


def _by_image(scored: ImageSet) -> list[set[str]]:
    return (
        [{gt} for gt in scored.gt] if scored.input is None else [*map(set, zip(scored.gt, scored.input, strict=True))]
    )
