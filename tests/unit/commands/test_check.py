"""`accel-restore check` reports faults of the data, errors with the same messages as training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from damage import ERRORS, WARNINGS, damaged, photographs, sound
from PIL import Image

from accel_restore.cli import main
from accel_restore.config.load import load_config
from accel_restore.data.build import open_data
from accel_restore.metrics.psnr_ssim import psnr
from accel_restore.models.blocks import upscale
from accel_restore.train import main as train_main

KIND = {  # of the finding for each of `WARNINGS`
    "swapped pair": "swapped", "shifted by 3 pixels": "shifted", "train image in val": "leak",
    "16-bit against 8-bit": "depth", "palette": "format", "EXIF-rotated": "orientation",
}  # fmt: skip


def write_config(base: Path, train: dict, val: dict | None = None, **data) -> str:
    file = base / "config.yaml"
    tree = {"patch_size": 64, "cache_dir": str(base / "cache"), "train": train, "val": val, **data}
    file.write_text(yaml.safe_dump({"data": tree, "run": {"dir": str(base / "runs")}}))
    return str(file)


def check(config: str, *arguments: str) -> tuple[int, dict]:
    """The exit code and the JSON report."""
    file = Path(config).with_suffix(".json")
    code = main(["check", "--config", config, "--json", str(file), *arguments])
    return code, json.loads(file.read_text())


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("broken")
    train, val = damaged(base)
    write_config(base, train.source, val.source)
    return base


@pytest.fixture(scope="module")
def report(broken) -> dict:
    code, report = check(str(broken / "config.yaml"), "--picture", str(broken / "sheet.png"))
    assert code == 2
    return report


@pytest.mark.parametrize("kind", ERRORS)
def test_each_error_is_reported(kind, report):
    assert any(ERRORS[kind] in error for error in report["errors"]), report["errors"]


def test_nothing_else_is_an_error(report):
    assert len(report["errors"]) == len(ERRORS)


@pytest.mark.parametrize("kind", WARNINGS)
def test_each_warning_is_reported(kind, report):
    found = [warning for warning in report["warnings"] if warning["text"].split(": ")[0].endswith(WARNINGS[kind])]
    assert KIND[kind] in [warning["kind"] for warning in found], report["warnings"]


def test_nothing_else_is_a_warning(report):
    named = {name for warning in report["warnings"] for name in map(Path, warning["files"])}
    assert {path.name for path in named} == {*WARNINGS.values(), "original.png"}


def test_training_stops_with_the_same_messages(broken, report, capsys):
    assert train_main(["--config", str(broken / "config.yaml"), "--cpu"]) == 2
    AcceleratorState._reset_state(reset_partial_state=True)
    assert capsys.readouterr().err.splitlines()[1:] == [f"  - {error}" for error in report["errors"]]
    assert not (broken / "runs").exists()


def test_the_contact_sheet_shows_the_pairs(broken, report):
    with Image.open(broken / "sheet.png") as sheet:
        assert sheet.width > 1000 and np.asarray(sheet).std() > 30


def test_warnings_alone_do_not_stop_training(tmp_path, capsys):
    train, val = damaged(tmp_path, errors=False)
    code, report = check(write_config(tmp_path, train.source, val.source))
    assert code == 0 and not report["errors"] and len(report["warnings"]) == len(WARNINGS) + 1  # both files are rotated
    out = capsys.readouterr().out
    assert all(f"warning ({KIND[kind]}): " in out and file in out for kind, file in WARNINGS.items())
    assert f"0 errors, {len(report['warnings'])} warnings" in out


def test_data_without_faults_have_no_warnings_and_their_cost_is_reported(tmp_path, capsys):
    train, val = sound(tmp_path)
    config = write_config(tmp_path, train.source, val.source, crops_per_image=4)
    code, report = check(config, "--pairs-per-second", "0.001")
    assert code == 0 and report["errors"] == report["warnings"] == []
    assert report["train"]["pairs"] == report["train"]["examined"] == 12 and report["val"]["pairs"] == 3
    assert report["train"]["psnr"]["lowest"] == pytest.approx(20.5, abs=1) and report["train"]["height"] == [120, 120]
    assert report["train"]["gt_files"] == {"PNG 8-bit RGB": 12}
    epoch = report["epoch"]
    assert (epoch["samples"], epoch["steps"], epoch["global_batch"]) == (48, 6, 8) and epoch["fits_in_memory"]
    assert epoch["decoded_bytes"] == 2 * 15 * 120 * 120 * 3
    assert "an epoch: 48 samples, 6 steps of 8" in capsys.readouterr().out
    code, report = check(config, "--pairs-per-second", "1e9", "train.steps_per_epoch=20")
    epoch = report["epoch"]
    assert (epoch["samples"], epoch["steps"]) == (160, 20) and "160 samples, 20 steps of 8" in capsys.readouterr().out
    assert epoch["loading_seconds"] == pytest.approx(160 / epoch["loading_pairs_per_second"])
    assert code == 0 and [warning["kind"] for warning in report["warnings"]] == ["slow"]


def test_clean_images_can_be_checked_in_full_or_in_part(tmp_path):
    train, _ = sound(tmp_path)
    Image.fromarray(np.full((120, 120, 3), 7, np.uint8)).save(tmp_path / "train" / "gt" / "even.png")
    config = write_config(tmp_path, {"gt": train.source["gt"]}, val_fraction=0.2)
    code, report = check(config)
    (warning,) = report["warnings"]
    assert code == 0 and warning["kind"] == "constant" and Path(warning["files"][0]).name == "even.png"
    assert 20 < report["train"]["psnr"]["median"] < 21 and report["train"]["input_files"] == {}
    assert check(config, "--limit", "4")[1]["train"]["examined"] == 4
    assert main(["check", "--config", config, "--limit", "0"]) == 2


def test_super_resolution_pairs_can_be_checked(tmp_path):
    train, _ = sound(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "train" / "input").iterdir())):
        clean = Image.fromarray(photographs(12)[number])
        clean.resize((60, 60), Image.Resampling.BICUBIC).save(path)
    config = write_config(tmp_path, train.source, scale=2)
    code, report = check(config)
    assert code == 0 and report["warnings"] == [] and report["train"]["height"] == [120, 120]
    small = tmp_path / "train" / "input" / "sound03.png"
    Image.open(small).resize((60, 59)).save(small)
    code, report = check(config)
    assert code == 2 and "is 60x59, its gt" in report["errors"][0] and len(report["errors"]) == 1


def test_a_forgotten_scale_is_reported_once_for_all_pairs(tmp_path):
    train, _ = sound(tmp_path)
    for path in (tmp_path / "train" / "input").iterdir():
        Image.open(path).resize((60, 60)).save(path)
    for scale in (1, 4):
        code, report = check(write_config(tmp_path, train.source, scale=scale))
        assert code == 2 and len(report["errors"]) == 1
        assert f"data.scale: is {scale}, but every gt is exactly 2 times as large" in report["errors"][0]


def test_inputs_made_for_validation_only_are_a_warning(tmp_path):
    train, val = sound(tmp_path)
    code, report = check(write_config(tmp_path, train.source, {"gt": val.source["gt"]}))
    assert code == 0 and [warning["kind"] for warning in report["warnings"]] == ["unlike"]
    assert "data.degradation makes the inputs of data.val, but" in report["warnings"][0]["text"]
    own = {"gt": val.source["gt"], "degradation": [{"name": "gaussian_noise", "sigma": 9}]}
    code, report = check(write_config(tmp_path, train.source, {"a": own}))
    assert "data.val.a.degradation makes the inputs of data.val.a, but" in report["warnings"][0]["text"]


def test_the_sheet_of_clean_images_shows_degraded_inputs(tmp_path):
    train, _ = sound(tmp_path, 4)
    (tmp_path / "train" / "gt" / "sound00.png").rename(tmp_path / "train" / "gt" / "a\nb.png")  # drawn as one line
    config = write_config(tmp_path, {"gt": train.source["gt"]}, degradation=[{"name": "gaussian_noise", "sigma": 60}])
    noise = []
    for sigma in ("60", "0"):
        check(config, "--picture", str(tmp_path / "sheet.png"), f"data.degradation.0.sigma={sigma}")
        noise.append(np.abs(np.diff(np.asarray(Image.open(tmp_path / "sheet.png"), float), axis=1)).mean())
    assert noise[0] > 1.5 * noise[1]


def test_the_psnr_of_made_inputs_is_measured(tmp_path):
    train, _ = sound(tmp_path, 4)
    config = write_config(tmp_path, {"gt": train.source["gt"]}, degradation=[{"name": "gaussian_noise", "sigma": 25}])
    _, report = check(config)
    assert 20.3 < report["train"]["psnr"]["median"] < 20.8 and not report["warnings"]  # 20.17 unclipped
    _, report = check(config, "data.degradation.0.sigma=50")
    assert 14.3 < report["train"]["psnr"]["median"] < 15.5


@pytest.mark.parametrize("scale", [1, 2])
def test_the_measured_input_is_the_input_of_validation(tmp_path, scale):
    sound(tmp_path, 4)
    gt = tmp_path / "train" / "gt" / "sound00.png"
    Image.open(gt).crop((0, 0, 119, 117)).save(gt)
    steps = [{"name": "downscale"}, {"name": "gaussian_noise", "sigma": [5, 55]}]
    config = write_config(
        tmp_path, {"gt": str(gt.parent)}, {"gt": [str(gt)]}, scale=scale, degradation=steps, max_images=2, patch_size=32
    )
    _, report = check(config)
    data = load_config(config).data
    image = open_data(data, 0, 16, torch.device("cpu")).val[0]
    expected = float(psnr(upscale(image["input"], scale).clamp(0, 1), image["gt"]))
    assert report["val"]["psnr"]["median"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("degradation", "warned"),
    [
        ("{name: gaussian_noise, sigma: 0.1}", True),
        ("{name: choice, of: [{name: jpeg}, {name: gaussian_noise, sigma: [0.01, 0.2]}]}", True),
        ("{name: gaussian_noise, sigma: [0, 2]}", False),
        ("{name: gaussian_noise, sigma: 0}", False),
        ("{name: quantize}", False),
        ("{name: 'own:same', sigma: fine, of: 3}", False),  # a user's function may have parameters of any meaning
    ],
)
def test_noise_in_units_of_one_is_a_warning(tmp_path, monkeypatch, degradation, warned):
    train, _ = sound(tmp_path, 4)
    (tmp_path / "own.py").write_text("def same(image, random, *, sigma: str, of: int):\n    return image\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = write_config(tmp_path, {"gt": train.source["gt"]})
    code, report = check(config, f"data.degradation=[{degradation}]")
    assert code == 0 and [warning["kind"] for warning in report["warnings"]] == ["faint"] * warned


def test_a_degradation_that_fails_on_an_image_hides_no_other_error(tmp_path, monkeypatch):
    train, _ = sound(tmp_path, 4)
    folder = Path(train.source["gt"])
    (folder / "empty.png").write_bytes(b"")
    (tmp_path / "halves.py").write_text(
        "def halves(image, random):\n"
        "    if image.shape[2] > 100:\n"
        "        raise ValueError('too wide')\n"
        "    return image / 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = {"gt": str(folder), "degradation": [{"name": "halves:halves"}]}
    code, report = check(write_config(tmp_path, source))
    assert code == 2 and report["train"]["pairs"] == 4
    assert any("empty.png" in error for error in report["errors"])
    assert any("data.train.degradation: cannot work on" in e and "too wide" in e for e in report["errors"])


def test_gray_images_in_colour_training_are_reported_once(tmp_path):
    train, val = sound(tmp_path, 4)
    config = write_config(tmp_path, train.source, val.source)
    paths = [path for set_ in (train, val) for side in ("input", "gt") for path in Path(set_.source[side]).iterdir()]
    for path in paths[1:]:
        Image.open(path).convert("L").save(path)
    assert not any("set data.channels=1" in warning["text"] for warning in check(config)[1]["warnings"])
    Image.open(paths[0]).convert("L").save(paths[0])
    code, report = check(config)
    assert code == 0 and [warning["kind"] for warning in report["warnings"]] == ["gray"]
    assert "set data.channels=1" in report["warnings"][0]["text"]
    assert check(config, "data.channels=1")[1]["warnings"] == []


def test_unwritable_output_files_are_refused_before_the_work(tmp_path, capsys):
    config = write_config(tmp_path, {"gt": str(tmp_path / "none")})
    for arguments, words in (
        (["--json", str(tmp_path / "no" / "x.json")], "no does not exist"),
        (["--picture", str(tmp_path / "x.foo")], "unknown picture format '.foo'"),
        (["--picture", str(tmp_path)], "is a folder"),
    ):
        assert main(["check", "--config", config, *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err and "data.train" not in err


def test_images_and_the_configuration_are_never_overwritten(tmp_path, capsys):
    train, val = sound(tmp_path, 4)
    config = write_config(tmp_path, train.source, val.source)
    config = str(Path(config).rename(tmp_path / "mine.json"))  # JSON is YAML
    image = next((tmp_path / "train" / "gt").iterdir())
    for option, file in (("--json", config), ("--json", image), ("--picture", image)):
        content = Path(file).read_bytes()
        assert main(["check", "--config", config, option, str(file)]) == 2
        assert f"{file}: " in capsys.readouterr().err and Path(file).read_bytes() == content


def test_a_loss_is_checked_against_the_smallest_crop(tmp_path, capsys):
    train, val = sound(tmp_path, 4)
    stages = [{"until_epoch": 1, "patch_size": 8}]
    config = write_config(tmp_path, train.source, val.source, stages=stages)
    assert main(["check", "--config", config]) == 0
    assert main(["check", "--config", config, "loss.ssim=1"]) == 2
    assert "data.stages.0.patch_size is 8" in capsys.readouterr().err


def test_json_is_printed_without_a_file_name(tmp_path, capsys):
    train, val = sound(tmp_path, 4)
    config = write_config(tmp_path, train.source, val.source)
    assert main(["check", "--config", config, "--json", "data.patch_size=32"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["pairs"] == 4
