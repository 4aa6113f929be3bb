"""`evaluate` and `restore` on the weights of a run, in one process and in several."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import forked
import numpy as np
import pytest
import yaml
from image_files import photo
from PIL import Image
from runs import clean_environment, epochs_of, make_photos, run_folder, small_config
from weight_files import build, write

from accel_restore import fit, load
from accel_restore.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = "gaussian_noise(sigma=[5, 50])"


def evaluate(*arguments, code: int = 0) -> dict | None:
    """Return the report of the command, whose exit code must be `code`."""
    file = Path(arguments[0]).parent / "report.json"
    file.unlink(missing_ok=True)
    assert main(["evaluate", *map(str, arguments), "--cpu", "--json", str(file)]) == code
    assert file.exists() == (code == 0)
    return json.loads(file.read_text()) if code == 0 else None


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """Return the configuration of a run of one epoch with a non-default scoring protocol."""
    folder = tmp_path_factory.mktemp("run")
    photos, val = make_photos(folder / "photos", 6), make_photos(folder / "val", 5, seed=1)
    validation = {"metrics": ["psnr", "ssim"], "crop_border": 2, "quantize": True, "self_ensemble": True}
    config = small_config(photos, val, folder, train={"epochs": 1}, validation=validation)
    fit(config, cpu=True)
    return config


def test_evaluate_gives_the_scores_of_the_validation(trained, capsys):
    best, val = run_folder(trained) / "best.safetensors", trained["data"]["val"]["gt"]
    report, [epoch] = evaluate(best, "--gt", val, "--degrade", SPEC), epochs_of(trained)
    for name in ("psnr", "ssim"):
        assert report["mean"][name] == pytest.approx(epoch[f"val_{name}"], abs=1e-6)
        stored = load(best).metadata["metrics"]
        assert report["mean"][f"input_{name}"] == pytest.approx(stored[f"input_{name}"], abs=1e-6)
    described = {**report["protocol"]}
    assert described.pop("precision") == "no" and described == stored["protocol"]
    assert described["degradation"] == [{"name": "gaussian_noise", "sigma": [5, 50], "gray": 0.0}]
    assert len(report["images"]) == 5 and report["weights"][0]["sha256"] == load(best).metadata["sha256"]
    assert report["mean"]["psnr"] == pytest.approx(fmean(image["psnr"] for image in report["images"]))
    said = capsys.readouterr().out
    assert "photo003" in said and "mean" in said and "crop_border: 2" in said
    # Control: other noise gives other scores, and so does another protocol.
    assert evaluate(best, "--gt", val, "--degrade", SPEC, "--seed", "1")["mean"]["psnr"] != report["mean"]["psnr"]
    other = evaluate(best, "--gt", val, "--degrade", SPEC, "--no-quantize", "--crop-border", "0", "--metrics", "psnr")
    assert other["mean"]["psnr"] != report["mean"]["psnr"] and "ssim" not in other["mean"]
    assert (other["protocol"]["crop_border"], other["protocol"]["self_ensemble"]) == (0, True)


def test_two_processes_score_each_image_once_with_the_same_result(trained):
    best, val = run_folder(trained) / "best.safetensors", trained["data"]["val"]["gt"]
    alone = evaluate(best, "--gt", val, "--degrade", SPEC)
    file = best.parent / "two.json"
    arguments = ["evaluate", str(best), "--gt", val, "--degrade", SPEC, "--cpu", "--json", str(file)]
    assert forked.codes(forked.start_ranks(main, 2, best.parent / "log", arguments)) == [0, 0]
    assert json.loads(file.read_text()) == alone


def test_evaluate_with_run_uses_the_protocol_of_the_run(trained, capsys):
    folder, [epoch] = run_folder(trained), epochs_of(trained)
    best = folder / "best.safetensors"
    report = evaluate(best, "--run", folder)
    named = evaluate(best, "--gt", trained["data"]["val"]["gt"], "--degrade", SPEC)
    assert (report["mean"], report["images"], report["protocol"]) == (named["mean"], named["images"], named["protocol"])
    assert report["mean"]["psnr"] == pytest.approx(epoch["val_psnr"], abs=1e-6)
    assert evaluate(best, "--run", folder, "--crop-border", "0")["protocol"]["crop_border"] == 0, "options go first"
    plan = (folder / "plan.json").read_text()
    assert json.loads(plan)["precision"] == "no"
    for computed, scored in (("bf16", "bf16"), ("fp16", "no"), (None, "no")):  # no fp16 on a CPU; None: an older run
        (folder / "plan.json").write_text(json.dumps({**json.loads(plan), "precision": computed}))
        assert evaluate(best, "--run", folder)["protocol"]["precision"] == scored
    (folder / "plan.json").write_text(plan)
    assert "validated in fp16, which needs a GPU" in capsys.readouterr().out
    config = (folder / "config.yaml").read_text()
    limited, changes = re.subn(r"max_image_pixels: \d+", "max_image_pixels: 99", config)
    assert changes == 1
    (folder / "config.yaml").write_text(limited)
    evaluate(best, "--run", folder, code=2)
    assert "more than 99 pixels" in capsys.readouterr().err, "the run's own limit"
    assert evaluate(best, "--run", folder, "--max-pixels", "9999999")["mean"] == report["mean"]
    (folder / "config.yaml").write_text(config)
    for other in (["--gt", "x"], ["--input", "x"], ["--degrade", "quantize"], ["--recursive"]):
        capsys.readouterr()
        evaluate(best, "--run", folder, *other, code=2)
        assert f"--run and {other[0]} exclude each other" in capsys.readouterr().err
    for wrong, said in ((folder.parent, "has no config.yaml"), (None, "no images are given")):
        evaluate(best, *(["--run", wrong] if wrong else []), code=2)
        assert said in capsys.readouterr().err


def test_held_out_images_are_recorded_and_reused_by_evaluate(tmp_path, capsys):
    photos = make_photos(tmp_path / "photos", 9)
    data = {"val": None, "val_fraction": 0.3, "max_images": 9}
    config = small_config(photos, photos, tmp_path, train={"epochs": 1}, data=data)
    folder = fit(config, cpu=True)
    best, [epoch] = folder / "best.safetensors", epochs_of(config)
    names = json.loads((folder / "plan.json").read_text())["validation_images"]
    assert len(names) == 3 and {f"{name}.png" for name in names} < {file.name for file in photos.iterdir()}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    assert main(["check", "--config", str(tmp_path / "small.yaml"), "--json", str(tmp_path / "check.json")]) == 0
    assert json.loads((tmp_path / "check.json").read_text())["validation_images"] == names

    for number in range(20):  # with more images, others would be held out
        shutil.copy(photos / "photo000.png", photos / f"more{number}.png")
    report = evaluate(best, "--run", folder)
    assert [image["name"] for image in report["images"]] == names
    assert report["mean"]["psnr"] == pytest.approx(epoch["val_psnr"], abs=1e-6)
    plan = (folder / "plan.json").read_text()
    (folder / "plan.json").unlink()
    others = evaluate(best, "--run", folder)  # without recorded names, the held-out images are computed
    assert [image["name"] for image in others["images"]] != names, "the control"
    for file in photos.glob("more*"):
        file.unlink()
    assert evaluate(best, "--run", folder)["mean"] == report["mean"]
    (folder / "plan.json").write_text(plan)
    (photos / f"{names[1]}.png").unlink()
    evaluate(best, "--run", folder, code=2)
    said = capsys.readouterr().err
    assert f"data.train: no longer has the image '{names[1]}'" in said and str(folder) in said
    gray = write(tmp_path / "gray.safetensors", build(1), channels=1)
    evaluate(gray, "--run", folder, code=2)
    assert "has 3 channels and scale 1, but the weights have 1" in capsys.readouterr().err


def test_a_report_in_the_run_folder_may_be_overwritten(trained):
    for _ in range(2):
        best = run_folder(trained) / "best.safetensors"
        assert main(["evaluate", str(best), "--run", str(best.parent), "--cpu", "--csv", f"{best.parent}/s.csv"]) == 0


def test_a_report_never_overwrites_a_file_of_the_run(trained, capsys):
    plan = run_folder(trained) / "plan.json"
    content = plan.read_bytes()
    command = ["evaluate", str(plan.with_name("best.safetensors")), "--run", str(plan.parent), "--cpu"]
    assert main([*command, "--json", str(plan)]) == 2
    assert "name another file" in capsys.readouterr().err and plan.read_bytes() == content


@pytest.mark.sweep  # starts a launcher; the fast tests cover `evaluate` in two processes
def test_two_processes_restore_each_file_once_with_the_same_exit_code(tmp_path):
    weights, photos = write(tmp_path / "weights.safetensors", build(3)), tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png", "more0.png", "more1.png", "more2.png"):
        Image.fromarray(photo(41, 33, seed=len(list(photos.iterdir())))).save(photos / name)
    (photos / "damaged.png").write_bytes(b"no image")
    arguments = ["restore", str(weights), str(photos), "-o", str(tmp_path / "out"), "--cpu"]
    launcher = "accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --main_process_port 0 -m"
    command = [sys.executable, "-m", *launcher.split(), "accel_restore.cli", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=300)
    assert process.returncode != 0 and "restored 5 files" in process.stdout
    assert process.stderr.count("1 of 6 files could not be restored") == 1 and "damaged.png" in process.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        file.name for file in photos.iterdir() if file.name != "damaged.png"
    )
    restored = load(weights)(np.asarray(Image.open(photos / "more1.png")) / np.float32(255))
    want = (restored.clip(0, 1) * 255).round()
    assert np.abs(np.asarray(Image.open(tmp_path / "out" / "more1.png")) - want).max() <= 1
