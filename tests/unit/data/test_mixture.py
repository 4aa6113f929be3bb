"""Several training sets in one stream: each used as its share says after any sample, each sample once per pass."""

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from accel_restore.data.batch_plan import BatchPlan, BatchSchedule, with_global_batch
from accel_restore.data.mixture import MixedSet, mixed_order, uses_per_period


def plan_of(*sets: MixedSet, batch_size: int = 8, ranks: int = 1, accumulation: int = 1, **more) -> BatchPlan:
    count = sum(one.num_samples for one in sets)
    return BatchPlan(count, batch_size, accumulation, ranks, 5, 16, mixed=sets, **more)


def sets_of(plan: BatchPlan, ids: np.ndarray) -> np.ndarray:
    return np.searchsorted(plan.first_ids, ids, "right") - 1


def largest_deviation(sets: np.ndarray, shares: np.ndarray) -> float:
    """The largest |uses of a set so far − its share × samples so far|, over all sets and prefixes."""
    counts = (sets[:, None] == np.arange(len(shares))).cumsum(0)
    return np.abs(counts - np.arange(1, len(sets) + 1)[:, None] * shares).max()


def random_uses(count: int) -> tuple[int, ...]:
    """Shares of different kinds: equal, similar, some tiny, one that is almost everything."""
    kind, period = random.choice(("equal", "similar", "tiny", "one")), random.choice([7, 100, 1000, 5000])
    weights = {
        "equal": [1.0] * count,
        "similar": [1 + random.random() for _ in range(count)],
        "tiny": [random.random() ** 12 for _ in range(count)],
        "one": [100.0, *(random.random() for _ in range(count - 1))],
    }[kind]
    return tuple(max(1, round(weight / sum(weights) * period)) for weight in weights)


@pytest.mark.parametrize("count", range(2, 7))
def test_each_set_is_used_as_its_share_says_after_any_number_of_samples(count):
    random.seed(count)
    for uses in [(1,) * count, *(random_uses(count) for _ in range(25))]:
        order = mixed_order(uses)
        assert np.bincount(order.sets, minlength=count).tolist() == list(uses)
        for index in range(count):
            assert order.counts[order.sets == index].tolist() == list(range(uses[index]))
        bound = 1 - 1 / (2 * count - 2)
        assert largest_deviation(np.tile(order.sets, 2), np.array(uses) / sum(uses)) <= bound + 1e-9, uses


def test_a_mixture_in_turns_of_its_sets_would_exceed_one_sample():
    """The control: the measure of the test above finds an order that takes each set in one piece."""
    assert largest_deviation(np.repeat([0, 1], [7, 3]), np.array([0.7, 0.3])) > 2


@pytest.mark.parametrize(
    ("shares", "num_samples", "uses"),
    [
        ([0.7, 0.3], [5, 99], [7, 3]),
        ([0.7, None, None], [5, 30, 10], [28, 9, 3]),
        ([None, None], [200, 100], [2, 1]),
        ([0.33, 0.33, 0.33], [1, 2, 3], [1, 1, 1]),
        ([1.0], [9], [1]),
        ([None], [9], [1]),
        ([0.125, 0.875], [1, 1], [1, 7]),
    ],
)
def test_sets_without_a_share_divide_the_rest_by_their_numbers_of_samples(shares, num_samples, uses):
    assert uses_per_period(shares, num_samples) == uses


@pytest.mark.parametrize("shares", [[None] * 3, [0.123456789, None, None], [1e-7, None, 0.5]])
def test_shares_without_a_short_period_are_rounded(shares):
    num_samples = [1234567, 3456789, 777]
    uses = uses_per_period(shares, num_samples)
    rest = 1 - sum(share or 0 for share in shares)
    others = sum(count for share, count in zip(shares, num_samples, strict=True) if share is None)
    exact = [rest * n / others if share is None else share for share, n in zip(shares, num_samples, strict=True)]
    assert sum(uses) <= 2**17 and min(uses) >= 1
    assert np.abs(np.array(uses) / sum(uses) - exact).max() < 2**-16


THREE = (MixedSet(61, 5), MixedSet(7, 3), MixedSet(200, 2))


