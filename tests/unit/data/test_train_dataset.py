"""Crops and flips of samples, the prefetching thread, and whole images for validation."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from PIL import Image

from accel_restore.data import loader as loader_module
from accel_restore.data.augment import FLIPS, finish_batch, to_float
from accel_restore.data.batch_plan import BatchPlan, BatchSchedule, Sample
from accel_restore.data.cache import open_stores
from accel_restore.data.degradations.pipeline import build_degradation
from accel_restore.data.loader import Prefetcher, StepSampler, TrainLoader
from accel_restore.data.store import Store, StoredPairs
from accel_restore.data.train_dataset import CropDataset
from accel_restore.data.training_sets import TrainingSet, TrainingSets
from accel_restore.data.val_dataset import ValidationDataset

SIZES = [(40, 33), (16, 16), (17, 60), (25, 16)]  # of the images here
PATCH = 16
NOISE = [("gaussian_noise", {"sigma": 25})]


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
    return tuple(opened.store for opened in open_stores(files, 3, folder / "cache"))


def dataset(stores: tuple[Store, Store], augment: list[str] | None = None, **options) -> CropDataset:
    augment = list(FLIPS) if augment is None else augment
    settings = {"crops_per_image": 50, "seed": 11, **options}
    return CropDataset(StoredPairs(*stores, list(range(len(SIZES)))), augment=augment, **settings)


def alone(data: CropDataset, steps: list[tuple[str, dict]] = NOISE) -> TrainingSets:
    """The data as the only training set."""
    return TrainingSets([TrainingSet("", data, build_degradation(steps))])


def samples(ids, epoch: int = 0, size: int = PATCH) -> list[Sample]:
    return [Sample(epoch, int(i), 1.0, size) for i in ids]


def test_crops_of_input_and_gt_are_aligned_and_reach_every_position(stores):
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


def test_sample_is_equal_in_any_batch_and_differs_between_epochs(stores):
    data = dataset(stores)
    whole = data.__getitems__(samples([3, 60, 199]))
    for place, i in enumerate([3, 60, 199]):
        alone = data.__getitems__(samples([i]))
        for name in ("gt", "input", "flips", "seeds", "id"):
            np.testing.assert_array_equal(np.asarray(alone[name][0]), np.asarray(whole[name][place]))
    for other in (d.__getitems__(samples([3, 60, 199], e)) for d, e in ((data, 1), (dataset(stores, seed=12), 0))):
        assert not torch.equal(other["gt"], whole["gt"]) and other["seeds"].tolist() != whole["seeds"].tolist()


def test_flips_equal_numpy_and_apply_to_half_of_the_samples(stores):
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
    assert "flips" not in dataset(stores, []).__getitems__(samples(range(200)))
    for augment, codes in ((["hflip"], {0, 1}), (["rot90", "vflip"], {0, 2, 4, 6})):
        assert set(dataset(stores, augment).__getitems__(samples(range(200)))["flips"].tolist()) == codes


def test_values_are_exact_and_padding_is_marked(stores):
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    assert to_float(levels).flatten().tolist() == (torch.arange(256) / 255).tolist()
    assert to_float(levels.expand(1, 16, 16, 3), channels_last=True).is_contiguous(memory_format=torch.channels_last)
    batch = dataset(stores).__getitems__([Sample(0, 5, 2.0, PATCH), Sample(0, 5, 0.0, PATCH)])
    assert batch["id"].tolist() == [5, -1] and batch["weight"].tolist() == [2.0, 0.0]


def test_partners_are_mixed_into_both_images_of_a_pair(stores):
    data = dataset(stores, mixup_alpha=1.2)
    mixed = [sample._replace(partner=partner) for sample, partner in zip(samples(range(4)), (9, -1, 7, 0), strict=True)]
    batch = data.__getitems__(mixed)
    assert batch["gt"].shape[0] == len(batch["flips"]) == 7 and len(batch["weight"]) == len(batch["id"]) == 4
    assert batch["partner"].tolist() == [4, 1, 5, 6] and batch["share"][1] == 1
    assert all(0 < share < 1 for share in batch["share"][[0, 2, 3]]) and len(set(batch["share"].tolist())) == 4
    finished, alone = (
        finish_batch(dict(b), None, channels_last=False)
        for b in (batch, data.__getitems__(samples([0, 1, 2, 3, 9, 7, 0])))
    )
    for name in ("gt", "input"):
        own, others = alone[name][:4], alone[name][[4, 1, 5, 6]]  # a partner is cut out as it is in its own place
        share = batch["share"].view(4, 1, 1, 1)
        torch.testing.assert_close(finished[name], share * own + (1 - share) * others)
        assert not torch.equal(finished[name][0], own[0]) and torch.equal(finished[name][1], own[1])
    again = data.__getitems__([*mixed[2:], *samples([5])])
    assert again["share"][:2].tolist() == batch["share"][2:].tolist()  # whatever batch a sample is in


def test_clean_images_are_degraded_after_their_flips(stores):
    data = dataset((stores[0], None))
    degrade = build_degradation(NOISE)
    batch = data.__getitems__(samples(range(8)))
    assert "input" not in batch
    finished = finish_batch(batch, degrade, channels_last=False)
    assert finished["input"].equal(degrade(finished["gt"], batch["seeds"])) and not finished["input"].equal(
        finished["gt"]
    )


@pytest.mark.parametrize("scale", [2, 4])
def test_crops_of_super_resolution_are_aligned_to_the_pixel(scale, tmp_path):
    """Pixels of input say where they lie; gt repeats each of them `scale` times in both directions."""
    files: tuple[list, list] = ([], [])
    for number, (height, width) in enumerate([(40, 33), (4, 4), (9, 20)]):
        rows, columns = np.mgrid[:height, :width].astype(np.uint8)
        small = np.stack([rows, columns, np.full_like(rows, number)], 2)
        for kind, image in enumerate((small.repeat(scale, 0).repeat(scale, 1), small)):
            files[kind].append(tmp_path / f"{kind}{number}.png")
            Image.fromarray(image).save(files[kind][-1])
    pair = tuple(opened.store for opened in open_stores(files, 3, tmp_path / "cache"))
    data = CropDataset(StoredPairs(*pair, [0, 1, 2]), crops_per_image=200, augment=list(FLIPS), seed=1, scale=scale)
    batch = data.__getitems__(samples(range(600), size=4 * scale))
    assert batch["input"].shape == (600, 4, 4, 3) and batch["gt"].shape == (600, 4 * scale, 4 * scale, 3)
    finished = finish_batch(batch, None, channels_last=False)
    enlarged = finished["input"].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert enlarged.equal(finished["gt"])  # after the flips, too
    corners = {tuple(crop[0, 0].tolist()) for crop in batch["input"].numpy()}
    assert {top for top, _, number in corners if number == 2} == set(range(6))  # every place is used
    assert {left for _, left, number in corners if number == 2} == set(range(17))


def test_crops_of_clean_images_are_aligned_to_the_scale(stores):
    data, degrade = dataset((stores[0], None), scale=4), build_degradation([("downscale", {})], 4)
    batch = data.__getitems__(samples(range(200)))
    assert all((crop[0, 0, :2] % 4 == 0).all() for crop in batch["gt"])  # from a grid, as whole images are
    finished = finish_batch(batch, degrade, channels_last=True)
    assert finished["input"].shape == (200, 3, 4, 4) and finished["gt"].shape == (200, 3, 16, 16)
    assert finished["input"].is_contiguous(memory_format=torch.channels_last)


def test_16_bit_flips_equal_8_bit_flips(stores):
    batch = dataset(stores).__getitems__(samples(range(50)))
    deep = {**batch, **{name: (batch[name].to(torch.int32) * 257).to(torch.uint16) for name in ("gt", "input")}}
    finished, expected = (finish_batch(those, None, channels_last=True) for those in (deep, batch))
    assert finished["gt"].equal(expected["gt"]) and finished["input"].equal(expected["input"])


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "accel-restore-loader"]


@pytest.mark.parametrize("steps", [NOISE, [("jpeg", {"quality": [10, 90]})]], ids=["device", "host"])
def test_batches_are_the_same_with_any_number_of_threads(steps, stores, accelerator):
    plan, seen = BatchPlan(61, 8, 1, 1, 0, PATCH), []
    for num_threads in (0, 1, 2, 5):
        readers = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        data, where = dataset((stores[0], None), crops_per_image=16, readers=readers), set()

        def read(given: list[Sample], read=data.__getitems__, where=where) -> dict:
            where.add(threading.current_thread().name)
            return read(given)

        data.__getitems__ = read
        loader = TrainLoader(alone(data, steps), BatchSchedule((plan,)), accelerator, True, num_threads)
        assert build_degradation(steps).on_host == (steps[0][0] == "jpeg")
        batches = []
        for epoch in (0, 1):
            for micro_batches in loader.steps(epoch):
                batches += [(batch["input"].clone(), batch["gt"].clone()) for batch in micro_batches]
        seen.append(batches)
        assert where == {"accel-restore-loader" if num_threads else "MainThread"}
    assert len(seen[0]) == 16
    for other in seen[1:]:
        for pair, others in zip(seen[0], other, strict=True):
            assert pair[0].equal(others[0]) and pair[1].equal(others[1])
    assert not seen[0][0][0].equal(seen[0][8][0])  # the control: another epoch


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    AcceleratorState._reset_state(reset_partial_state=True)


def steps_that_finish_early(stores, accelerator, monkeypatch, num_threads, finishes_early):
    """The steps of an epoch of three batches, and the list to which each finished batch adds an element."""
    finished, finish, is_ready = [], loader_module.finish_groups, Prefetcher.is_ready

    def when_read(background):
        while background.first is None and background.queue.empty():
            time.sleep(0.001)
        return is_ready(background)

    monkeypatch.setattr(Prefetcher, "is_ready", when_read)
    monkeypatch.setattr(loader_module, "finish_groups", lambda *a, **k: finished.append(None) or finish(*a, **k))
    data, stages = alone(dataset(stores, crops_per_image=5)), BatchSchedule((BatchPlan(12, 4, 1, 1, 0, PATCH),))
    loader = TrainLoader(data, stages, accelerator, False, num_threads)
    assert not loader.finishes_early  # on a CPU
    loader.finishes_early = finishes_early
    return loader.steps(0), finished


@pytest.mark.parametrize(("num_threads", "on_gpu", "early"), [(1, True, 1), (0, True, 0), (1, False, 0)])
def test_next_batch_is_augmented_early_on_a_gpu(stores, accelerator, monkeypatch, num_threads, on_gpu, early):
    """Only if it has been read, so not without a prefetching thread."""
    steps, finished = steps_that_finish_early(stores, accelerator, monkeypatch, num_threads, on_gpu)
    for step, micro_batches in enumerate(steps, 1):
        [batch] = micro_batches  # asked for all: what follows is the optimizer's step
        assert batch["is_last"] and len(finished) == min(step + early, 3)


def test_failing_batch_does_not_affect_the_step_before_it(stores, accelerator, monkeypatch):
    steps, _ = steps_that_finish_early(stores, accelerator, monkeypatch, 1, True)
    [first] = next(steps)
    monkeypatch.setattr(loader_module, "finish_groups", lambda *a, **k: 1 / 0)
    [second] = next(steps)  # was finished; the third fails
    assert second["is_last"] and not second["input"].equal(first["input"])
    with pytest.raises(ZeroDivisionError):
        next(next(steps))


def test_steps_can_start_in_the_middle_of_an_epoch(stores, accelerator):
    plan = BatchPlan(20, 3, 2, 1, 0, PATCH)
    loader = TrainLoader(alone(dataset(stores, crops_per_image=5)), BatchSchedule((plan,)), accelerator, False)

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
    degrade, names, cpu = build_degradation(NOISE), ["a", "b", "c"], torch.device("cpu")
    whole = ValidationDataset(names, stores[0], None, [0, 2, 3], degrade, cpu)
    other = ValidationDataset(names[::-1], stores[0], None, [3, 2, 0], degrade, cpu)
    assert len(whole) == 3 and whole[1]["gt"].shape == (1, 3, *SIZES[2])
    for i in range(3):
        assert whole[i]["gt"].equal(to_float(torch.from_numpy(stores[0][[0, 2, 3][i]].copy())[None]))
        assert whole[i]["input"].equal(whole[i]["input"]) and whole[i]["input"].equal(other[2 - i]["input"])
    renamed = ValidationDataset(["x", "b", "c"], stores[0], None, [0, 2, 3], degrade, cpu)
    assert not renamed[0]["input"].equal(whole[0]["input"])  # the control: noise goes by the name
    paired = ValidationDataset(names, *stores, [0, 2, 3], degrade, cpu)
    assert paired[0]["input"].mul(255).round().equal(255 - paired[0]["gt"].mul(255).round())


def test_images_of_equal_size_share_a_batch(stores):
    whole = ValidationDataset(
        list("abcdef"), stores[0], None, [1, 0, 1, 1, 0, 3], build_degradation(NOISE), torch.device("cpu")
    )
    assert whole.batches(2) == [[0, 2], [1, 4], [3], [5]] and whole.batches(1) == [[0], [1], [2], [3], [4], [5]]
    assert whole.batches(9) == [[0, 2, 3], [1, 4], [5]]
    batch = whole.batch([1, 4])
    assert batch["gt"].equal(torch.cat([whole[1]["gt"], whole[4]["gt"]])) and batch["input"][1:].equal(
        whole[4]["input"]
    )


def test_whole_images_of_super_resolution_are_cut_to_multiples_of_the_scale(stores):
    degrade = build_degradation([("downscale", {})], 4)
    whole = ValidationDataset(["a", "b"], stores[0], None, [0, 2], degrade, torch.device("cpu"), 4)
    assert [whole[i]["gt"].shape[-2:] for i in range(2)] == [(40, 32), (16, 60)]
    assert [whole[i]["input"].shape[-2:] for i in range(2)] == [(10, 8), (4, 15)]


def test_random_generators_are_seeded_for_each_micro_batch_also_when_it_is_read_again(stores, accelerator):
    plan = BatchPlan(20, 3, 2, 1, 0, PATCH)
    loader = TrainLoader(alone(dataset(stores, crops_per_image=5)), BatchSchedule((plan,)), accelerator, False)

    def draws(first: int) -> list[list[float]]:
        return [[torch.rand(()).item() for _ in micro_batches] for micro_batches in loader.steps(1, first)]

    whole = draws(0)
    torch.rand(7)  # the state before does not matter
    assert draws(2) == whole[2:] and len({value for step in whole for value in step}) == 7
    assert [torch.rand(()).item() for _ in loader.again(1, 1)] == whole[1]
    loader.rank = 1
    assert not {value for step in draws(0) for value in step} & {value for step in whole for value in step}


def test_samples_of_two_passes_in_a_batch_are_drawn_as_in_batches_of_their_own(stores):
    data = dataset(stores, mixup_alpha=1.2)
    both = [Sample(epoch, 3, 1.0, PATCH, partner) for epoch, partner in ((0, 9), (1, 9), (1, -1))]
    batch = data.__getitems__(both)
    assert batch["seeds"][0] != batch["seeds"][1] == batch["seeds"][2] and batch["share"][0] != batch["share"][1]
    together = finish_batch(dict(batch), None, channels_last=False)
    for place, sample in enumerate(both):
        alone = finish_batch(data.__getitems__([sample]), None, channels_last=False)
        assert together["gt"][place].equal(alone["gt"][0]) and together["input"][place].equal(alone["input"][0])
    assert not together["gt"][0].equal(together["gt"][1])
