"""From the configuration's `data` section to data sets: all problems at once, the same run from any kind of source."""

from pathlib import Path

import pytest
import torch
from image_files import make_unusable, photo, save

from accel_restore.config.data import Data
from accel_restore.config.load import config_from
from accel_restore.data import build as sources
from accel_restore.data.batch_plan import Sample
from accel_restore.data.build import DataSets, open_data
from accel_restore.data.scan import find_data
from accel_restore.errors import UserError
from accel_restore.utils.memory import memory_bytes


def save_all(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        save(folder / name, photo(seed=number))
    return folder


def settings(tmp_path: Path, **data) -> Data:
    return config_from({"data": {"patch_size": 16, "cache_dir": str(tmp_path / "cache"), **data}}).data


def open_sources(tmp_path: Path, seed: int = 0, **data) -> DataSets:
    return open_data(settings(tmp_path, **data), seed, 11, torch.device("cpu"))


def test_all_problems_of_the_data_are_reported_at_once(tmp_path):
    gt = save_all(tmp_path / "gt", "a.png", "b.png", "c.png", "d.png", "alone.png")
    noisy = save_all(tmp_path / "noisy", "a.png", "b.png", "d.png")
    save(gt / "a.png", photo(20, 31))
    make_unusable("truncated", noisy / "b.png")
    for folder in (gt, noisy):
        save(folder / "d.png", photo(15, 40))
    with pytest.raises(UserError) as caught:
        open_sources(tmp_path, train={"gt": str(gt), "input": str(noisy)}, val={"gt": str(tmp_path / "none")})
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("6 problems") and len(lines) == 7
    for words in (
        ("c.png", "no partner"), ("alone.png", "no partner"), ("noisy/a.png", "30x20", "31x20", "of equal size"),
        ("noisy/b.png", "damaged"), ("gt/d.png", "40x15", "16 pixels of data.patch_size"), ("data.val.gt", "none"),
    ):  # fmt: skip
        assert any(all(word in line for word in words) for line in lines), words


def test_the_held_out_images_do_not_depend_on_the_seed(tmp_path):
    gt = str(save_all(tmp_path / "gt", *(f"{number}.png" for number in range(20))))
    one, two = (open_sources(tmp_path, seed, train={"gt": gt}, val_fraction=0.25) for seed in (0, 1))
    assert one.identity == two.identity and one.val.names == one.identity["val"].names
    assert len(one.val) == 5 and len(one.train) == 15
    assert sorted(one.identity["train"].names + one.val.names) == sorted(str(number) for number in range(20))


@pytest.mark.parametrize(
    ("count", "fraction", "message"), [(1, 0.5, "a single image cannot"), (2, 0.9, "val_fraction")]
)
def test_too_few_images_for_a_validation_split_are_reported(count, fraction, message, tmp_path):
    gt = save_all(tmp_path / "gt", *(f"{number}.png" for number in range(count)))
    with pytest.raises(UserError, match=message):
        open_sources(tmp_path, train={"gt": str(gt)}, val_fraction=fraction)


def test_images_smaller_than_a_crop_or_the_metrics_are_reported(tmp_path):
    train = save_all(tmp_path / "gt", "a.png")
    small = save(tmp_path / "val" / "small.png", photo(10, 30))
    with pytest.raises(
        UserError, match=r"a\.png: is 30x20, smaller than the 21 (.|\n)*small\.png: is 30x10, smaller than the 11 "
    ):
        open_sources(tmp_path, train={"gt": str(train)}, val={"gt": [str(small)]}, patch_size=21)
    assert len(open_sources(tmp_path, train={"gt": str(train)}, val={"gt": str(train)}, patch_size=20).train) == 1


def test_input_that_is_off_by_a_pixel_is_reported(tmp_path):
    sizes = {"a": (10, 15), "b": (10, 14), "c": (11, 15)}  # of input; gt is 20x30
    for name, size in sizes.items():
        save(tmp_path / "gt" / f"{name}.png", photo(20, 30))
        save(tmp_path / "small" / f"{name}.png", photo(*size))
    both = {"gt": str(tmp_path / "gt"), "input": str(tmp_path / "small")}
    found = find_data(settings(tmp_path, train=both, scale=2), 11)
    named = [problem.split(": ")[0] for problem in found.problems]
    assert named == [str(tmp_path / "small" / name) for name in ("b.png", "c.png")]
    assert "is 14x10, its gt" in found.problems[0] and "is 30x20; gt must be 2 times as large" in found.problems[0]


@pytest.mark.parametrize("scale, rows, columns", [(2, 41, 60), (3, 62, 61), (4, 83, 81)])
def test_gt_that_is_no_multiple_of_the_scale_can_be_cropped(tmp_path, scale, rows, columns):
    gt = photo(rows, columns)
    gt[rows // scale * scale :] = 0
    gt[:, columns // scale * scale :] = 0
    for name in ("a", "b", "c"):
        save(tmp_path / "gt" / f"{name}.png", gt)
        save(
            tmp_path / "small" / f"{name}.png", gt[: rows // scale * scale : scale, : columns // scale * scale : scale]
        )
    both = {"gt": str(tmp_path / "gt"), "input": str(tmp_path / "small")}
    data = settings(tmp_path, train=both, scale=scale, patch_size=4 * scale, crops_per_image=30)
    (problem,) = find_data(data, 11).problems
    assert "and 2 more such pairs" in problem and "set validation.crop_gt=true" in problem
    sets = open_data(data, 0, 11, torch.device("cpu"), crop_gt=True)
    whole = sets.val[0]
    assert whole["gt"].shape[-2:] == (rows // scale * scale, columns // scale * scale)
    assert torch.equal(whole["gt"][..., ::scale, ::scale], whole["input"])
    batch = sets.train.__getitems__([Sample(0, number, 1.0, 4 * scale) for number in range(60)])[0].batch
    assert torch.equal(batch["gt"][:, ::scale, ::scale], batch["input"])


@pytest.mark.parametrize("size", [(42, 60), (39, 60), (40, 59)])
def test_a_larger_difference_of_sizes_is_an_error_also_with_crop_gt(tmp_path, size):
    save(tmp_path / "gt" / "a.png", photo(*size))
    save(tmp_path / "small" / "a.png", photo(20, 30))
    both = {"gt": str(tmp_path / "gt"), "input": str(tmp_path / "small")}
    found = find_data(settings(tmp_path, train=both, val=both, scale=2), 11, crop_gt=True)
    assert any("gt must be 2 times as large" in problem and "crop_gt" not in problem for problem in found.problems)


def test_gt_too_small_after_cropping_to_the_scale_is_reported(tmp_path):
    train, val = save_all(tmp_path / "gt", "a.png"), save(tmp_path / "val" / "small.png", photo(13, 30))
    sources = {"train": {"gt": str(train)}, "val": {"gt": [str(val)]}, "patch_size": 16}
    assert not find_data(settings(tmp_path, **sources), 13).problems
    (problem,) = find_data(settings(tmp_path, scale=4, **sources), 13).problems
    assert "small.png: is 30x13, smaller than the 13 pixels" in problem


def test_the_default_degradation_follows_the_scale():
    def default(**data) -> list[str]:
        config = config_from({"data": {"train": {"gt": "x"}, "patch_size": 48, **data}})
        return [step.name for step in config.data.degradation]

    assert default() == ["gaussian_noise"] and default(scale=2) == default(scale=4) == ["downscale", "quantize"]
    assert default(scale=2, degradation=[{"name": "jpeg"}]) == ["jpeg"]
    with pytest.raises(UserError, match=r"data: patch_size is 49, which is not a multiple of scale 2$"):
        default(scale=2, patch_size=49)


def test_reading_mode_is_chosen_by_size(tmp_path, monkeypatch):
    gt = str(save_all(tmp_path / "gt", *(f"{number}.png" for number in range(4))))
    nbytes, batches = 4 * photo().nbytes, []
    for memory, fits in ((10 * nbytes, True), (nbytes, False)):
        monkeypatch.setattr(sources, "memory_bytes", lambda memory=memory: memory)
        data = open_sources(tmp_path, train={"gt": gt})
        assert data.nbytes == nbytes and data.fits_in_memory is fits
        assert data.train.sets[0].crops.gt.read_ahead is not fits and (data.train.readers is None) is fits
        batches.append(data.train.__getitems__([Sample(0, number, 1.0, 16) for number in range(3)])[0].batch["gt"])
    assert batches[0].shape == (3, 16, 16, 3) and batches[0].equal(batches[1])
    monkeypatch.undo()
    assert 0 < memory_bytes() < 2**50
