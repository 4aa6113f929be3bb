"""`accel-restore bench data`: measure how fast this machine reads training pairs, and how many GPUs that feeds."""

import ctypes
import mmap
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

from accel_restore.commands._arguments import ConfigurationParser
from accel_restore.commands._outputs import check_writable, write_report
from accel_restore.config.load import load_config
from accel_restore.config.schema import Config
from accel_restore.data.augment import turned
from accel_restore.data.batch_plan import BatchPlan, BatchSchedule, Sample
from accel_restore.data.build import DataSets, build_sets, degradations_of
from accel_restore.data.decode import read_image
from accel_restore.data.loader import TrainLoader
from accel_restore.data.scan import find_data, raise_found
from accel_restore.data.store import Store
from accel_restore.data.training_sets import SampleGroup, TrainingSets, finish_groups
from accel_restore.errors import UserError
from accel_restore.tracking.console import Console
from accel_restore.trainer.batch_size import assume_batch_size
from accel_restore.utils.launch import Launch

DECODING, COPYING, TRAINING = "decode the files of each crop", "copy limit (as many bytes, in a row)", "training loader"


def main(arguments: list[str]) -> int:
    """Measure, print a table and return the exit code.

    Raises: UserError if the configuration or data cannot be used.
    """
    parser = ConfigurationParser(prog="accel-restore bench data", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per measurement (default: %(default)s)")
    parser.add_argument("--pairs-per-second", type=float, default=100, help="speed of one GPU (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_configuration(arguments)
    if not (options.seconds > 0 and options.pairs_per_second > 0):
        raise UserError("bench data: --seconds and --pairs-per-second must be above 0")
    check_writable(options.json)
    console = Console(True)
    config = assume_batch_size(load_config(options.config, options.overrides), console.log)
    rates, data = bench_data(config, options.seconds, console)

    decoding, copying = rates[DECODING], rates[COPYING]
    rows = [
        (what, f"{rate:,.0f}" if rate > 20 else f"{rate:.1f}", f"{rate / decoding:,.1f}", f"{rate / copying:.2f}")
        for what, rate in rates.items()
    ]
    size, channels = config.data.patch_size, config.data.channels
    console.table(
        f"reading crops of {size}x{size}x{channels} in batches of {config.data.batch_size}",
        rows,
        ("", "pairs/s", "× decoding", "× copy limit"),
    )
    fed = rates[TRAINING] / options.pairs_per_second
    path = "from memory" if data.fits_in_memory else "from disk, ahead of time"
    console.log(f"{data.nbytes / 1e9:.2f} GB decoded, read {path}")
    threads = f"{config.data.num_threads} loading thread" + "s" * (config.data.num_threads != 1)
    console.log(f"{threads} can feed {fed:.1f} GPUs that take {options.pairs_per_second:g} pairs/s each")
    if options.json is not None:
        record = {"pairs_per_second": rates, "bytes": data.nbytes, "fits_in_memory": data.fits_in_memory, "gpus": fed}
        write_report(options.json, record)
    return 0


def bench_data(config: Config, seconds: float, console: Console) -> tuple[dict[str, float], DataSets]:
    """Return pairs per second of each stage by its name, and the data sets; each stage is measured for `seconds`.

    Raises: UserError if the data cannot be used.
    """
    found = find_data(config.data, 1, console.track, crop_gt=config.validation.crop_gt)
    raise_found(found)
    cpu, data = torch.device("cpu"), config.data
    sets = build_sets(found, data, config.run.seed, degradations_of(data), cpu)
    train = sets.train
    stores = [store for one in train.sets for store in (one.crops.gt, one.crops.input) if store is not None]
    plan = _plan(sets, config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def batches() -> Iterator[Sequence[Sample]]:
        return (samples for epoch in count() for samples in plan.one_pass(epoch).micro_batches())

    def measure(action: Callable, before: Callable | None = None) -> float:
        return _rate(action, batches(), data.batch_size, seconds, before)

    def cold(read_ahead: bool) -> float:
        chosen = [store.read_ahead for store in stores]
        for store in stores:
            store.read_ahead = read_ahead
        rate = measure(train.__getitems__, forget)
        for store, former in zip(stores, chosen, strict=True):
            store.read_ahead = former
        return rate

    def forget() -> None:
        for store in stores:
            _drop_from_memory(store)

    rates = {DECODING: measure(lambda samples: _decode(train, data.max_image_pixels, samples))}
    if hasattr(os, "posix_fadvise"):
        rates["store, not in memory: one page after the other"] = cold(False)
        rates["store, not in memory: a crop at once"] = cold(True)
    measure(train.__getitems__)  # reads the files into memory again
    rates["store, in memory"] = measure(train.__getitems__)
    rates["store, flips"] = measure(lambda samples: _flip(train.__getitems__(samples)))
    rates["store, flips, degradation, float"] = measure(
        lambda samples: finish_groups(train.__getitems__(samples), channels_last=True)
    )
    rates[TRAINING] = loading_rate(sets, config, seconds)
    rates[COPYING] = measure(lambda samples: _copy(train, samples))
    torch.set_num_threads(threads)
    return rates, sets


def loading_rate(sets: DataSets, config: Config, seconds: float) -> float:
    """Return the pairs per second that training on a CPU gets when it does nothing else."""
    plan = _plan(sets, config)
    with Launch().environment():  # one process measures, also under a launcher
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    loader = TrainLoader(sets.train, BatchSchedule((plan,)), accelerator, True, config.data.num_threads)
    micro_batches = (batch for epoch in count() for step in loader.steps(epoch) for batch in step)
    rate = _rate(lambda _: next(micro_batches), count(), config.data.batch_size, seconds)
    micro_batches.close()
    return rate


def _plan(sets: DataSets, config: Config) -> BatchPlan:
    data = config.data
    return BatchPlan(len(sets.train), data.batch_size, 1, 1, config.run.seed, data.patch_size, mixed=sets.train.mixed)


def _rate(
    action: Callable, batches: Iterator, batch_size: int, seconds: float, before: Callable | None = None
) -> float:
    """Return the pairs per second of an action on batches; the time that `before` takes is not counted."""
    if before is None:
        action(next(batches))
    spent, done, began = 0.0, 0, time.perf_counter()
    while not done or (spent < seconds and time.perf_counter() - began < 3 * seconds):
        samples = next(batches)
        if before is not None:
            before()
        start = time.perf_counter()
        action(samples)
        spent += time.perf_counter() - start
        done += batch_size
    return done / spent


def _decode(train: TrainingSets, max_pixels: int, samples: list[Sample]) -> None:
    """Decode the files of each sample, as a loader without a store does."""
    for sample in samples:
        one = train.sets[train.index_of(sample.id)]
        pair = one.pairs[one.image_of(sample.id)]
        for image, store in ((pair.gt, one.crops.gt), (pair.input, one.crops.input)):
            if image is not None and store is not None:
                read_image(image, store.channels, store.dtype, max_pixels)


def _flip(groups: list[SampleGroup]) -> None:
    for batch in (group.batch for group in groups if "flips" in group.batch):
        for name in {"gt", "input"} & set(batch):
            for crop, code in zip(batch[name], batch["flips"].tolist(), strict=True):
                turned(crop, code).contiguous()


def _copy(train: TrainingSets, samples: Sequence[Sample]) -> None:
    """Copy as many bytes of each set as its samples have."""
    numbers = Counter(train.index_of(sample.id) for sample in samples)
    for one, number in ((train.sets[index].crops, number) for index, number in numbers.items()):
        for store, scale in ((one.gt, 1), (one.input, one.scale)):
            if store is not None:
                _copied(store, number, samples[0].patch_size // scale)


def _copied(store: Store, number: int, size: int) -> np.ndarray:
    """Return bytes of random places of the store, as many as `number` crops have, each copied in one piece."""
    crops = np.empty((number, size * size * store.channels * store.dtype.itemsize), np.uint8)
    for crop in crops:
        chunk = store.chunks[random.randrange(len(store.chunks))]
        start = random.randrange(max(1, len(chunk) - len(crop)))
        crop[: len(chunk)] = chunk[start : start + len(crop)]
    return crops


def _drop_from_memory(store: Store) -> None:
    """Drop a store's file from the page cache; Linux does so for pages that no process maps."""
    libc = ctypes.CDLL(None)
    for chunk in store.chunks:
        start = -(-chunk.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
        length = chunk.ctypes.data + chunk.nbytes - start
        if length > 0:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
    with store.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
