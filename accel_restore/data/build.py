"""The data sets of a configuration's `data` section, with every image checked before step 1.

1. `find_data` (scan.py) finds the pairs, decodes the images into stores and collects all problems: `ScannedData`.
2. `raise_found` (scan.py) raises the problems.
3. `build_sets` makes the training and the validation set: `DataSets`.

`open_data` does all three.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from accel_restore.config.data import Data
from accel_restore.config.sets import TrainSet, ValSet
from accel_restore.data.cache import Track
from accel_restore.data.degradations.pipeline import DegradationPipeline, build_degradation
from accel_restore.data.identity import Identity
from accel_restore.data.pixels import Pixels, Range, largest_kind
from accel_restore.data.scan import ScannedData, ScannedSet, find_data, raise_found, sources_of
from accel_restore.data.store import StoredPairs
from accel_restore.data.train_dataset import CropDataset
from accel_restore.data.training_sets import TrainingSet, TrainingSets
from accel_restore.data.val_dataset import ValidationDataset, ValidationSets
from accel_restore.utils.memory import memory_bytes

_DISK_READERS = 8  # threads for data larger than memory: a disk answers several requests at once
_MEMORY_SHARE = 0.8  # decoded images that take up to this share of the memory are read through the page cache


@dataclass(frozen=True)
class DataSets:
    """The training and the validation images of a run."""

    train: TrainingSets
    val: ValidationSets
    found: "ScannedData"
    nbytes: int  # decoded images
    fits_in_memory: bool
    pixels: Pixels  # of the training images

    @property
    def identity(self) -> Identity:
        """What the run is trained on, which is equal when it resumes. A million pairs are 150 MB of texts."""
        return self.found.identity()

    @property
    def notes(self) -> list[str]:
        """On what was left out of folders, and on float pixels."""
        return [*self.found.notes, *notes_on_range(self.found, self.pixels.range)]


def open_data(
    data: Data,
    seed: int,
    smallest_val_side: int | Mapping[str, int],
    device: torch.device,
    track: Track | None = None,
    log: Callable[[str], None] | None = None,
    crop_gt: bool = False,
) -> DataSets:
    """Return the data sets of a configuration; see `find_data`.

    Raises: UserError that lists every problem found, with file names.
    """
    degradations = degradations_of(data)
    found = find_data(data, smallest_val_side, track, log, crop_gt)
    raise_found(found)
    return build_sets(found, data, seed, degradations, device)


def degradations_of(
    data: Data, sources: Mapping[str, TrainSet | ValSet] | None = None
) -> dict[str, DegradationPipeline]:
    """Return for each set, by its key such as "data.val.set5", what makes its inputs; for some, if `sources` is given.

    Raises: UserError for invalid arguments.
    """
    built: dict[str, DegradationPipeline] = {}
    found: dict[str, DegradationPipeline] = {}
    images = data.image_spec
    for set_key, source in (sources_of(data) if sources is None else sources).items():
        key = f"{set_key}.degradation" if source.degradation else "data.degradation"
        steps = [(step.name, step.arguments) for step in data.degradation_of(source)]
        if not steps:
            found[set_key] = DegradationPipeline([], data.scale)  # never called
            continue
        if key not in built:
            built[key] = build_degradation(steps, images.scale, images.channels, images.input_channels, key)
        found[set_key] = built[key]
    return found


def build_sets(
    found: ScannedData, data: Data, seed: int, degradations: dict[str, DegradationPipeline], device: torch.device
) -> DataSets:
    """Return the data sets of data without problems; `degradations` are those of `degradations_of`."""
    nbytes, fits = _prepare_reading(*(one.stored for one in found.sets.values()))
    threads = data.num_threads if fits else max(_DISK_READERS, data.num_threads)
    readers = ThreadPoolExecutor(threads, "accel-restore-reader") if threads > 1 else None
    return DataSets(
        _training_sets(found.train, data, seed, degradations, readers),
        ValidationSets(
            {
                name: ValidationDataset(
                    one.pairs.names,
                    one.stored.gt,
                    one.stored.input,
                    one.stored.indices,
                    degradations[one.key],
                    device,
                    data.scale,
                    data.range,
                )
                for name, one in found.val.items()
            }
        ),
        found,
        nbytes,
        fits,
        _pixels_of(found, data.range),
    )


def _training_sets(
    found: dict[str, ScannedSet],
    data: Data,
    seed: int,
    degradations: dict[str, DegradationPipeline],
    readers: ThreadPoolExecutor | None,
) -> TrainingSets:
    sets: list[TrainingSet] = []
    for name, source in data.train_sets.items():
        one = found[name]
        crops = CropDataset(
            one.stored,
            crops_per_image=source.crops_per_image or data.crops_per_image,
            augment=data.augment,
            seed=seed,
            scale=data.scale,
            mixup_alpha=data.mixup.alpha if data.mixup else 1.0,
            range=data.range,
            readers=readers,
        )
        degrade = degradations[one.key].for_training()
        sets.append(TrainingSet(name, crops, degrade, one.pairs, source.share, source.synthetic_share))
    return TrainingSets(sets)


def notes_on_range(found: ScannedData, range: Range) -> list[str]:
    """Return a note that names the sources with float pixels outside of the range, if there are any."""
    (low, high), outside = map(np.float32, range), {}
    for one in found.sets.values():
        for side, opened in (("gt", one.images and one.images.gt), ("input", one.images and one.images.input)):
            if opened and opened.values and (opened.values[0] < low or opened.values[1] > high):
                outside[f"{one.key}.{side}"] = "{:g} to {:g}".format(*opened.values)
    places = ", ".join(f"{key} has {values}" for key, values in outside.items())
    about = f"float pixels outside of data.range [{low:g}, {high:g}] are kept"
    return [f"{about}: {places}"] if outside else []


def _pixels_of(found: ScannedData, range: Range) -> Pixels:
    stored = [one.stored for one in found.train.values()]
    gt = largest_kind(pairs.gt.dtype for pairs in stored)
    inputs = [pairs.gt.dtype if pairs.input is None else pairs.input.dtype for pairs in stored]
    return Pixels(largest_kind(inputs), gt, range)


def _prepare_reading(*pairs: StoredPairs) -> tuple[int, bool]:
    """Choose how the stores are read; return the bytes of decoded images, and whether they fit into memory."""
    stores = [store for those in pairs for store in (those.gt, those.input) if store is not None]
    files = {store.path: store for store in stores}  # two stores may be in one file
    nbytes = sum(store.nbytes for store in files.values())
    fits = nbytes <= _MEMORY_SHARE * memory_bytes()
    for store in stores:
        store.read_ahead = not fits
    if fits:
        for store in files.values():
            store.warm()
    return nbytes, fits
