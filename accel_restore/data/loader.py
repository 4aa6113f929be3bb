"""The batches of this rank: Accelerate deals out the plan's samples, and one thread reads them ahead of time."""

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from accel_restore.data.batch_plan import BatchPlan, BatchSchedule, EpochPlan, MicroBatch, Sample
from accel_restore.data.training_sets import SampleGroup, TrainingSets, finish_groups
from accel_restore.utils.rng import Draw, key, seed_forward

_AHEAD = 4  # batches kept ready
_SWITCH = 0.0005  # seconds


class StepSampler(Sampler):
    """The global micro-batches of an epoch from a given step on; Accelerate deals each one out to the ranks.

    Every batch is full, as Accelerate drops short ones. `start_at` sets the epoch. `set_epoch` would not do: Accelerate
    calls it with a count of its own on one process, and never on two.
    """

    def __init__(self, plan: BatchPlan):
        self.batch_size, self.drop_last = plan.micro_batch, False
        self.start_at(plan.one_pass(0), 0)

    def start_at(self, epoch: EpochPlan, step: int) -> None:
        """Iterate over an epoch of the plan from `step` on, counted from 0."""
        self.epoch, self.first_step = epoch, step

    def __iter__(self) -> Iterator[MicroBatch]:
        yield from self.epoch.micro_batches(self.first_step)

    def __len__(self) -> int:
        return self.epoch.num_micro_batches_from(self.first_step)


class LoaderObserver:
    """Observes a `TrainLoader` from the thread that trains."""

    def on_step_begin(self) -> None:
        """Run before the first micro-batch of a step is waited for."""

    def on_batch(self, batch: dict[str, Any], waited: float) -> None:
        """Run before the loop gets a micro-batch; `waited` is the time in seconds spent waiting for its data."""

    def on_epoch_end(self) -> None:
        """Run when the loop has used all steps of the epoch."""


class WaitTime(LoaderObserver):
    """Adds up the seconds that a loader's user has waited for data."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_batch(self, batch: dict[str, Any], waited: float) -> None:
        """Add the time."""
        self.seconds += waited


class TrainLoader:
    """The optimizer steps of an epoch, as this rank sees them. Those in `observers` are notified.

    Before a micro-batch is handed out, the random generators are seeded from (seed, epoch, step, micro-batch, rank). So
    dropout and stochastic depth draw the same when a run continues, and no random state is stored.
    """

    def __init__(
        self,
        dataset: TrainingSets,
        stages: BatchSchedule,
        accelerator: Accelerator,
        channels_last: bool,
        num_threads: int = 1,
    ):
        """With `num_threads=0` batches are read in the training loop, otherwise ahead of it."""
        self.stages, self.channels_last = stages, channels_last
        self.device, self.ahead = accelerator.device, _AHEAD if num_threads else 0
        if self.device.type == "cuda" and self.device.index is None:  # the case with one process
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.finishes_early = self.device.type == "cuda"
        self.dataset, self.readers, self.rank = dataset, dataset.readers, accelerator.process_index
        self.loaders = {}  # one per plan: Accelerate keeps the first batch size that it sees
        for plan in stages.plans:
            sampler = StepSampler(plan)
            loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=_identity)
            self.loaders[plan] = sampler, accelerator.prepare_data_loader(loader, device_placement=False)
        self.observers: list[LoaderObserver] = []

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[dict]]:
        """For each optimizer step of the epoch, from `first_step` (counted from 0), an iterator of its micro-batches.

        A micro-batch is what `finish_groups` returns, plus `is_last`: whether it ends its step. Each iterator must be
        used up before the next is asked for.
        """
        epoch_plan = self.stages.epoch(epoch)
        sampler, loader = self.loaders[epoch_plan.plan]
        sampler.start_at(epoch_plan, first_step)
        read = map(self._to_device, loader)
        prefetcher = Prefetcher(read, self.ahead) if self.ahead else None
        batches = prefetcher or read
        with prefetcher or nullcontext():
            finishing = _Augmenting(self, batches, prefetcher.is_ready if prefetcher else _never)
            for step in range(first_step, epoch_plan.num_steps):
                for observer in self.observers:
                    observer.on_step_begin()
                yield self._observed(finishing.micro_batches(epoch_plan.num_micro_batches(step)), epoch, step)
            deque(batches, maxlen=0)  # Accelerate's loader ends its epoch when it is asked for one more batch
        for observer in self.observers:
            observer.on_epoch_end()

    def samples(self, epoch: int, step: int) -> list[list[Sample]]:
        """This rank's samples in each micro-batch of one step of the epoch, counted from 0; with padding."""
        epoch_plan = self.stages.epoch(epoch)
        size = epoch_plan.plan.batch_size
        mine = slice(self.rank * size, (self.rank + 1) * size)
        micro_batches = islice(epoch_plan.micro_batches(step), epoch_plan.num_micro_batches(step))
        return [samples[mine] for samples in micro_batches]

    def again(self, epoch: int, step: int) -> Iterator[dict]:
        """The micro-batches of one step of the epoch, counted from 0, once more, as this rank has seen them.

        The generators are seeded again, too.
        """
        samples = self.samples(epoch, step)
        read = map(self._to_device, map(self.dataset.__getitems__, samples))
        for position, (batch, _) in enumerate(_Augmenting(self, read, _never).micro_batches(len(samples))):
            self._seed_forward(epoch, step, position)
            yield batch

    def _observed(self, micro_batches: Iterator[tuple[dict, float]], epoch: int, step: int) -> Iterator[dict]:
        for position, (batch, waited) in enumerate(micro_batches):
            for observer in self.observers:
                observer.on_batch(batch, waited)
            self._seed_forward(epoch, step, position)
            yield batch

    def _seed_forward(self, epoch: int, step: int, position: int) -> None:
        """Seed what the model draws from for the micro-batch at this position of the step."""
        seed = key(self.stages.plan(epoch).seed, epoch, Draw.FORWARD, step, position, self.rank)
        seed_forward(seed, self.device)

    def _to_device(self, groups: list[SampleGroup]) -> list[SampleGroup]:
        """The samples on the training device. Those whose degradation needs the host are finished before."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a thread starts on GPU 0
        groups = [
            one.finished(channels_last=self.channels_last, readers=self.readers) if one.needs_host else one
            for one in groups
        ]
        return [one._replace(batch=self._moved(one.batch)) for one in groups]

    def _moved(self, batch: dict) -> dict:
        return {
            name: to_device(value, self.device) if isinstance(value, Tensor) else value for name, value in batch.items()
        }


class _Augmenting:
    """Augments and degrades the batches that a loader reads.

    On a GPU the next batch, if it has been read, is augmented early: the GPU then has work in its queue before the host
    waits for the step. A CPU would gain nothing.
    """

    def __init__(self, loader: TrainLoader, batches: Iterator[list[SampleGroup]], is_ready: Callable[[], bool]):
        """`is_ready()`: whether the next of `batches` is available without waiting."""
        self.loader, self.batches = loader, batches
        self.may_start = is_ready if loader.finishes_early else _never
        self.early: tuple[dict, float] | Exception | None = None

    def micro_batches(self, count: int) -> Iterator[tuple[dict, float]]:
        """The next `count` micro-batches, each with the seconds that were spent waiting for its data."""
        for position in range(count):
            batch, waited = self._next()
            yield {**batch, "is_last": position == count - 1}, waited
            if self.early is None and self.may_start():
                try:
                    self.early = self._finished()
                except Exception as error:  # raised when this batch is asked for, after the step before it
                    self.early = error

    def _next(self) -> tuple[dict, float]:
        if self.early is None:
            return self._finished()
        early, self.early = self.early, None
        if isinstance(early, Exception):
            raise early
        return early

    def _finished(self) -> tuple[dict, float]:
        start = time.perf_counter()
        groups = next(self.batches)
        waited = time.perf_counter() - start
        return finish_groups(groups, channels_last=self.loader.channels_last), waited


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Return the images on a device. The host does not wait until a GPU has received them."""
    if device.type != "cuda":
        return images.to(device)
    with torch.cuda.device(device):  # a thread starts on GPU 0
        return images.pin_memory().to(device, non_blocking=True)


