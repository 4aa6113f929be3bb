"""The images that the `data` section names: their pairs found, decoded into stores, and every problem collected."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from accel_restore.config.data import Data
from accel_restore.config.sets import Source, TrainSet, ValSet, key_of
from accel_restore.data.cache import Opened, Size, Track, open_stores
from accel_restore.data.cache_folder import default_cache
from accel_restore.data.decode import ImageSource
from accel_restore.data.hf_datasets import find_rows
from accel_restore.data.identity import Identity, ImageSet, facts_of
from accel_restore.data.manifest import Place, Scan, scan_files
from accel_restore.data.pairs import Pairs, find_pairs, held_out
from accel_restore.data.store import StoredPairs
from accel_restore.data.val_dataset import can_crop_gt
from accel_restore.errors import raise_problems


@dataclass(frozen=True)
class Images:
    """All pairs of one source in order, with their decoded images."""

    pairs: Pairs
    gt: Opened
    input: Opened | None

    @cached_property
    def place(self) -> dict[str, int]:
        """The index of each pair by its name."""
        return {name: index for index, name in enumerate(self.pairs.names)}


@dataclass(frozen=True)
class ScannedSet:
    """One set: images of a source, and those of its pairs that the set uses."""

    key: str  # of the source in the configuration
    images: Images | None  # None: no pairs were found
    pairs: Pairs  # by their indices in `images`

    @property
    def stored(self) -> StoredPairs:
        """The stored images of its pairs. The source must be free of problems."""
        assert self.images is not None and self.images.gt.store is not None
        input = None if self.images.input is None else self.images.input.store
        return StoredPairs(self.images.gt.store, input, self.pairs.indices)

    def identity(self) -> ImageSet:
        """Return what a run is trained or validated on."""
        stored, indices = self.stored, self.pairs.indices.tolist()
        gt = stored.gt.digests
        input = None if stored.input is None else stored.input.digests
        return ImageSet(
            self.pairs.names, [gt[index] for index in indices], input and [input[index] for index in indices]
        )

    @property
    def is_made(self) -> bool:
        """Whether all inputs are made by the degradation."""
        return self.images is not None and self.images.input is None


@dataclass(frozen=True)
class ScannedData:
    """The sets that the `data` section names, by their names, and all problems found.

    If validation images are held out, each training set has a validation set of its name with the same images.
    """

    train: dict[str, ScannedSet]
    val: dict[str, ScannedSet]
    problems: list[str]
    notes: list[str]  # on what was left out of folders
    known_facts: dict[str, dict[str, Any]] | None = None  # computed by another process

    @property
    def sets(self) -> dict[str, ScannedSet]:
        """All sets by the names that records give them: "train" or "train.div2k"."""
        kinds = {"train": self.train, "val": self.val}
        return {key_of(kind, name): one for kind, sets in kinds.items() for name, one in sets.items()}

    def sources(self) -> Iterator[ImageSource]:
        """Yield the images of all sets, gt and input."""
        return chain.from_iterable(one.pairs.sources() for one in self.sets.values())

    def identity(self) -> Identity:
        """Return what a run is trained and validated on. The data must be free of problems."""
        return {name: one.identity() for name, one in self.sets.items()}

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What state.json records of the identity."""
        return self.known_facts or facts_of(self.identity())


def sources_of(data: Data) -> dict[str, TrainSet | ValSet]:
    """Return the sets that a configuration names, by their keys."""
    sources: dict[str, TrainSet | ValSet] = {key_of("data.train", name): one for name, one in data.train_sets.items()}
    return sources | {key_of("data.val", name): one for name, one in data.val_sets.items()}


def find_data(
    data: Data,
    smallest_val_side: int | Mapping[str, int],
    track: Track | None = None,
    log: Callable[[str], None] | None = None,
    crop_gt: bool = False,
) -> ScannedData:
    """Find, decode and check all images of a configuration; see `open_stores` for `track` and `log`.

    `smallest_val_side` may differ between the validation sets. `crop_gt` accepts gts that can be cropped to
    `data.scale` times their input; see `can_crop_gt`.
    """
    notes: list[str] = []
    opened, problems = _open_sources(sources_of(data), data, notes, track, log)
    for images in opened.values():
        problems += _unequal(images, data.scale, crop_gt)
    found = ScannedData({}, {}, problems, notes)
    for name in data.train_sets:
        key = key_of("data.train", name)
        train, val, more = _divide(key, opened.get(key), data)
        problems += more
        found.train[name] = ScannedSet(key, opened.get(key), train)
        if data.val is None:
            found.val[name] = ScannedSet(key, opened.get(key), val)
    for name in data.val_sets:
        key = key_of("data.val", name)
        found.val[name] = ScannedSet(key, opened.get(key), opened[key].pairs if key in opened else Pairs.of([]))
    key, largest = max(data.patch_sizes.items(), key=lambda item: item[1])
    needed = "that validation needs for its metrics and the loss; remove the image"
    for one in found.train.values():
        problems += _too_small(one, data.scale, largest, f"of {key}; lower it")
    for name, one in found.val.items():
        least = smallest_val_side if isinstance(smallest_val_side, int) else smallest_val_side[name]
        problems += _too_small(one, data.scale, least, needed)
    return found


def raise_found(found: ScannedData) -> None:
    """Raise a `UserError` that lists the problems of the data, if there are any."""
    count = len(found.problems)
    raise_problems(f"the data cannot be used: {count} problem{'s' * (count != 1)}", found.problems)


