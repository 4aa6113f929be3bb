"""Which samples make up step k, and which rank takes which: pure integers, O(1) memory for any size of an epoch.

Samples form an endless stream, one pass after the other. A pass takes each of the ids 0 … images × crops_per_image − 1
once, in an order that is a keyed bijection of (seed, pass). An epoch is a part of the stream: as many samples as one
pass has, or as N full steps take. A step holds the same samples for any number of ranks and any accumulation.

Several training sets are mixed into one stream by their shares (`mixture.py`). The ids continue from set to set, and
each set has passes of its own.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from accel_restore.data.mixture import MixedSet, mixed_order
from accel_restore.errors import UserError
from accel_restore.utils.rng import Draw, hashes, key, keys, shuffled, uniform

_BLOCK = 4096  # samples whose order is computed at once


class Sample(NamedTuple):
    """One place of a micro-batch. Padding repeats a real sample with weight 0."""

    pass_: int  # of its set, counted from 0; two samples of a step may have the same id in different passes
    id: int
    weight: float  # ranks / real samples of the step: the mean over the ranks' weighted sums is the step's mean loss
    patch_size: int  # side of the crop of gt
    partner: int = -1  # id of the sample of the same set that is mixed into it
    is_synthetic: bool = False  # the input is made although the set has files of it


class DrawnSamples(NamedTuple):
    """Samples at consecutive positions of the stream; arrays of equal length."""

    passes: np.ndarray
    ids: np.ndarray
    are_synthetic: np.ndarray
    partners: np.ndarray  # -1 for none

    def part(self, first: int, end: int) -> "DrawnSamples":
        """Return the samples from index `first` to `end` − 1."""
        return DrawnSamples(*(values[first:end] for values in self))


class MicroBatch(Sequence[Sample]):
    """The samples of all ranks in one micro-batch. A sample is made on access, so a rank makes only its own."""

    def __init__(self, size: int, samples: DrawnSamples, weight: float, patch_size: int):
        """The `samples` are padded to `size` with the first one, at weight 0."""
        self.size, self.samples, self.weight, self.patch_size = size, samples, weight, patch_size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Any:
        """Return the sample at an index, or the list of samples of a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(self.size)[place]]
        place = range(self.size)[place]
        is_real = place < len(self.samples.ids)
        pass_, id, is_synthetic, partner = (values[place if is_real else 0].item() for values in self.samples)
        if is_real:
            return Sample(pass_, id, self.weight, self.patch_size, partner, is_synthetic)
        return Sample(pass_, id, 0.0, self.patch_size, is_synthetic=is_synthetic)


@dataclass(frozen=True)
class BatchPlan:
    """How the stream of samples is divided into optimizer steps, micro-batches and ranks."""

    num_samples: int  # of all sets together, per pass over each
    batch_size: int  # per rank and micro-batch
    accumulation: int  # micro-batches per optimizer step
    world_size: int
    seed: int
    patch_size: int  # side of a crop of gt
    mixup: float = 0.0  # share of samples that are mixed with a second one
    mixed: tuple[MixedSet, ...] = ()  # the training sets; empty: one

    @property
    def sets(self) -> tuple[MixedSet, ...]:
        """The training sets."""
        return self.mixed or (MixedSet(self.num_samples),)

    @property
    def first_ids(self) -> np.ndarray:
        """The first id of each set."""
        return np.array([0, *accumulate(one.num_samples for one in self.sets[:-1])])

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-batch, over all ranks."""
        return self.batch_size * self.world_size

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.micro_batch * self.accumulation

    def one_pass(self, number: int) -> "EpochPlan":
        """Return the epoch, counted from 0, that has the samples of one pass; its last step may be ragged."""
        return EpochPlan(self, number * self.num_samples, self.num_samples)

    def samples(self, first: int, end: int) -> DrawnSamples:
        """Return the samples at positions `first` to `end` − 1 of the stream."""
        sets, order = self.sets, mixed_order(tuple(one.uses for one in self.sets))
        periods, slots = np.divmod(np.arange(first, end), len(order.sets))
        of_set = order.sets[slots]
        passes, ids, are_synthetic = np.empty_like(slots), np.empty_like(slots), np.empty(len(slots), bool)
        for index, (one, first_id) in enumerate(zip(sets, self.first_ids, strict=True)):
            here = of_set == index
            uses = periods[here] * one.uses + order.counts[slots[here]]  # of this set before this one
            passes[here], places = np.divmod(uses, one.num_samples)
            seed = key(self.seed, -1, Draw.SET, index) if index else self.seed
            ids[here] = first_id + shuffled(places, one.num_samples, seed, passes[here])
            are_synthetic[here] = _rises(uses, one.synthetic_share)
        return DrawnSamples(passes, ids, are_synthetic, self.partners(passes, ids))

    def partners(self, passes: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return for each sample the id of the sample of its set that is mixed into it, -1 for none."""
        if not self.mixup:
            return np.full(len(ids), -1)
        first_ids, sizes = self.first_ids, np.array([one.num_samples for one in self.sets])
        of_set = np.searchsorted(first_ids, ids, "right") - 1
        drawn = uniform(hashes(ids, keys(self.seed, passes, Draw.PARTNER)))
        is_mixed = uniform(hashes(ids, keys(self.seed, passes, Draw.MIXED))) < self.mixup
        return np.where(is_mixed, first_ids[of_set] + (drawn * sizes[of_set]).astype(np.int64), -1)


