"""Validation in real runs: images of odd sizes, every setting, and equal scores on any number of ranks."""

import json

import numpy as np
import pytest
from forked import launch
from PIL import Image
from runs import epochs_of, make_photos, run_folder, small_config, succeed
from safetensors import safe_open
from vgg import write_weights

from accel_restore import fit
from accel_restore.models.unet import UNet

PHOTOS = 8, 5  # training, validation
LUMA = {"y_channel": True, "crop_border": 2, "quantize": True}
TILES = {"tile": 24, "tile_overlap": 8}
SETTINGS = {"plain": {}, "tiles": {**TILES, "crop_border": 1}, "all": {**LUMA, **TILES, "self_ensemble": True}}


def configuration(photos, out, name, settings, scale=1):
    config = small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 4, "scale": scale},
        train={"epochs": 1},
        validation={"metrics": ["psnr", "ssim"], "monitor": "psnr", **settings},
    )
    if scale > 1:
        del config["data"]["degradation"]
    return config


@pytest.mark.parametrize(("scale", "names"), [(1, ["plain", "tiles", "all"]), (2, ["all"])])
def test_scores_are_equal_on_one_and_two_ranks_and_carry_their_protocol(photos, tmp_path, scale, names):
    seen = set()
    for name in names:
        settings = SETTINGS[name]
        lines = []
        for ranks in (1, 2):
            config = configuration(photos, tmp_path, f"{name}{ranks}", settings, scale)
            config["data"]["batch_size"] = 4 // ranks
            succeed(launch(config, ranks=ranks, mode="float64"))
            lines.append(epochs_of(config)[0])
        for key in ("val_loss", "val_psnr", "val_ssim", "val_input_psnr", "val_input_ssim"):
            # The order of sums differs, as for the final weights. Rounding to 8 bits can then change one pixel
            # in ten thousand.
            assert lines[1][key] == pytest.approx(lines[0][key], rel=1e-4 if settings.get("quantize") else 1e-9), key
        with safe_open(run_folder(config) / "best.safetensors", "pt") as file:
            stored = json.loads(file.metadata()["metrics"])
        assert stored["psnr"] == lines[1]["val_psnr"]
        assert {key: stored["protocol"][key] for key in settings} == settings
        seen.add(round(stored["psnr"], 6))
    assert len(seen) == len(names)  # every setting changes the scores


def test_each_set_has_equal_scores_on_one_two_and_four_ranks(photos, tmp_path):
    lines = []
    for ranks in (1, 2, 4):
        config = configuration(photos, tmp_path, f"sets{ranks}", {"batch_size": 2, "monitor": "b.psnr"}, 2)
        config["data"]["val"] = {
            "a": {"gt": str(photos[1]), "crop_border": 2, "y_channel": True},
            "b": {"gt": str(photos[0]), **TILES, "degradation": [{"name": "downscale"}]},
            "c": {"gt": str(photos[1])},
        }
        config["data"]["val"]["b"].pop("tile_overlap")
        config["validation"]["tile_overlap"] = TILES["tile_overlap"]
        config["data"]["batch_size"] = 4 // ranks
        succeed(launch(config, ranks=ranks, mode="float64"))
        lines.append(epochs_of(config)[0]["val_sets"])
    for other in lines[1:]:
        assert list(other) == ["a", "b", "c"]
        for name, scores in other.items():
            assert scores == pytest.approx(lines[0][name], rel=1e-9), name
    assert lines[0]["a"]["psnr"] != lines[0]["c"]["psnr"]


