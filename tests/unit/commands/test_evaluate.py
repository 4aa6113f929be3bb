"""`accel-restore evaluate`: the scores of validation, by the protocol beside the weights or another one."""

import csv
import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import forked
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import epochs_of, make_photos, run_folder, small_config
from skimage.metrics import peak_signal_noise_ratio
from weight_files import build, write

from accel_restore import fit, load
from accel_restore.cli import main
from accel_restore.commands._arguments import degradation_steps
from accel_restore.data.degradations.pipeline import build_degradation
from accel_restore.metrics.protocol import Protocol

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = "gaussian_noise(sigma=[5, 50])"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """The configuration of a run of one epoch, scored in a way that is not the default."""
    folder = tmp_path_factory.mktemp("run")
    photos, val = make_photos(folder / "photos", 6), make_photos(folder / "val", 5, seed=1)
    validation = {"metrics": ["psnr", "ssim"], "crop_border": 2, "quantize": True, "self_ensemble": True}
    config = small_config(photos, val, folder, train={"epochs": 1}, validation=validation)
    fit(config, cpu=True)
    return config


@pytest.fixture
def pairs(tmp_path) -> tuple[Path, Path]:
    """Folders of noisy and clean images of the same names."""
    gt, input = make_photos(tmp_path / "gt", 3), tmp_path / "input"
    input.mkdir()
    random = np.random.default_rng(0)
    for file in gt.iterdir():
        photo = np.asarray(Image.open(file))
        noisy = np.clip(photo + random.normal(0, 20, photo.shape), 0, 255).round().astype(np.uint8)
        Image.fromarray(noisy).save(input / file.name)
    return input, gt


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    """Two files of weights without a stored protocol."""
    folder, other = tmp_path_factory.mktemp("weights"), build(3)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    return [write(folder / "one.safetensors", build(3)), write(folder / "two.safetensors", other)]


def evaluate(*arguments, code: int = 0) -> dict | None:
    """The report of the command, which must end with `code`."""
    file = Path(arguments[0]).parent / "report.json"
    file.unlink(missing_ok=True)
    assert main(["evaluate", *map(str, arguments), "--cpu", "--json", str(file)]) == code
    assert file.exists() == (code == 0)
    return json.loads(file.read_text()) if code == 0 else None


def test_the_scores_are_those_of_the_validation(trained, capsys):
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
    # The control: other draws of the noise give other scores, and another protocol does.
    assert evaluate(best, "--gt", val, "--degrade", SPEC, "--seed", "1")["mean"]["psnr"] != report["mean"]["psnr"]
    other = evaluate(best, "--gt", val, "--degrade", SPEC, "--no-quantize", "--crop-border", "0", "--metrics", "psnr")
    assert other["mean"]["psnr"] != report["mean"]["psnr"] and "ssim" not in other["mean"]
    assert (other["protocol"]["crop_border"], other["protocol"]["self_ensemble"]) == (0, True)


def test_a_runs_own_validation_is_scored_as_the_run_scored_it(trained, capsys):
    folder, [epoch] = run_folder(trained), epochs_of(trained)
    best = folder / "best.safetensors"
    report = evaluate(best, "--run", folder)
    named = evaluate(best, "--gt", trained["data"]["val"]["gt"], "--degrade", SPEC)
    assert (report["mean"], report["images"], report["protocol"]) == (named["mean"], named["images"], named["protocol"])
    assert report["mean"]["psnr"] == pytest.approx(epoch["val_psnr"], abs=1e-6)
    assert evaluate(best, "--run", folder, "--crop-border", "0")["protocol"]["crop_border"] == 0, "options go first"
    plan = (folder / "plan.json").read_text()
    for computed, scored in (("bf16 (chosen by auto)", "bf16"), ("fp16", "no")):  # a CPU has no fp16
        changed = plan.replace('"precision",\n   "no"', f'"precision",\n   "{computed}"')
        assert changed != plan
        (folder / "plan.json").write_text(changed)
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
    for wrong, said in ((folder.parent, "has no config.yaml"), (None, "nothing says which images")):
        evaluate(best, *(["--run", wrong] if wrong else []), code=2)
        assert said in capsys.readouterr().err


def test_the_images_that_were_held_out_are_named_and_scored_again(tmp_path, capsys):
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

    for number in range(20):  # of more images, others would be taken and held out
        shutil.copy(photos / "photo000.png", photos / f"more{number}.png")
    report = evaluate(best, "--run", folder)
    assert [image["name"] for image in report["images"]] == names
    assert report["mean"]["psnr"] == pytest.approx(epoch["val_psnr"], abs=1e-6)
    plan = (folder / "plan.json").read_text()
    (folder / "plan.json").unlink()
    others = evaluate(best, "--run", folder)  # of a run that has not written down their names, they are worked out
    assert [image["name"] for image in others["images"]] != names, "the control"
    for file in photos.glob("more*"):
        file.unlink()
    assert evaluate(best, "--run", folder)["mean"] == report["mean"]
    (folder / "plan.json").write_text(plan)
    (photos / f"{names[1]}.png").unlink()
    evaluate(best, "--run", folder, code=2)
    said = capsys.readouterr().err
    assert f"data.train: has no image '{names[1]}' any more" in said and str(folder) in said
    gray = write(tmp_path / "gray.safetensors", build(1), channels=1)
    evaluate(gray, "--run", folder, code=2)
    assert "is of 3 channels at scale 1, the weights are of 1" in capsys.readouterr().err