def _rises(counts: np.ndarray, share: Fraction) -> np.ndarray:
    """Return whether floor(share × n) rises after n = count: for that share of the counts, to within one."""
    return (counts + 1) * share.numerator // share.denominator > counts * share.numerator // share.denominator


@dataclass(frozen=True)
class EpochPlan:
    """The steps of one epoch."""

    plan: BatchPlan
    first: int  # position of the first sample in the stream
    num_samples: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps; the last one may be ragged."""
        return -(-self.num_samples // self.plan.global_batch)

    def num_real(self, step: int) -> int:
        """Return the number of samples of a step, counted from 0: less in a ragged step, none after the last one."""
        size = self.plan.global_batch
        return max(0, min(size, self.num_samples - step * size))

    def num_micro_batches(self, step: int) -> int:
        """Return the number of micro-batches of a step, without those that would hold only padding."""
        return -(-self.num_real(step) // self.plan.micro_batch)

    def num_micro_batches_from(self, step: int) -> int:
        """Return the number of micro-batches from a step on; none after the last step."""
        return max(0, -(-self.num_samples // self.plan.micro_batch) - step * self.plan.accumulation)

    def sample_ids(self, step: int) -> np.ndarray:
        """Return the sample ids of a step in order, without padding."""
        first = self.first + step * self.plan.global_batch
        return self.plan.samples(first, first + self.num_real(step)).ids

    def micro_batches(self, first_step: int = 0) -> Iterator[MicroBatch]:
        """Yield the global micro-batches from a step on; all are full, and rank r takes the r-th part."""
        size = self.plan.global_batch
        at_once = max(1, _BLOCK // size) * size
        for block in range(first_step * size, self.num_samples, at_once):
            end = min(block + at_once, self.num_samples)
            samples = self.plan.samples(self.first + block, self.first + end)
            for first in range(0, len(samples.ids), size):
                yield from self._deal(samples.part(first, first + size))

    def _deal(self, samples: DrawnSamples) -> Iterator[MicroBatch]:
        """The micro-batches of the step that these samples make up."""
        plan, count = self.plan, len(samples.ids)
        for first in range(0, count, plan.micro_batch):
            part = samples.part(first, first + plan.micro_batch)
            yield MicroBatch(plan.micro_batch, part, plan.world_size / count, plan.patch_size)


@dataclass(frozen=True)
class BatchSchedule:
    """The steps of all epochs, with one plan for all of them, or one per stage of progressive training."""

    plans: tuple[BatchPlan, ...]  # with equal seed, num_samples and world_size
    ends: tuple[int, ...] = ()  # for each plan but the last: the first epoch after it; ascending
    steps_per_epoch: int | None = None  # None: an epoch is one pass
    max_steps: int | None = None  # with `steps_per_epoch`: the step that ends the last epoch, also a part of one

    def plan(self, epoch: int) -> BatchPlan:
        """Return the plan of an epoch."""
        return self.plans[bisect_right(self.ends, epoch)]

    def epoch(self, number: int) -> EpochPlan:
        """Return the steps of an epoch, counted from 0. Epochs after the run's last one, for measurements, are full."""
        plan = self.plan(number)
        if self.steps_per_epoch is None:
            return plan.one_pass(number)
        steps = self.num_steps(number + 1) - self.num_steps(number) or self.steps_per_epoch
        before = (early.global_batch * (end - first) for early, first, end in self.spans(number))
        return EpochPlan(plan, self.steps_per_epoch * sum(before), steps * plan.global_batch)

    def spans(self, epochs: int) -> Iterator[tuple[BatchPlan, int, int]]:
        """Yield (plan, first epoch, end) for the first `epochs` epochs; the epoch `end` is not included."""
        for plan, first, end in zip(self.plans, (0, *self.ends), (*self.ends, epochs), strict=True):
            if first < epochs:
                yield plan, first, min(end, epochs)

    def num_steps(self, epochs: int) -> int:
        """Return the number of optimizer steps of the first `epochs` epochs."""
        if self.steps_per_epoch is not None:
            steps = epochs * self.steps_per_epoch
            return steps if self.max_steps is None else min(steps, self.max_steps)
        return sum(plan.one_pass(first).num_steps * (end - first) for plan, first, end in self.spans(epochs))

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