def _identity(batch: Any) -> Any:
    return batch


def _never() -> bool:
    return False


class Prefetcher(Iterator):
    """The elements of an iterable, taken by a thread up to `ahead` elements before they are asked for.

    An exception of the iterable is raised where the element would have come. Leaving the context ends the thread.
    The thread works on the GPU that is current where it is started; by itself, a thread starts on GPU 0.

    In the context, Python switches between threads every 0.5 ms. Otherwise the training thread could wait 5 ms for
    the interpreter after each wait for a GPU, while the other thread works.
    """

    def __init__(self, items: Iterable, ahead: int = _AHEAD):
        self.items, self.closed = items, threading.Event()
        self.gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self.room = threading.Semaphore(ahead)  # acquired before an element is taken, so no more are held
        self.queue: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self.first: tuple[Any, BaseException | None] | None = None  # taken from the queue, not yet returned
        self.thread = threading.Thread(target=self._work, name="accel-restore-loader", daemon=True)
        self.thread.start()

    def __enter__(self) -> "Prefetcher":
        self.former_interval = sys.getswitchinterval()
        sys.setswitchinterval(min(_SWITCH, self.former_interval))
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.room.release()
        self.thread.join()
        sys.setswitchinterval(self.former_interval)
        self.first = None, StopIteration()

    def __next__(self) -> Any:
        entry, self.first = self.first or self.queue.get(), None
        item, error = entry
        if error is not None:
            self.first = entry  # raised again if asked again
            raise error
        self.room.release()
        return item

    def is_ready(self) -> bool:
        """Whether the next element is available without waiting."""
        if self.first is None:
            with suppress(queue.Empty):
                self.first = self.queue.get_nowait()
        return self.first is not None and self.first[1] is None

    def _work(self) -> None:
        torch.set_num_threads(1)  # for this thread: two thread pools on the same cores slow each other down tenfold
        try:
            if self.gpu is not None:
                torch.cuda.set_device(self.gpu)
            items = iter(self.items)
            while self.room.acquire() and not self.closed.is_set():
                self.queue.put((next(items), None))
        except BaseException as error:  # StopIteration among them
            self.queue.put((None, error))