def _open_sources(
    sources: Mapping[str, Source], data: Data, notes: list[str], track: Track | None, log: Callable[[str], None] | None
) -> tuple[dict[str, Images], list[str]]:
    """Decode the images of all sources; return the sources that have pairs, and the problems found. Adds `notes`."""
    cache = Path(data.cache_dir).expanduser() if data.cache_dir else default_cache()
    scans = {key: _scan(source, key, cache, data.cache.trust_folders) for key, source in sources.items()}
    problems = [problem for scan in scans.values() for problem in scan.problems]
    notes += [note for scan in scans.values() for note in scan.notes]
    pairs = {key: scan.pairs.first(data.max_images) for key, scan in scans.items() if scan.pairs}
    gts = {key: those.table.gt for key, those in pairs.items()}
    inputs = {key: those.table.input for key, those in pairs.items() if those.table.input is not None}
    wanted = [*gts.values(), *inputs.values()]
    channels = [data.channels] * len(gts) + [data.image_spec.input_channels] * len(inputs)
    opened = open_stores(wanted, channels, cache, track, data.max_image_pixels, log, data.cache.codec)
    for scan in scans.values():
        scan.save()
    problems += dict.fromkeys(problem for stored in opened for problem in stored.problems)
    gt_of = dict(zip(gts, opened[: len(gts)], strict=True))
    input_of = dict(zip(inputs, opened[len(gts) :], strict=True))
    images = {key: Images(those, gt_of[key], input_of.get(key)) for key, those in pairs.items()}
    return images, problems


def _scan(source: Source, key: str, cache: Path, trust_folders: bool) -> Scan:
    if source.dataset is not None:
        return Scan(*find_rows(source, key))
    assert source.gt is not None  # the configuration requires gt or dataset
    return scan_files(Place(source.gt, source.input, key, source.recursive), cache, trust_folders)


def pairs_of(source: Source, key: str, data: Data) -> tuple[Pairs, list[str]]:
    """Return the pairs of a source, and the problems found."""
    if source.dataset is not None:
        pairs, problems = find_rows(source, key)
    else:
        assert source.gt is not None  # the configuration requires gt or dataset
        pairs, problems = find_pairs(source.gt, source.input, key, source.recursive)
    return pairs.first(data.max_images), problems


def _divide(key: str, images: Images | None, data: Data) -> tuple[Pairs, Pairs, list[str]]:
    """The training pairs of a source, those held out for validation, and the problems found."""
    none = Pairs.of([])
    pairs = images.pairs if images else none
    if data.val is not None or not pairs:
        return pairs, none, []
    if len(pairs.table.gt.images) == 1:
        problem = f"{key}: a single image cannot be split into training and validation; add images or set data.val"
        return pairs, none, [problem]
    train, val = held_out(pairs, data.val_fraction)
    problem = f"data.val_fraction: {data.val_fraction} leaves no image of {key} to train on; lower it"
    return train, val, [] if train else [problem]


def _unequal(images: Images, scale: int, crop_gt: bool) -> list[str]:
    """One problem for each pair whose sizes do not match, and one for all whose gt could be cropped."""
    if images.input is None or (images.gt.heights_widths == scale * images.input.heights_widths).all():
        return []
    ratios = {_ratio(size, small) for size, small in zip(images.gt.sizes, images.input.sizes, strict=True)} - {None}
    if len(ratios) == 1 and scale not in ratios and (ratio := ratios.pop()):
        return [
            f"data.scale: is {scale}, but every gt is exactly {ratio} times as large as its input; set it to {ratio}"
        ]
    relation = f"gt must be {scale} times as large" if scale > 1 else "they must be of equal size"
    problems: list[str] = []
    croppable: list[str] = []
    for pair, size, small in zip(images.pairs, images.gt.sizes, images.input.sizes, strict=True):
        if not size or not small or size == (small[0] * scale, small[1] * scale):
            continue
        text = f"{pair.input}: is {_size(small)}, its gt {pair.gt} is {_size(size)}; {relation}"
        (croppable if can_crop_gt(size, small, scale) else problems).append(text)
    if croppable and not crop_gt:
        more = f" (and {len(croppable) - 1} more such pairs)" if len(croppable) > 1 else ""
        remedy = f"to crop up to {scale - 1} pixels of gt at the bottom and right, set validation.crop_gt=true"
        problems.append(f"{croppable[0]}{more}; {remedy}, which also crops training images")
    return problems


def _ratio(size: Size | None, input_size: Size | None) -> int | None:
    """How many times larger gt is than its input; 0: not a valid scale, None: unknown."""
    if size is None or input_size is None:
        return None
    return next((n for n in (1, 2, 3, 4) if size == (n * input_size[0], n * input_size[1])), 0)


def _too_small(one: ScannedSet, scale: int, least: int, remedy: str) -> list[str]:
    """One problem for each gt with a side below `least` pixels after it is cut to a multiple of the scale."""
    if one.images is None:
        return []
    sizes = one.images.gt.heights_widths[one.pairs.indices]
    is_too_small = sizes.all(1) & ((sizes - sizes % scale).min(1) < least)  # 0: an unusable image
    return [
        f"{one.pairs[place].gt}: is {_size(sizes[place].tolist())}, smaller than the {least} pixels {remedy}"
        for place in np.flatnonzero(is_too_small).tolist()
    ]


def _size(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
