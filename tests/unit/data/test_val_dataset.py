"""Several validation sets as one sequence of images."""

import threading
import time
from pathlib import Path

import pytest
import torch
from image_files import photo, save

from accel_restore.config.data import Data
from accel_restore.config.load import config_from
from accel_restore.data.build import degradations_of, open_data
from accel_restore.errors import UserError


@pytest.fixture
def folders(tmp_path):
    for name in ("a", "b"):
        for number, size in enumerate(((20, 24), (24, 20), (20, 24))):
            save(tmp_path / name / f"{number}.png", photo(*size, seed=number + 10 * (name == "b")))
    return tmp_path


def settings(folder: Path, val: dict, **more) -> Data:
    sets = {name: {"gt": str(folder / "a"), **one} for name, one in val.items()}
    data = {"train": {"gt": str(folder / "b")}, "val": sets, "patch_size": 16, "cache_dir": str(folder / "cache")}
    return config_from({"data": {**data, **more}}).data


def opened(data: Data, least=11):
    return open_data(data, 0, least, torch.device("cpu"))


def test_images_of_all_sets_are_one_sequence_and_batches_hold_those_of_one_set_and_size(folders):
    data = settings(folders, {"x": {}, "y": {"gt": str(folders / "b")}})
    images = opened(data).val
    assert images.names == ["x/0", "x/1", "x/2", "y/0", "y/1", "y/2"]
    assert images.set_of == ["x"] * 3 + ["y"] * 3 and len(images) == 6
    assert images.batches(1) == [[0], [1], [2], [3], [4], [5]]
    assert images.batches(9) == [[0, 2], [1], [3, 5], [4]]
    for indices in images.batches(9):
        batch = images.batch(indices)
        for place, index in enumerate(indices):
            assert batch["gt"][place].equal(images[index]["gt"][0])
    assert images[3]["gt"].equal(images.sets["y"][0]["gt"])


def test_the_same_images_under_several_degradations_are_decoded_once(folders):
    noise = {f"sigma{s}": {"degradation": [{"name": "gaussian_noise", "sigma": s}]} for s in (15, 50)}
    decoded = []

    def track(items, number, description):
        decoded.append(description)
        return items

    found = open_data(settings(folders, noise), 0, 11, torch.device("cpu"), track)
    assert decoded == ["decoding 3 images, once"] * 2, "those to train on, and those of both sets"
    sets = found.val.sets
    assert sets["sigma15"].gt.path == sets["sigma50"].gt.path
    pixels = 3 * 20 * 24 * 3
    assert found.nbytes == 2 * pixels
    weak, strong = (one[0]["input"] - one[0]["gt"] for one in sets.values())
    torch.testing.assert_close(strong / 50, weak / 15, rtol=0, atol=1e-6)


def test_a_set_makes_the_inputs_that_it_makes_alone_without_a_name(folders):
    steps = [{"name": "gaussian_noise", "sigma": 30}]
    named = opened(settings(folders, {"x": {}, "y": {"degradation": steps}})).val
    alone = config_from(
        {
            "data": {
                "train": {"gt": str(folders / "b")},
                "val": {"gt": str(folders / "a")},
                "degradation": steps,
                "patch_size": 16,
                "cache_dir": str(folders / "cache"),
            }
        }
    ).data
    images = opened(alone).val
    assert images.names == ["0", "1", "2"] and images.set_of == [""] * 3
    assert images[1]["input"].equal(named[4]["input"])


def test_a_mistake_in_a_degradation_is_reported_with_the_key_of_its_set(folders):
    data = settings(folders, {"x": {}, "y": {"degradation": [{"name": "gaussian_noise", "sigma": -1}]}})
    with pytest.raises(UserError, match=r"^data\.val\.y\.degradation\.0\.sigma: must be a number"):
        degradations_of(data)
    half = settings(folders, {"x": {}, "y": {"degradation": [{"name": "resize", "scale": 0.5}]}})
    with pytest.raises(UserError, match=r"data\.val\.y\.degradation: can make an input of"):
        degradations_of(half)


def test_an_image_may_be_too_small_for_the_border_of_one_set_alone(folders):
    data = settings(folders, {"x": {}, "y": {}})
    with pytest.raises(UserError, match="1 problem") as caught:
        opened(settings(folders, {"x": {}, "y": {"gt": [str(folders / "b" / "1.png")]}}), {"x": 11, "y": 21})
    assert "1.png: is 20x24, smaller than the 21 pixels" in str(caught.value)
    assert len(opened(data, {"x": 11, "y": 20}).val) == 6


def test_a_missing_folder_is_reported_with_the_key_of_its_set(folders):
    with pytest.raises(UserError, match=r"data\.val\.y\.gt: "):
        opened(settings(folders, {"x": {}, "y": {"gt": str(folders / "none")}}))


def test_batches_are_read_one_ahead_by_a_thread_and_are_bit_identical(folders, monkeypatch):
    images = opened(
        settings(folders, {"x": {"degradation": [{"name": "gaussian_noise"}, {"name": "gaussian_blur"}]}})
    ).val
    groups = [[0], [2], [1], [0, 2], [1]]
    expected, batch, read, started = [images.batch(group) for group in groups], images.batch, [], threading.Semaphore(0)

    def reading(group):
        read.append(threading.current_thread().name)
        started.release()
        return batch(group)

    monkeypatch.setattr(images, "batch", reading)
    with images.ahead(groups) as found:
        for number, (indices, pair) in enumerate(found, 1):
            for _ in range(min(2, len(groups))) if number == 1 else range(number < len(groups)):
                assert started.acquire(timeout=60), "the next is read while this one is used"
            time.sleep(0.02)  # in which a thread without a bound would read on
            assert len(read) == min(number + 1, len(groups))
            assert indices == groups[number - 1]
            assert all(pair[name].equal(expected[number - 1][name]) for name in ("input", "gt"))
    assert set(read) == {"accel-restore-loader"}


def test_images_end_early_once_a_stop_is_asked_for(folders):
    images, asked = opened(settings(folders, {"x": {}})).val, []
    with images.ahead([[0], [1], [2]], lambda: bool(asked)) as found:
        assert next(found)[0] == [0]
        asked.append(True)
        assert len(list(found)) <= 1  # the one that had been read
