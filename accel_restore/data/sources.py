"""From the configuration's `data` section to a training set and whole validation images, checked before step 1."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from accel_restore.config import Data, Source
from accel_restore.data.crops import CropDataset
from accel_restore.data.degrade import build_degradation
from accel_restore.data.pairs import Pair, find_pairs, held_out
from accel_restore.data.store import Size, Store, default_cache, open_store
from accel_restore.data.whole import WholeImages
from accel_restore.errors import raise_problems


@dataclass(frozen=True)
class DataSets:
    """What a run trains on and is scored on."""

    train: CropDataset
    val: WholeImages
    degrade: Callable
    identity: dict  # what a resumed run's data must equal: names of training and validation images


@dataclass(frozen=True)
class _Opened:
    """A source whose images have been decoded and compared; without stores where problems were found."""

    pairs: list[Pair]
    sizes: dict[str, Size | None]  # of gt, by name
    gt: Store | None
    input: Store | None


def open_data(
    data: Data, seed: int, smallest_val_side: int, device: torch.device, announce: Callable[[str], None] = print
) -> DataSets:
    """The data sets of a configuration; every image is decoded, measured and compared with its partner.

    Raises: UserError that lists every problem found, with file names.
    """
    degrade = build_degradation([(step.name, step.arguments) for step in data.degradation])
    problems: list[str] = []
    train = _open(data.train, "data.train", data, problems, announce)
    val = _open(data.val, "data.val", data, problems, announce) if data.val is not None else train

    train_pairs = train.pairs if train else []
    if data.val is not None:
        val_pairs = val.pairs if val else []
    elif len(train_pairs) == 1:
        problems.append("data.train: one image cannot be divided into training and validation; add images or data.val")
        val_pairs = []
    else:
        train_pairs, val_pairs = held_out(train_pairs, data.val_fraction) if train_pairs else ([], [])
        if val_pairs and not train_pairs:
            problems.append(f"data.val_fraction: {data.val_fraction} leaves nothing to train on; lower it")
    problems += _too_small(train, train_pairs, data.patch_size, "data.patch_size; lower it")
    problems += _too_small(val, val_pairs, smallest_val_side, "what validation needs to score; remove it")
    raise_problems(f"the data cannot be used: {len(problems)} problem{'s' * (len(problems) != 1)}", problems)

    return DataSets(
        CropDataset(
            train.gt,
            train.input,
            _positions(train, train_pairs),
            patch_size=data.patch_size,
            crops_per_image=data.crops_per_image,
            augment=data.augment,
            seed=seed,
        ),
        WholeImages([pair.name for pair in val_pairs], val.gt, val.input, _positions(val, val_pairs), degrade, device),
        degrade,
        {"train": [pair.name for pair in train_pairs], "val": [pair.name for pair in val_pairs]},
    )


def _open(source: Source, key: str, data: Data, problems: list[str], announce: Callable[[str], None]) -> _Opened | None:
    """The source with its images decoded, or None where it has no pairs; adds to `problems`."""
    pairs, found = find_pairs(source.gt, source.input, key)
    problems += found
    if not pairs:
        return None
    cache = Path(data.cache_dir).expanduser() if data.cache_dir else default_cache()
    gt, sizes, found = open_store([pair.gt for pair in pairs], data.channels, cache, announce)
    problems += found
    input_store = None
    if source.input is not None:
        input_store, input_sizes, found = open_store([pair.input for pair in pairs], data.channels, cache, announce)
        problems += found
        for pair, size, input_size in zip(pairs, sizes, input_sizes, strict=True):
            if size and input_size and size != input_size:
                problems.append(
                    f"{pair.input}: is {_size(input_size)}, its gt {pair.gt} is {_size(size)}; they must be equal"
                )
    names = [pair.name for pair in pairs]
    return _Opened(pairs, dict(zip(names, sizes, strict=True)), gt, input_store)


def _too_small(opened: _Opened | None, pairs: list[Pair], least: int, what: str) -> list[str]:
    if opened is None:
        return []
    return [
        f"{pair.gt}: is {_size(size)}, less than the {least} pixels of {what}"
        for pair in pairs
        if (size := opened.sizes[pair.name]) and min(size) < least
    ]


def _positions(opened: _Opened, pairs: list[Pair]) -> list[int]:
    place = {pair.name: position for position, pair in enumerate(opened.pairs)}
    return [place[pair.name] for pair in pairs]


def _size(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