def test_a_continued_run_keeps_its_protocol(photos, tmp_path):
    config = configuration(photos, tmp_path, "kept", {})
    succeed(launch(config))
    changes = ["validation.quantize=true", "validation.self_ensemble=true", "validation.tile=96",
               "validation.tile_overlap=16", "validation.crop_border=1", "validation.y_channel=true"]  # fmt: skip
    refused = launch(config, *changes)
    assert refused.returncode == 2
    for change in changes:
        key, _, value = change.partition("=")
        assert f"{key}: " in refused.stderr and f"{value.title()} now" in refused.stderr
    assert "is finished" in succeed(launch(config, "validation.num_samples=1")).stdout  # control


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("validation.tile=40", "validation: tile is 40; it must be at least tile_overlap + 16, and tile_overlap is 64"),
        ("validation.tile=0", "validation.tile"),
        ("validation.tile_overlap=-1", "validation.tile_overlap"),
        ("validation.quantize=8", "validation.quantize"),
    ],
)
def test_invalid_settings_are_rejected_before_anything_is_written(photos, tmp_path, change, message):
    config = configuration(photos, tmp_path, "refused", {})
    refused = launch(config, change)
    assert refused.returncode == 2 and message in refused.stderr
    assert not run_folder(config).exists()


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Return seven photographs of two sizes, in mixed order."""
    folder = make_photos(tmp_path_factory.mktemp("alike") / "val", 7, least=28, most=29)
    for number in (1, 4, 5):
        file = folder / f"photo{number:03d}.png"
        Image.open(file).crop((0, 0, 21, 28)).save(file)
    return folder


def test_images_of_equal_size_are_scored_together_and_each_once(photos, alike, tmp_path, monkeypatch):
    seen, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x: (self.training or seen.append(x.shape), forward(self, x))[1])
    scores = []
    for at_once, sizes in ((1, [28, 21, 28, 28, 21, 21, 28]), (3, [28, 21, 28]), (9, [28, 21])):
        config = configuration((photos[0], alike), tmp_path, f"at-once-{at_once}", {"batch_size": at_once})
        seen.clear()
        fit(config, cpu=True)
        assert [shape[-1] for shape in seen] == sizes and sum(shape[0] for shape in seen) == 7
        scores.append(epochs_of(config)[0])
    for key in ("val_loss", "val_psnr", "val_ssim", "val_input_psnr", "val_input_ssim"):
        assert [each[key] for each in scores] == pytest.approx([scores[0][key]] * 3, rel=1e-6)
    files = [next((tmp_path / f"at-once-{n}" / "samples").iterdir()) for n in (1, 3)]
    one, other = (np.asarray(Image.open(file), int) for file in files)
    assert np.abs(one - other).max() <= 1 and np.ptp(one) > 200


def test_batches_of_images_are_scored_once_on_any_number_of_ranks(photos, alike, tmp_path):
    scores = []
    for ranks in (1, 2, 3):
        config = configuration((photos[0], alike), tmp_path, f"shared{ranks}", {"batch_size": 2})
        config["data"]["batch_size"] = 12 // ranks
        succeed(launch(config, ranks=ranks, mode="float64"))
        scores.append(epochs_of(config)[0]["val_psnr"])
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-9)


def test_a_run_is_validated_and_monitored_by_lpips(tmp_path):
    photos = make_photos(tmp_path / "train", 8), make_photos(tmp_path / "val", 3, seed=1, least=33, most=45)
    settings = {"metrics": ["psnr", "lpips"], "monitor": "lpips", "y_channel": True}
    config = small_config(*photos, tmp_path, data={"batch_size": 4}, validation=settings)
    missing = launch(config)
    assert missing.returncode == 2 and "validation.weights.lpips" in missing.stderr
    assert not run_folder(config).exists()
    config["validation"]["weights"] = {"lpips": write_weights(tmp_path, "alexnet")}
    lines = {}
    for ranks in (1, 2):
        config["run"]["name"], config["data"]["batch_size"] = f"ranks{ranks}", 4 // ranks
        succeed(launch(config, ranks=ranks, mode="float64"))
        lines[ranks] = epochs_of(config)
    for one, two in zip(lines[1], lines[2], strict=True):
        assert two["val_lpips"] == pytest.approx(one["val_lpips"], rel=1e-4)
        assert one["val_lpips"] < one["val_input_lpips"] + 1 and "val_dists" not in one
    best = min(lines[2], key=lambda line: line["val_lpips"])
    with safe_open(run_folder(config) / "best.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["metrics"])
    assert stored["lpips"] == best["val_lpips"]
    assert "AlexNet" in stored["protocol"]["lpips"] and "RGB" in stored["protocol"]["lpips"]
