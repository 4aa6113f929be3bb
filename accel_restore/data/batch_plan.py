"""Which samples make up step k, and which rank takes which: pure integers, O(1) memory for any size of an epoch.

The sample ids of an epoch are 0 … images × crops_per_image − 1. Their order is a keyed bijection of (seed, epoch), so
step k of an epoch holds the same set of samples for any number of ranks and any accumulation.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from accel_restore.errors import UserError
from accel_restore.utils.rng import Draw, hashes, key, shuffled, uniform

_BLOCK = 4096  # samples whose order is computed at once


class Sample(NamedTuple):
    """One place of a micro-batch. Padding repeats a real sample with weight 0."""

    epoch: int
    id: int
    weight: float  # ranks / real samples of the step: the mean over the ranks' weighted sums is the step's mean loss
    patch_size: int  # side of the crop of gt
    partner: int = -1  # id of the sample that is mixed into it


class MicroBatch(Sequence[Sample]):
    """The samples of all ranks in one micro-batch. A sample is made on access, so a rank makes only its own."""

    def __init__(self, size: int, epoch: int, ids: np.ndarray, partners: np.ndarray, weight: float, patch_size: int):
        """`ids` and their `partners` are padded to `size` with the first sample, at weight 0."""
        self.size, self.epoch, self.weight, self.patch_size = size, epoch, weight, patch_size
        self.ids, self.partners = ids, partners

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Any:
        """Return the sample at an index, or the list of samples of a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(self.size)[place]]
        place = range(self.size)[place]
        if place < len(self.ids):
            return Sample(self.epoch, int(self.ids[place]), self.weight, self.patch_size, int(self.partners[place]))
        return Sample(self.epoch, int(self.ids[0]), 0.0, self.patch_size)


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of an epoch are divided into optimizer steps, micro-batches and ranks."""

    num_samples: int  # per epoch
    batch_size: int  # per rank and micro-batch
    accumulation: int  # micro-batches per optimizer step
    world_size: int
    seed: int
    patch_size: int  # side of a crop of gt
    mixup: float = 0.0  # share of samples that are mixed with a second one

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-batch, over all ranks."""
        return self.batch_size * self.world_size

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.micro_batch * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last one may be ragged."""
        return -(-self.num_samples // self.global_batch)

    def num_real(self, step: int) -> int:
        """Return the number of samples of a step (from 0) of an epoch: less in the last step, none after it."""
        return max(0, min(self.global_batch, self.num_samples - step * self.global_batch))

    def num_micro_batches(self, step: int) -> int:
        """Return the number of micro-batches of a step, without those that would hold only padding."""
        return -(-self.num_real(step) // self.micro_batch)

    def num_micro_batches_from(self, step: int) -> int:
        """Return the number of micro-batches of an epoch from a step on; none after the last step."""
        return max(0, -(-self.num_samples // self.micro_batch) - step * self.accumulation)

    def sample_ids(self, epoch: int, step: int) -> np.ndarray:
        """Return the sample ids of a step in order, without padding."""
        first = step * self.global_batch
        return self._ids(epoch, first, first + self.num_real(step))

    def _ids(self, epoch: int, first: int, end: int) -> np.ndarray:
        return shuffled(np.arange(first, end), self.num_samples, self.seed, epoch)

    def partners(self, epoch: int, ids: np.ndarray) -> np.ndarray:
        """Return for each sample the id of the sample that is mixed into it, -1 for none."""
        if not self.mixup:
            return np.full(len(ids), -1)
        drawn = uniform(hashes(ids, key(self.seed, epoch, Draw.PARTNER)))
        is_mixed = uniform(hashes(ids, key(self.seed, epoch, Draw.MIXED))) < self.mixup
        return np.where(is_mixed, (drawn * self.num_samples).astype(np.int64), -1)

    def micro_batches(self, epoch: int, first_step: int = 0) -> Iterator[MicroBatch]:
        """Yield the global micro-batches of an epoch from a step on; all are full, and rank r takes the r-th part."""
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
        """The micro-batches of the step that these samples make up."""
        weight = self.world_size / len(ids)
        for first in range(0, len(ids), self.micro_batch):
            part = slice(first, first + self.micro_batch)
            yield MicroBatch(self.micro_batch, epoch, ids[part], partners[part], weight, self.patch_size)


@dataclass(frozen=True)
class BatchSchedule:
    """The plan of each epoch: one plan for all epochs, or one per stage of progressive training."""

    plans: tuple[BatchPlan, ...]  # with equal seed, num_samples and world_size
    ends: tuple[int, ...] = ()  # for each plan but the last: the first epoch after it; ascending

    def plan(self, epoch: int) -> BatchPlan:
        """Return the plan of an epoch."""
        return self.plans[bisect_right(self.ends, epoch)]

    def spans(self, epochs: int) -> Iterator[tuple[BatchPlan, int, int]]:
        """Yield (plan, first epoch, end) for the first `epochs` epochs; the epoch `end` is not included."""
        for plan, first, end in zip(self.plans, (0, *self.ends), (*self.ends, epochs), strict=True):
            if first < epochs:
                yield plan, first, min(end, epochs)

    def num_steps(self, epochs: int) -> int:
        """Return the number of optimizer steps of the first `epochs` epochs."""
        return sum(plan.steps_per_epoch * (end - first) for plan, first, end in self.spans(epochs))

    def num_epochs(self, steps: int) -> int:
        """Return the smallest number of epochs with at least `steps` optimizer steps in total."""
        return bisect_left(range(steps + 1), steps, key=self.num_steps)


def with_global_batch(
    plan: BatchPlan,
    global_batch: int,
    *,
    may_shrink: bool = False,
    keys: tuple[str, str] = ("train.global_batch_size", "data.batch_size"),
) -> BatchPlan:
    """Return the plan with the accumulation that gives a step `global_batch` samples.

    With `may_shrink` the batch size per rank is lowered to the next size that fits: a run may continue on another
    number of ranks. `keys` are the configuration keys of the global batch and of the batch size, for messages.

    Raises: UserError if the global batch is not a multiple of a micro-batch.
    """
    ranks, batch_size = plan.world_size, plan.batch_size
    if global_batch % plan.micro_batch:
        fitting = [size for size in range(1, global_batch + 1) if global_batch % (size * ranks) == 0]
        if not (may_shrink and fitting):
            counts = ", ".join(str(count) for count in range(1, global_batch + 1) if global_batch % count == 0)
            remedy = (
                f"with {ranks} processes set {keys[1]} to one of {', '.join(map(str, fitting))}"
                if fitting
                else f"it is not a multiple of {ranks} processes; use one of these numbers of processes: {counts}"
            )
            raise UserError(
                f"{keys[0]}: {global_batch} cannot be made of micro-batches of {batch_size} pairs on "
                f"{ranks} processes ({plan.micro_batch} at once); {remedy}"
            )
        batch_size = max(size for size in fitting if size <= batch_size)
    return replace(plan, batch_size=batch_size, accumulation=global_batch // (batch_size * ranks))
