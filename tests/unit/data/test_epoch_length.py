"""Epochs of N steps: samples go on from epoch to epoch, each once per pass, in any layout of ranks and accumulation."""

from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_restore.data.batch_plan import BatchPlan, BatchSchedule, Sample
from accel_restore.data.loader import StepSampler
from accel_restore.utils.rng import hashes, key, keys

LAYOUTS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))  # batch, accumulation, ranks
Step = list[Sample]


@st.composite
def schedules(draw) -> tuple[BatchSchedule, int]:
    """A schedule of up to three stages with their own layouts, and its number of epochs."""
    num_samples, mixup = draw(st.integers(1, 90)), draw(st.sampled_from([0.0, 0.5]))
    ends = sorted(draw(st.sets(st.integers(1, 4), max_size=2)))
    plans = tuple(
        BatchPlan(num_samples, *draw(LAYOUTS), seed=5, patch_size=8 * number, mixup=mixup)
        for number in range(1, len(ends) + 2)
    )
    length, max_steps = draw(st.integers(1, 9)), draw(st.none() | st.integers(1, 40))
    schedule = BatchSchedule(plans, tuple(ends), length, max_steps)
    return schedule, draw(st.integers(1, 6)) if max_steps is None else schedule.num_epochs(max_steps)


def steps_of(schedule: BatchSchedule, epoch: int, first_step: int = 0) -> list[Step]:
    """Return the samples of each step of an epoch, over all ranks and micro-batches."""
    plan = schedule.epoch(epoch)
    left = plan.micro_batches(first_step)
    counts = map(plan.num_micro_batches, range(first_step, plan.num_steps))
    steps = [[sample for _ in range(count) for sample in next(left)] for count in counts]
    assert next(left, None) is None
    return steps


