"""Which samples make up a step, their crops and flips, the background thread, and whole images for validation."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from PIL import Image

from accel_restore.data.crops import FLIPS, CropDataset, finish_batch, to_float
from accel_restore.data.degrade import build_degradation
from accel_restore.data.loader import StepSampler, TrainLoader, in_background
from accel_restore.data.order import Plan, Sample, hashes, key, make_plan, shuffled, uniform
from accel_restore.data.store import Store, open_store
from accel_restore.data.whole import WholeImages
from accel_restore.errors import UserError

SIZES = [(40, 33), (16, 16), (17, 60), (25, 16)]  # of the images here
PATCH = 16


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 61, 1000, 4097])
def test_an_order_holds_every_id_once(size):
    assert sorted(shuffled(np.arange(size), size, 7, 3).tolist()) == list(range(size))


def test_orders_of_other_epochs_and_seeds_differ():
    orders = [shuffled(np.arange(1000), 1000, seed, epoch).tolist() for seed in (0, 1, 2**63 - 1) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    for order in orders:
        assert sum(i == position for position, i in enumerate(order)) < 10  # about 1 in a random order
        assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.15  # five standard deviations


def test_a_place_in_a_huge_epoch_costs_no_array_of_it():
    plan = Plan(num_samples=10**9, batch_size=8, accumulation=2, world_size=4, seed=1)
    ids = [plan.sample_ids(epoch, step) for epoch in (0, 1) for step in (0, 12345, plan.steps_per_epoch - 1)]
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
    plan, used = Plan(*layout, seed=3), []
    epoch = list(plan.micro_batches(1))
    for step in range(plan.steps_per_epoch):
        count = plan.num_micro_batches(step)
        assert 0 < count <= plan.accumulation
        micro_batches, epoch = epoch[:count], epoch[count:]
        assert all(len(batch) == plan.micro_batch for batch in micro_batches)  # Accelerate drops short ones
        assert all(any(sample.weight for sample in batch) for batch in micro_batches)
        samples = [sample for batch in micro_batches for sample in batch]
        real = [sample for sample in samples if sample.weight > 0]
        assert len(real) == plan.num_real(step) and {sample.epoch for sample in samples} == {1}
        assert len({sample.weight for sample in real}) == 1
        assert sum(sample.weight for sample in samples) == pytest.approx(plan.world_size)
        assert [sample.id for sample in real] == plan.sample_ids(1, step).tolist()
        used += [sample.id for sample in real]
    assert sorted(used) == list(range(plan.num_samples)) and not epoch


@pytest.mark.parametrize("first", [0, 1, 7, 300, 356, 357])
def test_an_epoch_begun_in_its_middle_goes_on_as_the_whole_one(first):
    plan = Plan(10_000, batch_size=7, accumulation=2, world_size=2, seed=3)  # 358 steps, the last one ragged
    before = sum(plan.num_micro_batches(step) for step in range(first))
    assert list(plan.micro_batches(1, first)) == list(plan.micro_batches(1))[before:] != []


def test_a_step_holds_the_same_samples_in_every_layout_of_a_global_batch():
    plans = [make_plan(61, batch, None, 8, ranks, seed=5) for batch, ranks in ((8, 1), (4, 2), (4, 1), (2, 2), (1, 8))]
    assert [plan.accumulation for plan in plans] == [1, 1, 2, 2, 1]
    assert all(len({tuple(plan.sample_ids(*at)) for plan in plans}) == 1 for at in ((0, 0), (0, 7), (4, 3)))
    assert plans[0].sample_ids(0, 0).tolist() != Plan(61, 8, 1, 1, seed=6).sample_ids(0, 0).tolist()  # the control


def test_a_global_batch_that_does_not_fit_is_refused_with_numbers_that_do():
    with pytest.raises(UserError, match=r"global_batch_size: 12 .*micro-batches of 8 pairs on 2.*one of 1, 2, 3, 6$"):
        make_plan(100, 8, None, 12, 2, seed=0)
    for batch_size in (1, 2, 3, 6):
        assert make_plan(100, batch_size, None, 12, 2, seed=0).global_batch == 12
    with pytest.raises(UserError, match="no multiple of 3 processes"):
        make_plan(100, 1, None, 8, 3, seed=0)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Store, Store]:
    """gt whose pixels say where they lie (row, column, image), and an input that is its negative."""
    folder: Path = tmp_path_factory.mktemp("images")
    files: tuple[list, list] = ([], [])
    for number, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[:height, :width].astype(np.uint8)
        pixels = np.stack([rows, columns, np.full_like(rows, number)], 2)
        for kind, (name, image) in enumerate((("gt", pixels), ("input", 255 - pixels))):
            files[kind].append(folder / f"{name}{number}.png")
            Image.fromarray(image).save(files[kind][-1])
    return tuple(open_store(paths, 3, folder / "cache", lambda _: None)[0] for paths in files)


def dataset(stores: tuple[Store, Store], augment: list[str] | None = None, **options) -> CropDataset:
    augment = list(FLIPS) if augment is None else augment
    settings = {"patch_size": PATCH, "crops_per_image": 50, "seed": 11, **options}
    return CropDataset(*stores, list(range(len(SIZES))), augment=augment, **settings)


def samples(ids, epoch: int = 0) -> list[Sample]:
    return [Sample(epoch, int(i), 1.0) for i in ids]


def test_crops_of_input_and_gt_lie_in_the_same_place_anywhere_in_the_image(stores):
    data = dataset(stores)
    batch = data.__getitems__(samples(range(len(data))))
    gt, input = batch["gt"].numpy(), batch["input"].numpy()
    assert gt.shape == (200, PATCH, PATCH, 3) and gt.dtype == np.uint8
    np.testing.assert_array_equal(input, 255 - gt)
    corners = set()
    for i, crop in enumerate(gt):
        top, left, number = crop[0, 0].tolist()
        assert number == i // 50
        np.testing.assert_array_equal(crop, stores[0][number][top : top + PATCH, left : left + PATCH])
        corners.add((number, top, left))
    assert {corner for corner in corners if corner[0] == 1} == {(1, 0, 0)}  # just as large as a crop
    assert {top for number, top, _ in corners if number == 3} == set(range(10))  # every place is used


def test_a_sample_is_the_same_in_any_batch_and_another_in_another_epoch(stores):
    data = dataset(stores)
    whole = data.__getitems__(samples([3, 60, 199]))
    for place, i in enumerate([3, 60, 199]):
        alone = data.__getitems__(samples([i]))
        for name in ("gt", "input", "flips", "seeds", "id"):
            np.testing.assert_array_equal(np.asarray(alone[name][0]), np.asarray(whole[name][place]))
    for other in (d.__getitems__(samples([3, 60, 199], e)) for d, e in ((data, 1), (dataset(stores, seed=12), 0))):
        assert not torch.equal(other["gt"], whole["gt"]) and other["seeds"].tolist() != whole["seeds"].tolist()


def test_flips_equal_those_of_numpy_and_reach_half_of_the_samples(stores):
    batch, expected = dataset(stores).__getitems__(samples(range(200))), []
    for crop, code in zip(batch["gt"].numpy().copy(), batch["flips"], strict=True):
        crop = np.fliplr(crop) if code & FLIPS["hflip"] else crop
        crop = np.flipud(crop) if code & FLIPS["vflip"] else crop
        expected.append(np.rot90(crop) if code & FLIPS["rot90"] else crop)
    finished = finish_batch(dict(batch), lambda gt, seeds: gt, channels_last=False)
    expected = np.stack(expected).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(finished["gt"].numpy(), expected)
    np.testing.assert_array_equal((finished["input"] * 255).round(), (1 - finished["gt"]).mul(255).round())
    assert set(Counter(batch["flips"].tolist())) == set(range(8))
    assert all(65 < np.count_nonzero(batch["flips"] & bit) < 135 for bit in FLIPS.values())  # of 200; five deviations
    for augment, codes in (([], {0}), (["hflip"], {0, 1}), (["rot90", "vflip"], {0, 2, 4, 6})):
        assert set(dataset(stores, augment).__getitems__(samples(range(200)))["flips"].tolist()) == codes


def test_values_are_exact_and_padding_is_marked(stores):
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    assert to_float(levels).flatten().tolist() == (torch.arange(256) / 255).tolist()
    assert to_float(levels.expand(1, 16, 16, 3), channels_last=True).is_contiguous(memory_format=torch.channels_last)
    batch = dataset(stores).__getitems__([Sample(0, 5, 2.0), Sample(0, 5, 0.0)])
    assert batch["id"].tolist() == [5, -1] and batch["weight"].tolist() == [2.0, 0.0]


def test_clean_images_are_degraded_after_their_flips(stores):
    data = dataset((stores[0], None))
    degrade = build_degradation([("gaussian_noise", {"sigma": 25})])
    batch = data.__getitems__(samples(range(8)))
    assert "input" not in batch
    finished = finish_batch(batch, degrade, channels_last=False)
    assert finished["input"].equal(degrade(finished["gt"], batch["seeds"])) and not finished["input"].equal(
        finished["gt"]
    )


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "accel-restore-loader"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UserError])
def test_an_exception_arrives_where_its_element_would_have_come(error):
    def items():
        yield from range(5)
        raise error("of the data")

    assert list(in_background(range(50))) == list(range(50)) and list(in_background([])) == []
    background = in_background(items())
    assert [next(background) for _ in range(5)] == list(range(5))
    with pytest.raises(error, match="of the data"):
        next(background)
    assert not loader_threads()


def test_closing_ends_a_thread_that_waits_for_room():
    background = in_background(iter(int, 1))  # endless
    assert next(background) == 0 and len(loader_threads()) == 1
    background.close()
    assert not loader_threads()


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_steps_of_an_epoch_can_begin_in_its_middle(stores, accelerator):
    plan = Plan(20, 3, 2, 1, seed=0)
    loader = TrainLoader(dataset(stores, crops_per_image=5), plan, accelerator, lambda gt, _: gt, channels_last=False)

    def steps(first: int) -> list[list[tuple]]:
        return [
            [(tuple(b["id"]), b["weight"].sum().item(), b["is_last"]) for b in micro_batches]
            for micro_batches in loader.steps(2, first)
        ]

    whole = steps(0)
    assert list(map(len, whole)) == [2, 2, 2, 1] and steps(2) == whole[2:]
    assert sorted(i for step in whole for ids, _, _ in step for i in ids if i >= 0) == list(range(20))
    assert all([last for *_, last in step] == [False] * (len(step) - 1) + [True] for step in whole)
    assert len(StepSampler(plan)) == len(list(StepSampler(plan))) == 7 and not loader_threads()


def test_whole_images_are_the_same_every_time(stores):
    degrade, names, cpu = build_degradation([("gaussian_noise", {"sigma": 25})]), ["a", "b", "c"], torch.device("cpu")
    whole = WholeImages(names, stores[0], None, [0, 2, 3], degrade, cpu)
    other = WholeImages(names[::-1], stores[0], None, [3, 2, 0], degrade, cpu)
    assert len(whole) == 3 and whole[1]["gt"].shape == (1, 3, *SIZES[2])
    for i in range(3):
        assert whole[i]["gt"].equal(to_float(torch.from_numpy(stores[0][[0, 2, 3][i]].copy())[None]))
        assert whole[i]["input"].equal(whole[i]["input"]) and whole[i]["input"].equal(other[2 - i]["input"])
    renamed = WholeImages(["x", "b", "c"], stores[0], None, [0, 2, 3], degrade, cpu)
    assert not renamed[0]["input"].equal(whole[0]["input"])  # the control: noise goes by the name
    paired = WholeImages(names, *stores, [0, 2, 3], degrade, cpu)
    assert paired[0]["input"].mul(255).round().equal(255 - paired[0]["gt"].mul(255).round())
