"""Batches of several training sets: every sample is finished as its set says, whatever it shares a batch with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import photo, save, save_deep_png
from PIL import Image
from test_train_dataset import NOISE, PATCH, SIZES, dataset

from accel_restore.config.load import config_from
from accel_restore.data.batch_plan import BatchPlan, Sample
from accel_restore.data.build import open_data
from accel_restore.data.cache import open_stores
from accel_restore.data.degradations.pipeline import DegradationPipeline, build_degradation
from accel_restore.data.pairs import Pair
from accel_restore.data.store import Store
from accel_restore.data.training_sets import TrainingSet, TrainingSets, finish_groups
from accel_restore.errors import UserError
from accel_restore.state import TrainState, sum_names


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Store, Store, Store]:
    """gt, its negative, and gt with 16 bits."""
    folder: Path = tmp_path_factory.mktemp("images")
    files: tuple[list, list, list] = ([], [], [])
    for number, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[:height, :width].astype(np.uint8)
        gt = np.stack([rows, columns, np.full_like(rows, 40 * number)], 2)
        for kind, (name, image) in enumerate((("gt", gt), ("input", 255 - gt))):
            files[kind].append(folder / f"{name}{number}.png")
            Image.fromarray(image).save(files[kind][-1])
        files[2].append(folder / f"deep{number}.png")
        save_deep_png(files[2][-1], gt.astype(np.uint16) * 257 + 1)
    opened = [one for kind in files for one in open_stores([kind], 3, folder / "cache")]
    assert [one.store.dtype for one in opened] == [np.uint8, np.uint8, np.uint16]
    return tuple(one.store for one in opened)


PAIRS = [Pair(str(number), Path(f"gt{number}.png"), Path(f"input{number}.png")) for number in range(len(SIZES))]


def three_sets(stores) -> TrainingSets:
    """A paired set, a synthetic one of 16 bits, and a set that is half of each; 20, 12 and 8 samples."""
    gt, input, deep = stores
    paired = dataset((gt, input), crops_per_image=5)
    made = dataset((deep, None), crops_per_image=3)
    both = dataset((gt, input), crops_per_image=2)
    return TrainingSets(
        [
            TrainingSet("a", paired, DegradationPipeline([], 1), PAIRS),
            TrainingSet("b", made, build_degradation(NOISE), [Pair(p.name, p.gt) for p in PAIRS]),
            TrainingSet("c", both, build_degradation([("jpeg", {"quality": 20})]), PAIRS, None, 0.5),
        ]
    )


def finished(sets: TrainingSets, samples: list[Sample], channels_last: bool = True) -> dict:
    return finish_groups(sets.__getitems__(samples), channels_last=channels_last)


MIXED = [
    Sample(0, 33, 1.0, PATCH, -1, True), Sample(0, 3, 1.0, PATCH), Sample(1, 25, 1.0, PATCH), Sample(0, 35, 1.0, PATCH),
    Sample(0, 4, 1.0, PATCH, 9), Sample(0, 20, 0.0, PATCH), Sample(2, 39, 1.0, PATCH, 32, True),
]  # fmt: skip


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_sample_is_the_same_whatever_sets_share_its_batch(stores, channels_last):
    sets = three_sets(stores)
    batch = finished(sets, MIXED, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch["input"].is_contiguous(memory_format=layout) and batch["gt"].is_contiguous(memory_format=layout)
    assert batch["set"].tolist() == [2, 0, 1, 2, 0, 1, 2] and batch["id"].tolist() == [33, 3, 25, 35, 4, -1, 39]
    assert batch["weight"].tolist() == [1, 1, 1, 1, 1, 0, 1]
    for place, sample in enumerate(MIXED):
        alone = finished(sets, [sample], channels_last)
        for name in ("input", "gt", "set", "weight"):
            assert batch[name][place].equal(alone[name][0]), (place, name)


def test_inputs_are_read_or_made_as_each_set_says(stores):
    batch = finished(three_sets(stores), [s._replace(partner=-1) for s in MIXED])
    is_negative = [
        (1 - gt).sub(input).abs().max() < 1e-6 for gt, input in zip(batch["gt"], batch["input"], strict=True)
    ]
    assert is_negative == [False, True, False, True, True, False, False]
    noise = (batch["input"] - batch["gt"])[2].std()
    assert 0.07 < noise < 0.13 and batch["gt"][2].mul(65535).round().sub(1).remainder(257).eq(0).all()  # 16 bits


def test_sets_of_equal_images_are_drawn_differently(stores):
    gt, input, _ = stores
    sets = TrainingSets(
        [
            TrainingSet("a", dataset((gt, input), crops_per_image=5), DegradationPipeline([], 1)),
            TrainingSet("b", dataset((gt, input), crops_per_image=5), DegradationPipeline([], 1)),
        ]
    )
    first, second = (finished(sets, [Sample(0, i + n, 1.0, PATCH) for i in range(20)])["gt"] for n in (0, 20))
    assert sum(a.equal(b) for a, b in zip(first, second, strict=True)) < 4
    alone = finished(TrainingSets(sets.sets[:1]), [Sample(0, i, 1.0, PATCH) for i in range(20)])
    assert alone["gt"].equal(first) and "set" not in alone  # the first set is drawn as it is alone


def test_files_of_samples_are_those_of_their_sets(stores):
    names = three_sets(stores).files_of(MIXED)
    assert names == ["gt0.png", "input0.png", "gt1.png", "input1.png", "gt3.png"]


def test_losses_and_samples_are_summed_per_set():
    state = TrainState(
        torch.nn.Linear(1, 1), None, None, 1, torch.zeros(len(sum_names((), (), ("a", "b")))), sets=("a", "b")
    )
    batch = {"weight": torch.tensor([1.0, 1.0, 1.0, 0.0]), "set": torch.tensor([0, 1, 1, 1])}
    state.count(torch.tensor([1.0, 2.0, float("nan"), 8.0]), {}, batch)
    state.count(torch.tensor([4.0, 8.0, 1.0, 0.5]), {}, batch)
    assert state.epoch_sums.tolist() == [16, 5, 5, 2, 11, 3]  # loss and samples; of a; of b


def config_of(root: Path, **train: dict):
    return config_from(
        {"data": {"train": train, "patch_size": 16, "cache_dir": str(root / "cache"), "val_fraction": 0.2}}
    )


def folder_of(path: Path, count: int, seed: int = 0) -> str:
    for number in range(count):
        save(path / f"{number}.png", photo(24, 30)[:, ::1] + np.uint8(seed + number))
    return str(path)


def test_sets_have_their_own_crops_degradations_and_folders(tmp_path):
    clean, noisy, more = (folder_of(tmp_path / name, 10, i) for i, name in enumerate(("clean", "noisy", "more/in")))
    data = config_of(
        tmp_path,
        real={"input": noisy, "gt": clean, "crops_per_image": 4},
        made={"gt": str(Path(more).parent), "recursive": True, "share": 0.75, "degradation": [{"name": "quantize"}]},
        plain={"gt": noisy},
    ).data
    sets = open_data(data, 0, 11, torch.device("cpu")).train
    assert [one.name for one in sets.sets] == ["made", "plain", "real"]  # by name, in whatever order they are written
    assert [len(one.crops) for one in sets.sets] == [8, 8, 32] and len(sets) == 48
    assert [one.crops.first_id for one in sets.sets] == [0, 8, 16]
    assert [part.uses for part in sets.mixed] == [15, 1, 4]  # 0.75; the rest as 8 to 32
    degraded = [[step.function.__name__ for step in one.degrade.steps] for one in sets.sets]
    assert degraded == [["quantize"], ["gaussian_noise"], []]
    plan = BatchPlan(len(sets), 8, 1, 1, 0, 16, mixed=sets.mixed)
    for batch in plan.one_pass(0).micro_batches():
        assert torch.isfinite(finished(sets, list(batch))["input"]).all()


@pytest.mark.parametrize(
    "steps", [[{"name": "jpg"}], [{"name": "jpeg", "quality": 900}], [{"name": "quantize", "x": 1}]]
)
def test_an_invalid_degradation_of_a_set_is_reported_with_its_key(steps, tmp_path):
    folder = folder_of(tmp_path / "clean", 4)
    with pytest.raises(UserError, match=r"data\.train\.a\.degradation\.0"):
        open_data(config_of(tmp_path, a={"gt": folder, "degradation": steps}, b={"gt": folder}).data, 0, 11, "cpu")