def in_layout(schedule: BatchSchedule, ranks: int, accumulation: int) -> BatchSchedule:
    """Return the schedule with the same global batches in another layout; some layouts do not fit all of them."""
    plans = []
    for plan in schedule.plans:
        others = [n for n in (ranks, 2, 1) if plan.global_batch % n == 0]
        per_rank = plan.global_batch // others[0]
        count = accumulation if per_rank % accumulation == 0 else 1
        plans.append(replace(plan, world_size=others[0], accumulation=count, batch_size=per_rank // count))
    return replace(schedule, plans=tuple(plans))


@settings(max_examples=50, deadline=None)
@given(schedules())
def test_every_pass_takes_each_sample_once_across_epochs_and_stages(made):
    schedule, epochs = made
    num_samples = schedule.plans[0].num_samples
    samples = [sample for epoch in range(epochs) for step in steps_of(schedule, epoch) for sample in step]
    for first in range(0, len(samples), num_samples):
        one = samples[first : first + num_samples]
        assert {sample.pass_ for sample in one} == {first // num_samples}
        assert len({sample.id for sample in one}) == len(one) and max(sample.id for sample in one) < num_samples
    counts = Counter(sample.id for sample in samples)
    assert max(counts.values()) - min(counts[i] for i in range(num_samples)) <= 1


@settings(max_examples=50, deadline=None)
@given(schedules())
def test_epochs_have_their_number_of_full_steps_and_max_steps_is_exact(made):
    schedule, epochs = made
    plans = [schedule.epoch(epoch) for epoch in range(epochs)]
    assert [plan.num_steps for plan in plans[:-1]] == [schedule.steps_per_epoch] * (epochs - 1)
    assert sum(plan.num_steps for plan in plans) == schedule.num_steps(epochs)
    assert schedule.num_steps(epochs) == schedule.max_steps or schedule.max_steps is None
    assert [a.first + a.num_samples for a, b in pairwise(plans)] == [b.first for a, b in pairwise(plans)]
    for epoch, plan in enumerate(plans):
        assert plan.plan is schedule.plan(epoch)
        for step in steps_of(schedule, epoch):
            assert len(step) == plan.plan.global_batch and all(sample.weight > 0 for sample in step)  # no padding
            assert {sample.weight for sample in step} == {plan.plan.world_size / plan.plan.global_batch}
            assert {sample.patch_size for sample in step} == {plan.plan.patch_size}


@settings(max_examples=50, deadline=None)
@given(schedules(), st.integers(1, 3), st.integers(1, 3))
def test_a_step_holds_the_same_samples_in_every_layout(made, ranks, accumulation):
    schedule, epochs = made
    other = in_layout(schedule, ranks, accumulation)
    for epoch in range(epochs):
        for one, two in zip(steps_of(schedule, epoch), steps_of(other, epoch), strict=True):
            assert [sample._replace(weight=1) for sample in one] == [sample._replace(weight=1) for sample in two]


@settings(max_examples=50, deadline=None)
@given(schedules(), st.data())
def test_a_run_continued_at_any_step_takes_the_rest_of_the_samples(made, data):
    schedule, epochs = made
    epoch = data.draw(st.integers(0, epochs - 1))
    plan = schedule.epoch(epoch)
    step = data.draw(st.integers(0, plan.num_steps))  # a run may also continue after the last step of an epoch
    assert steps_of(schedule, epoch, step) == steps_of(schedule, epoch)[step:]
    sampler = StepSampler(plan.plan)
    sampler.start_at(plan, step)
    assert len(sampler) == len(list(sampler))


def test_with_as_many_steps_as_a_pass_has_the_epochs_are_the_passes():
    plan = BatchPlan(64, 4, 2, 1, seed=5, patch_size=8, mixup=0.3)
    with_key, without = BatchSchedule((plan,), (), 8), BatchSchedule((plan,))
    assert [steps_of(with_key, epoch) for epoch in range(3)] == [steps_of(without, epoch) for epoch in range(3)]
    ragged = replace(plan, num_samples=61)  # the control: without the key, the last step is short of samples
    assert not all(sample.weight for sample in steps_of(BatchSchedule((ragged,)), 0)[-1])
    assert all(sample.weight for sample in steps_of(BatchSchedule((ragged,), (), 8), 0)[-1])


def test_passes_have_other_orders_and_partners():
    plan = BatchPlan(50, 10, 1, 1, seed=5, patch_size=8, mixup=0.5)
    samples = list(chain.from_iterable(steps_of(BatchSchedule((plan,), (), 20), 0)))
    passes = [samples[first : first + 50] for first in range(0, 200, 50)]
    assert len({tuple(sample.id for sample in one) for one in passes}) == 4
    assert len({tuple(sorted((sample.id, sample.partner) for sample in one)) for one in passes}) == 4


def test_max_steps_ends_the_last_epoch_only_with_steps_per_epoch():
    plan = BatchPlan(61, 8, 1, 1, 0, 8)  # 8 steps a pass
    exact, rounded = BatchSchedule((plan,), (), 250, 600), BatchSchedule((plan,), (), None, 600)
    assert (exact.num_epochs(600), exact.num_steps(3), exact.epoch(2).num_steps) == (3, 600, 100)
    assert (rounded.num_epochs(600), rounded.num_steps(75), rounded.epoch(74).num_steps) == (75, 600, 8)
    assert rounded.num_epochs(601) == 76 and rounded.num_steps(76) == 608
    short = BatchSchedule((plan,), (), 250, 20)
    assert (short.num_epochs(20), short.epoch(0).num_steps) == (1, 20)
    assert short.epoch(1).num_steps == exact.epoch(3).num_steps == 250, "bench train goes on after the last epoch"


def test_a_step_far_into_a_run_needs_no_array_of_the_steps_before_it():
    plan = BatchPlan(800, 4, 1, 8, seed=1, patch_size=8)
    late = BatchSchedule((plan,), (), 5000).epoch(10**6)
    assert late.first == 10**6 * 5000 * 32 and len(late.sample_ids(4999)) == 32


@pytest.mark.parametrize("purpose", [0, 16])
def test_the_draws_of_a_sample_do_not_depend_on_the_passes_of_others(purpose):
    ids, passes = np.array([4, 4, 9, 4]), np.array([7, 8, 7, 7])
    drawn = hashes(ids, keys(3, passes, purpose))
    alone = [hashes(ids[i : i + 1], key(3, int(passes[i]), purpose))[0] for i in range(4)]
    assert drawn.tolist() == alone and drawn[0] == drawn[3] and len(set(drawn.tolist())) == 3
