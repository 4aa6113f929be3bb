"""Images whose pixels are not those of photographs: trained, restored, scored and exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pixel_kinds import cubes, floats, raws
from runs import epochs_of, run_folder, small_config

from accel_restore import fit, load
from accel_restore.cli import main
from accel_restore.data.decode import read_image
from accel_restore.errors import UserError
from accel_restore.inference import export
from accel_restore.metrics.psnr_ssim import psnr

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(out: Path, train: dict, val: dict, **data) -> dict:
    config = small_config(Path(), Path(), out, data={"train": train, "val": val, **data}, train={"epochs": 12})
    config["data"] |= {"batch_size": 4, "crops_per_image": 4}
    config["optimizer"] = {"lr": 0.003}
    fit(config, cpu=True)
    return config


def evaluated(config: dict) -> dict:
    """The report of `evaluate`, whose scores must be those of the best epoch."""
    folder = run_folder(config)
    best, file = folder / "best.safetensors", folder / "report.json"
    arguments = ["--run", str(folder), "--cpu", "--json", str(file), "--pictures", str(folder / "worst")]
    assert main(["evaluate", str(best), *arguments]) == 0
    report, score = json.loads(file.read_text()), load(best).metadata["metrics"]["psnr"]
    assert report["mean"]["psnr"] == pytest.approx(score, abs=1e-5)
    assert len(list((folder / "worst").iterdir())) == len(report["images"])
    return report


def restored(config: dict, source: Path) -> Path:
    target = run_folder(config) / "restored"
    assert main(["restore", str(run_folder(config) / "best.safetensors"), str(source), "-o", str(target), "--cpu"]) == 0
    return target


def exported(config: dict) -> None:
    """Write .pt2, whose output must be the network's, and read its metadata."""
    restorer, file = load(run_folder(config) / "best.safetensors"), run_folder(config) / "model.pt2"
    export.write_pt2(export.trace(restorer, None, False), file, {"data": json.dumps(restorer.metadata["data"])})
    assert export.difference(export.open_pt2(file), restorer, (2, 20, 25), False) < 1e-4


def check(config: dict, tmp_path: Path) -> list[dict]:
    """The warnings of `check`."""
    file, report = tmp_path / "check.yaml", tmp_path / "check.json"
    file.write_text(json.dumps(config))
    picture = str(tmp_path / "check.png")
    assert main(["check", "--config", str(file), "--json", str(report), "--picture", picture]) == 0
    return json.loads(report.read_text())["warnings"]


def test_31_channels_of_float16(tmp_path):
    train, val = cubes(tmp_path / "train", 6), cubes(tmp_path / "val", 2, seed=1)
    noise = [{"name": "gaussian_noise", "sigma": 80}]
    config = trained(tmp_path / "runs", {"gt": str(train)}, {"gt": str(val)}, channels=31, degradation=noise)
    line, report = epochs_of(config)[-1], evaluated(config)
    assert line["val_psnr"] > line["val_input_psnr"] and report["protocol"]["channels"] == "all 31 channels"
    data = load(run_folder(config) / "best.safetensors").metadata["data"]
    assert data == {"channels": 31, "scale": 1, "pixels": {"input": "float16", "gt": "float16"}}
    folder = restored(config, val)
    assert sorted(file.name for file in folder.iterdir()) == ["0.npy", "1.npy"]
    result = np.load(folder / "0.npy")
    assert result.dtype == np.float16 and result.shape == (32, 32, 31)
    np.testing.assert_array_equal(result, load(run_folder(config) / "best.safetensors")(np.load(val / "0.npy")))
    shown = Image.open(sorted((run_folder(config) / "samples").iterdir())[-1])
    assert shown.mode == "RGB" and np.ptp(np.asarray(shown), axis=2).max() > 20  # three channels, in colour
    exported(config)
    assert check(config, tmp_path) == []


def test_floats_outside_of_the_unit_range(tmp_path):
    train, val = floats(tmp_path / "train", 6), floats(tmp_path / "val", 2, seed=1)
    sides = [dict(zip(("input", "gt"), map(str, pair), strict=True)) for pair in (train, val)]
    config = trained(tmp_path / "runs", *sides, range=[-0.3, 2.2])
    line, report = epochs_of(config)[-1], evaluated(config)
    assert line["val_psnr"] > line["val_input_psnr"]
    assert report["protocol"]["range"] == "float pixels, data.range [-0.3, 2.2] as [0, 1], not clamped"
    folder, best = restored(config, val[0]), load(run_folder(config) / "best.safetensors")
    assert best.metadata["data"]["range"] == [-0.3, 2.2]
    scores = []
    for file in sorted(folder.iterdir()):
        result, gt = tifffile.imread(file), tifffile.imread(val[1] / file.name)
        assert file.suffix == ".tif" and result.dtype == np.float32
        np.testing.assert_allclose(result, best(tifffile.imread(val[0] / file.name)), atol=1e-6)
        scores.append(20 * np.log10(2.5) - 10 * np.log10(np.square(result.astype(float) - gt).mean()))
    assert np.mean(scores) == pytest.approx(report["mean"]["psnr"], abs=1e-3)  # the peak is the width of the range
    exported(config)
    assert check(config, tmp_path) == []
    config["data"]["range"] = [-1, 255]
    assert "fill 1.0% of data.range [-1, 255]" in str(check(config, tmp_path))


def test_raw_files_become_rgb(tmp_path):
    pytest.importorskip("rawpy")
    train, val = raws(tmp_path / "train", 6), raws(tmp_path / "val", 2, seed=1)
    sides = [dict(zip(("input", "gt"), map(str, pair), strict=True)) for pair in (train, val)]
    config = trained(tmp_path / "runs", *sides, input_channels=4, scale=2)
    first, last = (epochs_of(config)[place] for place in (0, -1))
    assert last["train_loss"] < 0.7 * first["train_loss"] and last["val_input_psnr"] is None
    report = evaluated(config)
    assert "input_psnr" not in report["mean"]
    folder = restored(config, val[0])
    assert sorted(file.name for file in folder.iterdir()) == ["0.png", "1.png"]
    result, gt = (torch.tensor(read_image(file, 3) / 65535.0).permute(2, 0, 1)[None].double()
                  for file in (folder / "0.png", val[1] / "0.tif"))  # fmt: skip
    assert float(psnr(result, gt)) == pytest.approx(report["images"][0]["psnr"], abs=0.01)
    exported(config)
    assert check(config, tmp_path) == []


def test_what_cannot_work_on_such_pixels_is_reported_before_the_run(tmp_path):
    train, val = cubes(tmp_path / "cubes", 3), floats(tmp_path / "floats", 3)[1]
    wrong = {
        "validation.metrics: lpips needs images of 1 or 3 channels": {"validation": {"metrics": ["psnr", "lpips"]}},
        "loss.perceptual: needs images of 1 or 3 channels": {"loss": {"perceptual": 0.1}},
        "data.degradation.0: jpeg fails": {"data": {"degradation": [{"name": "jpeg"}]}},
        "validation.y_channel: needs colour images": {"validation": {"y_channel": True}},
        "validation.quantize: rounds to 8 bits, but gt of data.val has float pixels": {
            "validation": {"quantize": True}
        },
        "31 channels, but 3 are needed": {"data": {"channels": 3}},
    }
    for message, sections in wrong.items():
        config = small_config(train, train, tmp_path / "runs", **sections)
        config["data"] = {"channels": 31, **config["data"], **sections.get("data", {})}
        with pytest.raises(UserError, match=message):
            fit(config, cpu=True)
    assert not (tmp_path / "runs" / "small").exists() and val.exists()