def test_two_processes_score_every_image_once_and_alike(trained):
    best, val = run_folder(trained) / "best.safetensors", trained["data"]["val"]["gt"]
    alone = evaluate(best, "--gt", val, "--degrade", SPEC)
    file = best.parent / "two.json"
    arguments = ["evaluate", str(best), "--gt", val, "--degrade", SPEC, "--cpu", "--json", str(file)]
    assert forked.codes(forked.start_ranks(main, 2, best.parent / "log", arguments)) == [0, 0]
    assert json.loads(file.read_text()) == alone


def test_pairs_of_folders_and_patterns_by_another_librarys_arithmetic(weights, pairs):
    input, gt = pairs
    report = evaluate(weights[0], "--input", input, "--gt", gt)
    for image in report["images"]:
        noisy, clean = (np.asarray(Image.open(folder / f"{image['name']}.png")) for folder in (input, gt))
        assert image["input_psnr"] == pytest.approx(peak_signal_noise_ratio(clean, noisy), abs=1e-4)
        restored = load(weights[0])(noisy / np.float32(255))
        truth = (clean / np.float32(255)).astype(np.float64)
        want = peak_signal_noise_ratio(truth, restored.astype(np.float64), data_range=1)
        assert image["psnr"] == pytest.approx(want, abs=1e-3)
    by_pattern = evaluate(weights[0], "--input", f"{input}/photo{{}}.png", "--gt", f"{gt}/photo{{}}.png")
    assert by_pattern["mean"] == report["mean"] and by_pattern["images"][0]["name"] == "000"
    files = sorted(gt.iterdir())
    assert [i["name"] for i in evaluate(weights[0], "--gt", *files, "--degrade", "quantize")["images"]] == [
        file.stem for file in files
    ]
    assert len(evaluate(weights[0], "--gt", files[0], "--degrade", "quantize")["images"]) == 1


