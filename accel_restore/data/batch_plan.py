"""Which samples make up step k, and which rank takes which: pure integers, O(1) memory whatever the size of an epoch.

The sample ids of an epoch are 0 … images × crops_per_image − 1. Their order is a keyed bijection of (seed, epoch), so
step k of an epoch holds the same set of samples on any number of ranks and for any accumulation.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from accel_restore.errors import UserError
from accel_restore.utils.rng import Draw, hashes, key, shuffled, uniform

_BLOCK = 4096  # samples whose places are computed at once


class Sample(NamedTuple):
    """One place of a micro-batch. Padding repeats a real sample with weight 0."""

    epoch: int
    id: int
    weight: float  # ranks / real samples of the step: the mean over the ranks' weighted sums is the step's mean loss
    patch_size: int  # side of the crop of gt
    partner: int = -1  # id of the sample that is mixed into it


class MicroBatch(Sequence[Sample]):
    """The samples of all ranks in one micro-batch, each made when it is asked for: a rank asks for its own alone."""

    def __init__(self, size: int, epoch: int, ids: np.ndarray, partners: np.ndarray, weight: float, patch_size: int):
        """`ids` and their `partners` are followed by places of padding, which repeat the first, up to `size`."""
        self.size, self.epoch, self.weight, self.patch_size = size, epoch, weight, patch_size
        self.ids, self.partners = ids, partners

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Any:
        """The sample of a place, or the list of those of a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(self.size)[place]]
        place = range(self.size)[place]
        if place < len(self.ids):
            return Sample(self.epoch, int(self.ids[place]), self.weight, self.patch_size, int(self.partners[place]))
        return Sample(self.epoch, int(self.ids[0]), 0.0, self.patch_size)


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of an epoch make up optimizer steps, micro-batches and the shares of ranks."""

    num_samples: int  # per epoch
    batch_size: int  # per rank and micro-batch
    accumulation: int  # micro-batches per optimizer step
    world_size: int
    seed: int
    patch_size: int  # side of a crop of gt
    mixup: float = 0.0  # share of samples into which a second one is mixed

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.micro_batch * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.global_batch)

    def num_real(self, step: int) -> int:
        """Samples that step `step` (from 0) of an epoch consumes: the global batch, less in a ragged last step."""
        return min(self.global_batch, self.num_samples - step * self.global_batch)

    def num_micro_batches(self, step: int) -> int:
        """Micro-batches of a step; those that would hold padding alone are left out."""
        return -(-self.num_real(step) // self.micro_batch)

    def sample_ids(self, epoch: int, step: int) -> np.ndarray:
        """The real sample ids of a step, in order."""
        first = step * self.global_batch
        return self._ids(epoch, first, first + self.num_real(step))

    def _ids(self, epoch: int, first: int, end: int) -> np.ndarray:
        return shuffled(np.arange(first, end), self.num_samples, self.seed, epoch)

    def partners(self, epoch: int, ids: np.ndarray) -> np.ndarray:
        """For each sample the id of that which is mixed into it, -1 for none: a hash of the same counters."""
        if not self.mixup:
            return np.full(len(ids), -1)
        drawn = uniform(hashes(ids, key(self.seed, epoch, Draw.PARTNER)))
        is_mixed = uniform(hashes(ids, key(self.seed, epoch, Draw.MIXED))) < self.mixup
        return np.where(is_mixed, (drawn * self.num_samples).astype(np.int64), -1)

    def micro_batches(self, epoch: int, first_step: int = 0) -> Iterator[MicroBatch]:
        """The global micro-batches of an epoch from a step on, each full: rank r takes the r-th `batch_size` places."""
        at_once = max(1, _BLOCK // self.global_batch)
        for block in range(first_step, self.steps_per_epoch, at_once):
            start = block * self.global_batch
            end = min(start + at_once * self.global_batch, self.num_samples)
            ids = self._ids(epoch, start, end)
            partners = self.partners(epoch, ids)
            for first in range(0, len(ids), self.global_batch):
                step = slice(first, first + self.global_batch)
                yield from self._deal(epoch, ids[step], partners[step])

    def _deal(self, epoch: int, ids: np.ndarray, partners: np.ndarray) -> Iterator[MicroBatch]:
        """The micro-batches of the step that consumes these samples."""
        weight = self.world_size / len(ids)
        for first in range(0, len(ids), self.micro_batch):
            part = slice(first, first + self.micro_batch)
            yield MicroBatch(self.micro_batch, epoch, ids[part], partners[part], weight, self.patch_size)


@dataclass(frozen=True)
class BatchSchedule:
    """The plan of each epoch: one for all of them, or one a stage of training with growing crops."""

    plans: tuple[BatchPlan, ...]  # of equal seeds, samples and ranks
    ends: tuple[int, ...] = ()  # the epoch before which each plan but the last ends, ascending

    def plan(self, epoch: int) -> BatchPlan:
        return self.plans[bisect_right(self.ends, epoch)]

    def spans(self, epochs: int) -> Iterator[tuple[BatchPlan, int, int]]:
        """The plans of the first `epochs` epochs, each with its first epoch and the one before which it ends."""
        for plan, first, end in zip(self.plans, (0, *self.ends), (*self.ends, epochs), strict=True):
            if first < epochs:
                yield plan, first, min(end, epochs)

    def num_steps(self, epochs: int) -> int:
        """Optimizer steps of the first `epochs` epochs."""
        return sum(plan.steps_per_epoch * (end - first) for plan, first, end in self.spans(epochs))

    def num_epochs(self, steps: int) -> int:
        """The fewest epochs of at least `steps` optimizer steps together."""
        return bisect_left(range(steps + 1), steps, key=self.num_steps)


def make_batch_plan(
    num_samples: int,
    batch_size: int,
    accumulation: int | None,
    global_batch: int | None,
    world_size: int,
    seed: int,
    patch_size: int,
    mixup: float = 0.0,
    *,
    may_shrink: bool = False,
    keys: tuple[str, str] = ("train.global_batch_size", "data.batch_size"),
) -> BatchPlan:
    """The plan of a run; `global_batch`, where given, decides the accumulation.

    Where `may_shrink` the batch per rank is lowered to the next size that fits, as for a run that continues on another
    number of ranks. `keys` say where the global batch and the batch were set.

    Raises: UserError where the global batch is no multiple of what the ranks take at once.
    """
    if global_batch is not None:
        at_once = batch_size * world_size
        fitting = [size for size in range(1, global_batch + 1) if global_batch % (size * world_size) == 0]
        if global_batch % at_once and may_shrink and fitting:
            batch_size = max(size for size in fitting if size <= batch_size)
        elif global_batch % at_once:
            worlds = ", ".join(str(ranks) for ranks in range(1, global_batch + 1) if global_batch % ranks == 0)
            remedy = (
                f"with {world_size} processes set {keys[1]} to one of {', '.join(map(str, fitting))}"
                if fitting
                else f"it is no multiple of {world_size} processes; these numbers of processes can keep it: {worlds}"
            )
            raise UserError(
                f"{keys[0]}: {global_batch} cannot be made of micro-batches of {batch_size} pairs on "
                f"{world_size} processes ({at_once} at once); {remedy}"
            )
        accumulation = global_batch // (batch_size * world_size)
    return BatchPlan(num_samples, batch_size, accumulation or 1, world_size, seed, patch_size, mixup)
