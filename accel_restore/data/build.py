"""From the configuration's `data` section to a training set and whole validation images, checked before step 1."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from accel_restore.config.data import Data, Source
from accel_restore.data.cache import Opened, Size, Track, default_cache, open_stores
from accel_restore.data.degradations.pipeline import DegradationPipeline, build_degradation
from accel_restore.data.hf_datasets import find_rows
from accel_restore.data.pairs import Pair, find_pairs, held_out
from accel_restore.data.train_dataset import CropDataset
from accel_restore.data.val_dataset import ValidationDataset
from accel_restore.errors import raise_problems
from accel_restore.utils.memory import memory_bytes

_READERS = 8  # of data larger than memory: a disk answers several at once
_IN_MEMORY = 0.8  # share of the memory that decoded images may take to be read as if they lay in it


@dataclass(frozen=True)
class DataSets:
    """What a run trains on and is scored on."""

    train: CropDataset
    val: ValidationDataset
    degrade: DegradationPipeline
    train_files: list[str]  # of each training image: its input, or its gt where the input is made
    identity: dict  # what a resumed run's data must equal: names of training and validation images
    nbytes: int  # decoded images
    fits_in_memory: bool


@dataclass(frozen=True)
class Images:
    """A source whose images have been looked at: its pairs in order, and what is known of their images."""

    pairs: list[Pair]
    gt: Opened
    input: Opened | None

    @cached_property
    def place(self) -> dict[str, int]:
        """The number of each pair by its name."""
        return {pair.name: number for number, pair in enumerate(self.pairs)}


@dataclass(frozen=True)
class ScannedData:
    """What the `data` section names, and all that is wrong with it."""

    train: Images | None
    val: Images | None  # the same as `train` where validation images are held out
    train_pairs: list[Pair]
    val_pairs: list[Pair]
    problems: list[str]


def find_data(
    data: Data, smallest_val_side: int, track: Track | None = None, wait: Callable[[str], None] | None = None
) -> ScannedData:
    """The data of a configuration, every image decoded, measured and compared with its partner; see `open_stores`."""
    problems: list[str] = []
    sources = {"data.train": data.train} | ({"data.val": data.val} if data.val is not None else {})
    opened = _open_all(sources, data, problems, track, wait)
    train = opened["data.train"]
    val = opened["data.val"] if data.val is not None else train

    train_pairs = train.pairs if train else []
    if data.val is not None:
        val_pairs = val.pairs if val else []
    elif len({pair.gt for pair in train_pairs}) == 1:
        problems.append("data.train: one image cannot be divided into training and validation; add images or data.val")
        val_pairs = []
    else:
        train_pairs, val_pairs = held_out(train_pairs, data.val_fraction) if train_pairs else ([], [])
        if val_pairs and not train_pairs:
            problems.append(f"data.val_fraction: {data.val_fraction} leaves nothing to train on; lower it")
    key, largest = max(data.patch_sizes.items(), key=lambda item: item[1])
    problems += _too_small(train, train_pairs, data.scale, largest, f"{key}; lower it")
    needed = "what validation needs to score (its metrics and the loss); remove it"
    problems += _too_small(val, val_pairs, data.scale, smallest_val_side, needed)
    return ScannedData(train, val, train_pairs, val_pairs, problems)


def open_data(
    data: Data,
    seed: int,
    smallest_val_side: int,
    device: torch.device,
    track: Track | None = None,
    wait: Callable[[str], None] | None = None,
) -> DataSets:
    """The data sets of a configuration; `track` and `wait` are those of `open_stores`.

    Raises: UserError that lists every problem found, with file names.
    """
    degrade = degradation_of(data)
    found = find_data(data, smallest_val_side, track, wait)
    raise_found(found)
    return build_sets(found, data, seed, degrade, device)


def degradation_of(data: Data) -> DegradationPipeline:
    """The degradation that makes the input of sources without one.

    Raises: UserError for arguments that cannot be used.
    """
    if all(source.input is not None for source in (data.train, data.val) if source is not None):
        return DegradationPipeline([], data.scale)  # which nothing will call
    return build_degradation([(step.name, step.arguments) for step in data.degradation], data.scale, data.channels)


def raise_found(found: ScannedData) -> None:
    """Raise `UserError` with the problems of the data, if there are any."""
    count = len(found.problems)
    raise_problems(f"the data cannot be used: {count} problem{'s' * (count != 1)}", found.problems)


def build_sets(
    found: ScannedData, data: Data, seed: int, degrade: DegradationPipeline, device: torch.device
) -> DataSets:
    """The data sets of data without problems."""
    train, val = found.train, found.val
    stores = {
        opened.store.path: opened.store
        for images in (train, val)
        for opened in (images.gt, images.input)
        if opened is not None
    }
    nbytes = sum(store.nbytes for store in stores.values())
    fits = nbytes <= _IN_MEMORY * memory_bytes()
    for images in (train, val):
        for opened in filter(None, (images.gt, images.input)):
            opened.store.read_ahead = not fits
    if fits:
        for store in stores.values():
            store.warm()
    readers = data.num_threads if fits else max(_READERS, data.num_threads)
    return DataSets(
        CropDataset(
            train.gt.store,
            train.input and train.input.store,
            _positions(train, found.train_pairs),
            crops_per_image=data.crops_per_image,
            augment=data.augment,
            seed=seed,
            scale=data.scale,
            mixup_alpha=data.mixup.alpha if data.mixup else 1.0,
            readers=ThreadPoolExecutor(readers, "accel-restore-reader") if readers > 1 else None,
        ),
        ValidationDataset(
            [pair.name for pair in found.val_pairs],
            val.gt.store,
            val.input and val.input.store,
            _positions(val, found.val_pairs),
            degrade,
            device,
            data.scale,
        ),
        degrade,
        [str(pair.input or pair.gt) for pair in found.train_pairs],
        {"train": [pair.name for pair in found.train_pairs], "val": [pair.name for pair in found.val_pairs]},
        nbytes,
        fits,
    )


def _open_all(
    sources: dict[str, Source], data: Data, problems: list[str], track: Track | None, wait: Callable[[str], None] | None
) -> dict[str, Images | None]:
    """Each source with its images decoded, None where it has no pairs; adds to `problems`."""
    pairs: dict[str, list[Pair]] = {}
    for key, source in sources.items():
        pairs[key], found = pairs_of(source, key, data)
        problems += found
    wanted = [[pair.gt for pair in those] for those in pairs.values() if those]
    wanted += [[pair.input for pair in those] for those in pairs.values() if those and those[0].input is not None]
    cache = Path(data.cache_dir).expanduser() if data.cache_dir else default_cache()
    opened = open_stores(wanted, data.channels, cache, track, data.max_image_pixels, wait)
    problems += dict.fromkeys(problem for images in opened for problem in images.problems)
    gts, inputs = iter(opened), iter(opened[sum(map(bool, pairs.values())) :])
    found = {
        key: Images(those, next(gts), next(inputs) if those[0].input is not None else None) if those else None
        for key, those in pairs.items()
    }
    for images in filter(None, found.values()):
        problems += _unequal(images, data.scale)
    return found


def pairs_of(source: Source, key: str, data: Data) -> tuple[list[Pair], list[str]]:
    """The pairs that a source names, and what is wrong with them."""
    if source.dataset is not None:
        pairs, problems = find_rows(source, key)
    else:
        pairs, problems = find_pairs(source.gt, source.input, key, source.recursive)
    return pairs[: data.max_images], problems


def _unequal(images: Images, scale: int) -> list[str]:
    """A sentence for each pair whose sizes do not fit."""
    if images.input is None:
        return []
    ratios = {_ratio(size, small) for size, small in zip(images.gt.sizes, images.input.sizes, strict=True)} - {None}
    if len(ratios) == 1 and scale not in ratios and (ratio := ratios.pop()) > 0:
        return [f"data.scale: is {scale}, but each gt is exactly {ratio} times as large as its input: set {ratio}"]
    relation = f"gt must be {scale} times as large" if scale > 1 else "they must be equal"
    return [
        f"{pair.input}: is {_size(input_size)}, its gt {pair.gt} is {_size(size)}; {relation}"
        for pair, size, input_size in zip(images.pairs, images.gt.sizes, images.input.sizes, strict=True)
        if size and input_size and size != (input_size[0] * scale, input_size[1] * scale)
    ]


def _ratio(size: Size | None, input_size: Size | None) -> int | None:
    """How many times larger gt is, 0 where it is no scale, None where it is not known."""
    if size is None or input_size is None:
        return None
    return next((n for n in (1, 2, 3, 4) if size == (n * input_size[0], n * input_size[1])), 0)


def _too_small(images: Images | None, pairs: list[Pair], scale: int, least: int, what: str) -> list[str]:
    """A sentence for each gt of less than `least` pixels, when it is cut to a multiple of the scale."""
    if images is None:
        return []
    sizes = [images.gt.sizes[place] for place in _positions(images, pairs)]
    return [
        f"{pair.gt}: is {_size(size)}, less than the {least} pixels of {what}"
        for pair, size in zip(pairs, sizes, strict=True)
        if size and min(side - side % scale for side in size) < least
    ]


def _positions(images: Images, pairs: list[Pair]) -> list[int]:
    return [images.place[pair.name] for pair in pairs]


def _size(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