def test_two_files_of_weights_stand_side_by_side(weights, pairs, tmp_path, capsys):
    input, gt = pairs
    table, pictures = tmp_path / "table.csv", tmp_path / "pictures"
    both = evaluate(*weights, "--input", input, "--gt", gt, "--csv", table, "--pictures", pictures, "--worst", 2)
    one, two = (evaluate(file, "--input", input, "--gt", gt) for file in weights)
    for image, first, second in zip(both["images"], one["images"], two["images"], strict=True):
        assert (image["psnr"], image["psnr_2"]) == (first["psnr"], second["psnr"])
        assert image["psnr_difference"] == pytest.approx(second["psnr"] - first["psnr"])
    assert [file["file"] for file in both["weights"]] == [str(file) for file in weights]
    rows = list(csv.DictReader(table.open()))
    assert [row["image"] for row in rows] == [*(image["name"] for image in both["images"]), "mean"]
    assert float(rows[-1]["ssim_difference"]) == pytest.approx(both["mean"]["ssim_difference"])
    ranked = sorted(both["images"], key=lambda image: image["psnr"])
    assert sorted(path.name for path in pictures.iterdir()) == [
        f"{place:02d}_{image['name']}.png" for place, image in enumerate(ranked[:2], 1)
    ]
    said = capsys.readouterr().out
    assert "psnr difference" in said and f"{both['mean']['psnr_difference']:+.2f} dB" in said
    worst = json.loads(Image.open(pictures / f"01_{ranked[0]['name']}.png").text["accel_restore"])
    captions = [tile["caption"] for tile in worst[0]]
    assert captions[1] == f"output {ranked[0]['psnr']:.2f} dB PSNR" and captions[-1] == "gt"


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ("gaussian_noise(sigma=25)", [{"name": "gaussian_noise", "sigma": 25}]),
        ("quantize", [{"name": "quantize"}]),
        ("{name: gaussian_noise, sigma: [5, 50]}", [{"name": "gaussian_noise", "sigma": [5, 50]}]),
        ("[{name: gaussian_blur, sigma: 2}, quantize]", [{"name": "gaussian_blur", "sigma": 2}, {"name": "quantize"}]),
        ("jpeg(quality=[30, 95], probability=0.5)", [{"name": "jpeg", "quality": [30, 95], "probability": 0.5}]),
    ],
)
def test_ways_to_write_a_degradation(spec, steps):
    assert degradation_steps(spec) == steps
    build_degradation([(step["name"], {k: v for k, v in step.items() if k != "name"}) for step in steps])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gt", "gt"], "nothing says what the input is"), (["--gt", "gt", "--input", "gt"], "same file"),
        (["--gt", "gt", "--input", "input", "--degrade", "quantize"], "exclude"),
        (["--gt", "gt", "--degrade", "gausian_noise(sigma=25)"], "did you mean 'gaussian_noise'"),
        (["--gt", "gt", "--degrade", "gaussian_noise(sigm=25)"], "--degrade.0.sigm"),
        (["--gt", "gt", "--degrade", "gaussian_noise(25)"], "--degrade.0.25: unknown key"),
        (["--gt", "gt", "--degrade", "[3]"], "no degradation"), (["--gt", "no", "--degrade", "quantize"], "--gt: no"),
        (["--gt", "gt", "--degrade", ""], "--degrade: is empty"), (["--gt", "gt", "--degrade", "[]"], "is empty"),
        (["--gt", "gt", "--degrade", "quantize", "--metrics", "psnr,sim"], "metrics"),
        (["--gt", "gt", "--degrade", "quantize", "--metrics", "lpips"], "lpips"),
        (["--gt", "gt", "--degrade", "quantize", "--tile", "70"], "tile"),
        (["--gt", "gt", "--degrade", "quantize", "--worst", "3"], "--pictures"),
        (["--gt", "gt", "--degrade", "quantize", "--csv", "no/a.csv"], "does not exist"),
        (["--gt", "gt", "--degrade", "quantize", "--crop-border", "60"], "less than"),
        (["--gt", "gt", "--degrade", "quantize", "--max-pixels", "99"], "more than 99 pixels"),
        (["--gt", "gt", "--degrade", "quantize", "--max-pixels", "0"], "--max-pixels: must be a whole number above 0"),
        (["--gt", "gt", "--degrade", "downscale"], None), (["--gt", "gt", "--input", "small"], "must be equal"),
        (["--gt", "gt", "--input", "broken"], "photo001.png: is no image"),
        (["--gt", "gt", "--input", "input", "--seed", "3"], "--seed: keys the draws of a degradation"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_by_name(weights, pairs, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name in ("small", "broken"):
        (tmp_path / name).mkdir()
        for file in pairs[1].iterdir():
            image = Image.open(file)
            image.resize((9, 9) if name == "small" else image.size).save(tmp_path / name / file.name)
    (tmp_path / "broken" / "photo001.png").write_bytes(b"no image")
    if words is None:  # nothing is made smaller at scale 1
        evaluate(weights[0], *arguments)
        return
    evaluate(weights[0], *arguments, code=2)
    assert words in capsys.readouterr().err


def test_a_report_is_never_written_over_an_input(weights, trained, pairs, capsys):
    for option, kept in (("--csv", pairs[1] / "photo001.png"), ("--json", run_folder(trained) / "plan.json")):
        content = kept.read_bytes()
        images = ["--gt", pairs[1], "--degrade", "quantize"] if kept.suffix == ".png" else ["--run", kept.parent]
        assert main(["evaluate", str(weights[0]), *map(str, images), "--cpu", option, str(kept)]) == 2
        assert "name another file" in capsys.readouterr().err and kept.read_bytes() == content
    for file in (weights[0], pairs[1] / "photo000.png"):
        content = file.read_bytes()
        command = ["evaluate", str(weights[0]), "--gt", str(pairs[1] / "photo000.png"), "--degrade", "quantize"]
        assert main([*command, "--cpu", "--json", str(file)]) == 2
        assert "name another file" in capsys.readouterr().err and file.read_bytes() == content


def test_a_report_in_the_folder_of_the_run_may_be_written_again(trained):
    for _ in range(2):
        best = run_folder(trained) / "best.safetensors"
        assert main(["evaluate", str(best), "--run", str(best.parent), "--cpu", "--csv", f"{best.parent}/s.csv"]) == 0


def test_an_image_that_is_damaged_in_its_middle_is_named_and_no_mean_is_told(weights, pairs, capsys):
    input, gt = pairs
    whole = (input / "photo001.png").read_bytes()
    (input / "photo001.png").write_bytes(whole[: len(whole) // 2])
    evaluate(weights[0], "--input", input, "--gt", gt, code=2)
    said = capsys.readouterr()
    assert "photo001.png: is damaged" in said.err and "1 of 3" in said.err and "mean" not in said.out


def test_a_stored_protocol_is_taken_for_a_strangers(pairs, tmp_path, capsys):
    described = Protocol(tile=96, tile_overlap=48, metrics=("psnr", "lpips")).describe()
    odd = {"crop_border": -1, "tile": "many", "y_channel": {}, "tile_overlap": 10**9}
    for number, (change, code) in enumerate([({}, 0), *(({key: value}, 2) for key, value in odd.items())]):
        metrics = json.dumps({"psnr": 1.0, "protocol": {**described, **change}})
        file = write(tmp_path / f"{number}.safetensors", build(3), metrics=metrics)
        report = evaluate(file, "--input", pairs[0], "--gt", pairs[1], code=code)
        said = capsys.readouterr()
        if code == 0:
            assert report["protocol"]["tile"] == 96 and "lpips is left out" in said.out
            assert list(report["mean"]) == ["input_psnr", "psnr"]
        else:
            assert next(iter(change)) in said.err
