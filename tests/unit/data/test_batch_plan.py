"""Samples of a step: each once per epoch, the same on any number of ranks, with exact weights."""

import tracemalloc

import numpy as np
import pytest

from accel_restore.checkpoint.resume import Start
from accel_restore.config.load import config_from
from accel_restore.data.batch_plan import BatchPlan, BatchSchedule, with_global_batch
from accel_restore.data.loader import StepSampler
from accel_restore.data.mixture import MixedSet
from accel_restore.errors import UserError
from accel_restore.trainer.stages import make_stages
from accel_restore.utils.rng import hashes, key, shuffled, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 61, 1000, 4097])
def test_order_contains_every_id_once(size):
    assert sorted(shuffled(np.arange(size), size, 7, np.full(size, 3)).tolist()) == list(range(size))


def test_orders_of_other_epochs_and_seeds_differ():
    orders = [
        shuffled(np.arange(1000), 1000, seed, np.full(1000, one)).tolist()
        for seed in (0, 1, 2**63 - 1)
        for one in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9
    for order in orders:
        assert sum(i == position for position, i in enumerate(order)) < 10  # about 1 in a random order
        assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.15  # five standard deviations


def test_step_of_a_huge_epoch_needs_no_array_of_the_epoch():
    plan = BatchPlan(num_samples=10**9, batch_size=8, accumulation=2, world_size=4, seed=1, patch_size=8)
    epochs = plan.one_pass(0), plan.one_pass(1)
    ids = [epoch.sample_ids(step) for epoch in epochs for step in (0, 12345, epoch.num_steps - 1)]
    assert all(len(step) == 64 and step.min() >= 0 and step.max() < 10**9 for step in ids)
    assert len(set(np.concatenate(ids[:3]).tolist())) == 3 * 64
    assert not set(ids[0].tolist()) & set(ids[3].tolist())


def test_hashes_are_uniform_and_depend_on_the_order_of_their_parts():
    draws = uniform(hashes(np.arange(100_000), key(3)))
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert counts.sum() == 100_000 and np.abs(counts - 10_000).max() < 500  # five standard deviations
    assert key(1, 2) != key(2, 1) and key(1) != key(1, 0)


LAYOUTS = [  # samples, batch, accumulation, ranks
    (1, 1, 1, 1), (5, 8, 1, 1), (61, 8, 1, 1), (61, 2, 2, 2), (61, 4, 1, 2), (64, 4, 2, 2), (7, 1, 1, 8),
    (100, 3, 5, 3), (10_000, 7, 2, 2),
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_sample_once_per_epoch_and_exact_weights(layout):
    plan, used = BatchPlan(*layout, seed=3, patch_size=8), []
    epoch = plan.one_pass(1)
    left = list(epoch.micro_batches())
    for step in range(epoch.num_steps):
        count = epoch.num_micro_batches(step)
        assert 0 < count <= plan.accumulation
        micro_batches, left = left[:count], left[count:]
        assert all(len(batch) == plan.micro_batch for batch in micro_batches)  # Accelerate drops short ones
        assert all(any(sample.weight for sample in batch) for batch in micro_batches)
        samples = [sample for batch in micro_batches for sample in batch]
        real = [sample for sample in samples if sample.weight > 0]
        assert len(real) == epoch.num_real(step) and {sample.pass_ for sample in samples} == {1}
        assert len({sample.weight for sample in real}) == 1
        assert sum(sample.weight for sample in samples) == pytest.approx(plan.world_size)
        assert [sample.id for sample in real] == epoch.sample_ids(step).tolist()
        used += [sample.id for sample in real]
    assert sorted(used) == list(range(plan.num_samples)) and not left


@pytest.mark.parametrize("first", [0, 1, 7, 300, 356, 357])
def test_epoch_started_in_the_middle_equals_the_rest_of_the_whole_epoch(first):
    plan = BatchPlan(
        10_000, batch_size=7, accumulation=2, world_size=2, seed=3, patch_size=8
    )  # 358 steps, the last one ragged
    epoch = plan.one_pass(1)
    before = sum(epoch.num_micro_batches(step) for step in range(first))
    whole = [list(batch) for batch in epoch.micro_batches()]
    assert [list(batch) for batch in epoch.micro_batches(first)] == whole[before:] != []


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 47, 48, 49, 63, 64])
@pytest.mark.parametrize("accumulation", [1, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_number_of_micro_batches_from_a_step_on_is_that_of_the_epoch_up_to_its_end(
    num_samples, accumulation, world_size
):
    plan = BatchPlan(num_samples, 4, accumulation, world_size, 0, 16)
    sampler, epoch = StepSampler(plan), plan.one_pass(0)
    for step in range(epoch.num_steps + 2):  # a run may continue at the end of an epoch, and there is no step more
        sampler.start_at(epoch, step)
        assert len(sampler) == len(list(sampler)) == sum(map(epoch.num_micro_batches, range(step, epoch.num_steps)))
        assert (epoch.num_real(step) > 0) == (epoch.num_micro_batches(step) > 0) == (step < epoch.num_steps)
        assert len(epoch.sample_ids(step)) == epoch.num_real(step)


def test_rank_makes_only_its_own_samples():
    plan = BatchPlan(10**9, batch_size=8, accumulation=1, world_size=1024, seed=3, patch_size=8)
    batch = next(plan.one_pass(1).micro_batches(10**5))
    tracemalloc.start()
    mine = batch[8 * 500 : 8 * 501]
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()
    assert mine == list(batch)[4000:4008] and len(batch) == 8192
    assert [sample.id for sample in mine] == plan.one_pass(1).sample_ids(10**5)[4000:4008].tolist()
    with pytest.raises(IndexError):
        batch[8192]


def test_a_step_holds_the_same_samples_in_every_layout_of_a_global_batch():
    layouts = ((8, 1), (4, 2), (4, 1), (2, 2), (1, 8))
    plans = [with_global_batch(BatchPlan(61, batch, 1, ranks, 5, 8), 8) for batch, ranks in layouts]
    assert [plan.accumulation for plan in plans] == [1, 1, 2, 2, 1]
    assert all(
        len({tuple(plan.one_pass(epoch).sample_ids(step)) for plan in plans}) == 1
        for epoch, step in ((0, 0), (0, 7), (4, 3))
    )
    other = BatchPlan(61, 8, 1, 1, 6, 8).one_pass(0)
    assert plans[0].one_pass(0).sample_ids(0).tolist() != other.sample_ids(0).tolist()  # the control


def test_unfit_global_batch_is_rejected_with_fitting_numbers():
    with pytest.raises(UserError, match=r"global_batch_size: 12 .*micro-batches of 8 pairs on 2.*one of 1, 2, 3, 6$"):
        with_global_batch(BatchPlan(100, 8, 1, 2, 0, 8), 12)
    with pytest.raises(UserError, match=r"^its: 12 cannot .* set theirs to one of 1, 2, 3, 6$"):
        with_global_batch(BatchPlan(100, 8, 1, 2, 0, 8), 12, keys=("its", "theirs"))
    for batch_size in (1, 2, 3, 6):
        assert with_global_batch(BatchPlan(100, batch_size, 1, 2, 0, 8), 12).global_batch == 12
    with pytest.raises(UserError, match="not a multiple of 3 processes"):
        with_global_batch(BatchPlan(100, 1, 1, 3, 0, 8), 8)


def test_stages_count_their_steps_and_end_before_their_epochs():
    small, middle, large = (BatchPlan(100, batch, 1, 1, 0, size) for batch, size in ((50, 8), (20, 16), (10, 32)))
    stages = BatchSchedule((small, middle, large), (3, 5))  # 2, 5 and 10 steps an epoch
    assert [stages.plan(epoch) for epoch in (0, 2, 3, 4, 5, 99)] == [small, small, middle, middle, large, large]
    assert [stages.num_steps(epochs) for epochs in (0, 1, 3, 4, 5, 7)] == [0, 2, 6, 11, 16, 36]
    assert [stages.num_epochs(steps) for steps in (1, 2, 3, 6, 7, 16, 17, 36)] == [1, 1, 2, 3, 4, 5, 6, 7]
    assert list(stages.spans(4)) == [(small, 0, 3), (middle, 3, 4)]
    assert {sample.patch_size for batch in stages.epoch(3).micro_batches() for sample in batch} == {16}
    alone = BatchSchedule((large,))
    assert alone.plan(7) is large and alone.num_steps(3) == 30 and alone.num_epochs(31) == 4


def test_mixup_partners_are_a_share_of_samples_and_equal_in_every_layout():
    plan = BatchPlan(1000, 8, 1, 1, 3, 8, mixup=0.25)
    ids = np.arange(1000)
    partners = plan.partners(np.full(1000, 2), ids)
    mixed = partners[partners >= 0]
    assert 180 < len(mixed) < 320 and mixed.max() < 1000 and len(set(mixed.tolist())) > 150  # five deviations
    assert partners.tolist() != plan.partners(np.full(1000, 3), ids).tolist()
    expected = dict(zip(ids.tolist(), partners.tolist(), strict=True))
    for other in (plan, BatchPlan(1000, 3, 2, 2, 3, 8, mixup=0.25)):
        for batch in other.one_pass(2).micro_batches():
            assert all(sample.partner == expected[sample.id] for sample in batch if sample.weight)
            assert all(sample.partner == -1 for sample in batch if not sample.weight)
    assert set(BatchPlan(1000, 8, 1, 1, 3, 8).partners(np.full(1000, 2), ids).tolist()) == {-1}


def test_unfit_batch_of_a_stage_is_reported_with_its_keys():
    def describe_error(train: dict, stage: dict) -> str:
        data = {"train": {"gt": "clean"}, "batch_size": 2, "stages": [{"until_epoch": 1, **stage}]}
        with pytest.raises(UserError) as refused:
            make_stages(config_from({"data": data, "train": train}), (MixedSet(100),), 1, Start())
        return str(refused.value)

    message = describe_error({"global_batch_size": 8}, {"batch_size": 3})
    assert message.startswith("train.global_batch_size: 8 cannot")
    assert message.endswith("set data.stages.0.batch_size to one of 1, 2, 4, 8")
    message = describe_error({}, {"global_batch_size": 5})
    assert message.startswith("data.stages.0.global_batch_size: 5 cannot") and "set data.batch_size to" in message