def test_every_sample_of_a_set_is_used_once_before_any_is_used_twice():
    plan = plan_of(*THREE)
    samples = plan.samples(0, 4000)
    sets = sets_of(plan, samples.ids)
    for index, (one, first) in enumerate(zip(plan.sets, plan.first_ids, strict=True)):
        ids, passes = samples.ids[sets == index], samples.passes[sets == index]
        for number in range(passes.max()):
            assert sorted(ids[passes == number]) == list(range(first, first + one.num_samples))
        assert passes.tolist() == (np.arange(len(ids)) // one.num_samples).tolist()
    assert largest_deviation(sets, np.array([0.5, 0.3, 0.2])) <= 1


def test_any_part_of_the_stream_equals_that_part_of_the_whole():
    plan = plan_of(*THREE, mixup=0.5)
    whole = plan.samples(0, 3000)
    for first, end in ((0, 1), (9, 11), (2990, 3000), (500, 2500)):
        for part, values in zip(plan.samples(first, end), whole, strict=True):
            assert part.tolist() == values[first:end].tolist()
    far = plan.samples(10**12, 10**12 + 20)  # needs nothing of what is before it
    assert np.bincount(sets_of(plan, far.ids)).tolist() == [10, 6, 4]


@pytest.mark.parametrize("steps_per_epoch", [None, 7])
def test_a_step_of_several_sets_holds_the_same_samples_in_every_layout(steps_per_epoch):
    def steps(batch_size: int, ranks: int) -> list[list[tuple]]:
        plan = with_global_batch(plan_of(*THREE, batch_size=batch_size, ranks=ranks, mixup=0.3), 8)
        schedule, found = BatchSchedule((plan,), (), steps_per_epoch), []
        for epoch in (schedule.epoch(number) for number in range(3)):
            batches = epoch.micro_batches()
            for step in range(epoch.num_steps):
                micro_batches = [next(batches) for _ in range(epoch.num_micro_batches(step))]
                real = [sample for batch in micro_batches for sample in batch if sample.weight]
                found.append([(s.pass_, s.id, s.partner, s.is_synthetic, s.weight / ranks) for s in real])
        return found

    expected = steps(8, 1)
    assert len(expected) == (21 if steps_per_epoch else 3 * 34)
    for layout in ((4, 2), (2, 4), (2, 1), (1, 2)):
        assert steps(*layout) == expected


def test_counts_of_a_mixture_after_every_step():
    plan = plan_of(MixedSet(37, 7), MixedSet(12, 3))
    ids = np.concatenate([plan.samples(8 * step, 8 * step + 8).ids for step in range(1000)])
    counts = (ids < 37).cumsum()[7::8]
    assert np.abs(counts - 0.7 * 8 * np.arange(1, 1001)).max() <= 1 and counts[-1] == 5600


def test_partners_are_of_the_same_set():
    plan = plan_of(*THREE, mixup=0.6)
    samples = plan.samples(0, 5000)
    mixed = samples.partners >= 0
    assert 0.5 < mixed.mean() < 0.7
    sets = sets_of(plan, samples.ids[mixed])
    assert (sets == sets_of(plan, samples.partners[mixed])).all() and set(sets.tolist()) == {0, 1, 2}
    assert len(set(samples.partners[mixed][sets == 1].tolist())) == 7


def test_sets_of_equal_size_are_used_in_different_orders():
    plan = plan_of(MixedSet(100), MixedSet(100))
    ids = plan.samples(0, 200).ids
    first, second = ids[ids < 100], ids[ids >= 100] - 100
    assert (first == second).sum() < 10
    alone = BatchPlan(100, 8, 1, 1, 5, 16).samples(0, 100)
    assert first.tolist() == alone.ids.tolist()  # the first set is used as it is alone


@pytest.mark.parametrize("share", ["1/2", "3/10", "1/3", "0.001", "999/1000"])
def test_the_synthetic_share_of_a_set_holds_after_any_number_of_its_samples(share):
    synthetic = Fraction(share)
    plan = plan_of(MixedSet(61, 2, synthetic), MixedSet(20, 1))
    samples = plan.samples(0, 9000)
    first = samples.ids < 61
    counts = samples.are_synthetic[first].cumsum()
    assert np.abs(counts - float(synthetic) * np.arange(1, len(counts) + 1)).max() < 1
    assert not samples.are_synthetic[~first].any()
    if share == "1/2":  # both kinds of each image, not always the same
        drawn = {(i, bool(kind)) for i, kind in zip(samples.ids[first], samples.are_synthetic[first], strict=True)}
        assert len(drawn) == 2 * 61


def test_the_plan_of_one_set_is_the_plan_without_sets():
    alone = BatchPlan(61, 8, 1, 1, 5, 16, mixup=0.4)
    one = replace(alone, mixed=(MixedSet(61, 1),))
    for values, others in zip(alone.samples(0, 500), one.samples(0, 500), strict=True):
        assert values.tolist() == others.tolist()
