"""`accel-restore evaluate` scores like validation, by the protocol stored with the weights or by another one."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from runs import make_photos
from weight_files import build, write

from accel_restore import load
from accel_restore.cli import main
from accel_restore.commands._evaluate_options import degradation_steps
from accel_restore.data.degradations.pipeline import build_degradation
from accel_restore.data.identity import RECORD, ImageSet, to_record
from accel_restore.data.store_file import digest_of
from accel_restore.inference.training_images import changed_validation
from accel_restore.metrics.protocol import Protocol
from accel_restore.models import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = "gaussian_noise(sigma=[5, 50])"


@pytest.fixture
def pairs(tmp_path) -> tuple[Path, Path]:
    """Folders of noisy and clean images with equal names."""
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
    """Run the command, check its exit code, and return its report."""
    file = Path(arguments[0]).parent / "report.json"
    file.unlink(missing_ok=True)
    assert main(["evaluate", *map(str, arguments), "--cpu", "--json", str(file)]) == code
    assert file.exists() == (code == 0)
    return json.loads(file.read_text()) if code == 0 else None


def test_scores_of_folders_and_patterns_equal_those_of_another_library(weights, pairs):
    input, gt = pairs
    report = evaluate(weights[0], "--input", input, "--gt", gt)
    for image in report["images"]:
        noisy, clean = (np.asarray(Image.open(folder / f"{image['name']}.png")) for folder in (input, gt))
        assert image["input_psnr"] == pytest.approx(skimage.metrics.peak_signal_noise_ratio(clean, noisy), abs=1e-4)
        restored = load(weights[0])(noisy / np.float32(255))
        truth = (clean / np.float32(255)).astype(np.float64)
        want = skimage.metrics.peak_signal_noise_ratio(truth, restored.astype(np.float64), data_range=1)
        assert image["psnr"] == pytest.approx(want, abs=1e-3)
    by_pattern = evaluate(weights[0], "--input", f"{input}/photo{{}}.png", "--gt", f"{gt}/photo{{}}.png")
    assert by_pattern["mean"] == report["mean"] and by_pattern["images"][0]["name"] == "000"
    files = sorted(gt.iterdir())
    assert [i["name"] for i in evaluate(weights[0], "--gt", *files, "--degrade", "quantize")["images"]] == [
        file.stem for file in files
    ]
    assert len(evaluate(weights[0], "--gt", files[0], "--degrade", "quantize")["images"]) == 1


def test_two_files_of_weights_are_compared(weights, pairs, tmp_path, capsys):
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
    message = capsys.readouterr().out
    assert "psnr difference" in message and f"{both['mean']['psnr_difference']:+.2f} dB" in message
    worst = json.loads(Image.open(pictures / f"01_{ranked[0]['name']}.png").text["accel_restore"])
    captions = [tile["caption"] for tile in worst[0]]
    assert captions[1] == f"output {ranked[0]['psnr']:.2f} dB PSNR" and captions[-1] == "gt"


def test_pictures_of_images_with_long_names_are_written(weights, tmp_path):
    gt = make_photos(tmp_path / "gt" / ("é" * 100), 1)
    next(gt.iterdir()).rename(gt / f"{'n' * 250}.png")
    folder = tmp_path / "pictures"
    evaluate(weights[0], "--gt", gt.parent, "--recursive", "--degrade", SPEC, "--pictures", folder)
    assert [path.name for path in folder.iterdir()] == [f"01_{'n' * 200}.png"]


class Infinite(torch.nn.Module):
    """A network whose output is inf where an image is white."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images * self.weight / (images < 1)


def test_an_output_of_nan_or_inf_is_no_score(weights, pairs, tmp_path, capsys):
    input, gt = pairs
    Image.new("RGB", Image.open(input / "photo001.png").size, "white").save(input / "photo001.png")
    file = write(tmp_path / "inf.safetensors", Infinite(3), model='{"name": "test_evaluate:Infinite", "arguments": {}}')
    for given, words in (([file], "photo001.png: the network's"), ([weights[0], file], "photo001.png: weights 2: ")):
        evaluate(*given, "--input", input, "--gt", gt, "--csv", tmp_path / "scores.csv", code=2)
        message = capsys.readouterr().err
        assert words in message and "cannot be scored" in message and not (tmp_path / "scores.csv").exists()


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
def test_a_degradation_may_be_written_in_several_ways(spec, steps):
    assert degradation_steps(spec) == steps
    build_degradation([(step["name"], {k: v for k, v in step.items() if k != "name"}) for step in steps])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gt", "gt"], "no input is given"), (["--gt", "gt", "--input", "gt"], "same file"),
        (["--gt", "gt", "--input", "input", "--degrade", "quantize"], "exclude"),
        (["--gt", "gt", "--degrade", "gausian_noise(sigma=25)"], "did you mean 'gaussian_noise'"),
        (["--gt", "gt", "--degrade", "gaussian_noise(sigm=25)"], "--degrade.0.sigm"),
        (["--gt", "gt", "--degrade", "gaussian_noise(25)"], "--degrade.0.25: unknown key"),
        (["--gt", "gt", "--degrade", "[3]"], "is not a degradation"),
        (["--gt", "no", "--degrade", "quantize"], "--gt: no"),
        (["--gt", "gt", "--degrade", ""], "--degrade: is empty"), (["--gt", "gt", "--degrade", "[]"], "is empty"),
        (["--gt", "gt", "--degrade", "quantize", "--metrics", "psnr,sim"], "metrics"),
        (["--gt", "gt", "--degrade", "quantize", "--metrics", "lpips"], "lpips"),
        (["--gt", "gt", "--degrade", "quantize", "--tile", "70"], "tile"),
        (["--gt", "gt", "--degrade", "quantize", "--worst", "3"], "--pictures"),
        (["--gt", "gt", "--degrade", "quantize", "--csv", "no/a.csv"], "does not exist"),
        (["--gt", "gt", "--degrade", "quantize", "--crop-border", "60"], "scores need at least 131 pixels"),
        (["--gt", "gt", "--degrade", "quantize", "--max-pixels", "99"], "more than 99 pixels"),
        (["--gt", "gt", "--degrade", "quantize", "--max-pixels", "0"], "--max-pixels: must be a whole number above 0"),
        (["--gt", "gt", "--degrade", "downscale"], None), (["--gt", "gt", "--input", "small"], "must be of equal size"),
        (["--gt", "gt", "--input", "broken"], "photo001.png: is not a readable image"),
        (["--gt", "gt", "--input", "input", "--seed", "3"], "--seed: chooses the draws of a degradation"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused_with_their_name(weights, pairs, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name in ("small", "broken"):
        (tmp_path / name).mkdir()
        for file in pairs[1].iterdir():
            image = Image.open(file)
            image.resize((9, 9) if name == "small" else image.size).save(tmp_path / name / file.name)
    (tmp_path / "broken" / "photo001.png").write_bytes(b"no image")
    if words is None:  # downscale does nothing at scale 1
        evaluate(weights[0], *arguments)
        return
    evaluate(weights[0], *arguments, code=2)
    assert words in capsys.readouterr().err


def test_gt_that_is_no_multiple_of_the_scale_is_cropped_on_request(tmp_path, capsys):
    net = build_model("unet", {"width": 8}, 3, scale=2)
    file = write(tmp_path / "x2.safetensors", net, data=json.dumps({"channels": 3, "scale": 2}))
    photo = np.asarray(Image.open(next(make_photos(tmp_path / "photos", 1).iterdir())))[:31]
    for name in ("gt", "cut", "small"):
        (tmp_path / name).mkdir()
    Image.fromarray(photo).save(tmp_path / "gt" / "a.png")
    Image.fromarray(photo[:30, :36]).save(tmp_path / "cut" / "a.png")
    Image.fromarray(photo[:30:2, :36:2]).save(tmp_path / "small" / "a.png")
    images = ["--input", tmp_path / "small", "--gt"]
    evaluate(file, *images, tmp_path / "gt", code=2)
    assert "give --crop-gt" in capsys.readouterr().err
    report = evaluate(file, *images, tmp_path / "gt", "--crop-gt")
    assert report["protocol"]["crop_gt"] is True
    assert report["mean"] == evaluate(file, *images, tmp_path / "cut")["mean"]
    Image.fromarray(photo[:29]).save(tmp_path / "gt" / "a.png")
    evaluate(file, *images, tmp_path / "gt", "--crop-gt", code=2)
    assert "--crop-gt" not in capsys.readouterr().err


def test_a_report_never_overwrites_an_input(weights, pairs, capsys):
    kept = pairs[1] / "photo001.png"
    content = kept.read_bytes()
    images = ["--gt", str(pairs[1]), "--degrade", "quantize"]
    assert main(["evaluate", str(weights[0]), *images, "--cpu", "--csv", str(kept)]) == 2
    assert "name another file" in capsys.readouterr().err and kept.read_bytes() == content
    for file in (weights[0], pairs[1] / "photo000.png"):
        content = file.read_bytes()
        command = ["evaluate", str(weights[0]), "--gt", str(pairs[1] / "photo000.png"), "--degrade", "quantize"]
        assert main([*command, "--cpu", "--json", str(file)]) == 2
        assert "name another file" in capsys.readouterr().err and file.read_bytes() == content


def test_a_damaged_image_is_reported_and_no_mean_is_printed(weights, pairs, capsys):
    input, gt = pairs
    whole = (input / "photo001.png").read_bytes()
    (input / "photo001.png").write_bytes(whole[: len(whole) // 2])
    evaluate(weights[0], "--input", input, "--gt", gt, code=2)
    message = capsys.readouterr()
    assert "photo001.png: is damaged" in message.err and "1 of 3" in message.err and "mean" not in message.out


def test_a_stored_protocol_is_not_trusted(pairs, tmp_path, capsys):
    described = Protocol(tile=96, tile_overlap=48, metrics=("psnr", "lpips")).describe()
    odd = {"crop_border": -1, "tile": "many", "y_channel": {}, "tile_overlap": 10**9}
    for number, (change, code) in enumerate([({}, 0), *(({key: value}, 2) for key, value in odd.items())]):
        metrics = json.dumps({"psnr": 1.0, "protocol": {**described, **change}})
        file = write(tmp_path / f"{number}.safetensors", build(3), metrics=metrics)
        report = evaluate(file, "--input", pairs[0], "--gt", pairs[1], code=code)
        message = capsys.readouterr()
        if code == 0:
            assert report["protocol"]["tile"] == 96 and "lpips is not measured" in message.out
            assert list(report["mean"]) == ["input_psnr", "psnr"]
        else:
            assert next(iter(change)) in message.err


def record(folder: Path, trained_on: list[Path], held_out: list[Path]) -> None:
    """Write images.json, as a run with these gt images does."""
    sets = {
        kind: ImageSet([f.stem for f in files], [digest_of(np.asarray(Image.open(f))) for f in files], None)
        for kind, files in (("train", trained_on), ("val", held_out))
    }
    (folder / RECORD).write_bytes(to_record(sets))


@pytest.fixture
def of_run(weights, tmp_path) -> Path:
    return Path(shutil.copy(weights[0], tmp_path / "best.safetensors"))


def test_images_that_the_weights_were_trained_on_are_marked(of_run, pairs, tmp_path, capsys):
    input, gt = pairs
    first, *others = sorted(gt.iterdir())
    record(of_run.parent, others, [first])
    images = shutil.copytree(gt, tmp_path / "other place")
    (images / first.name).rename(images / "z new.png")
    shutil.move(input / first.name, input / "z new.png")
    for others_given in (["--input", input], ["--degrade", "quantize"]):
        table = tmp_path / "table.csv"
        report = evaluate(of_run, "--gt", images, *others_given, "--csv", table)
        assert [image["trained_on"] for image in report["images"]] == [True, True, False]
        new = report["images"][2]
        assert report["mean_not_trained_on"]["psnr"] == new["psnr"] != report["mean"]["psnr"]
        rows = list(csv.DictReader(table.open()))
        assert [row["trained_on"] for row in rows] == ["1", "1", "0", ""] and rows[-1]["image"] == "mean"
        out = capsys.readouterr().out
        assert "photo001 (trained on)" in out and "z new (trained on)" not in out and "mean, not trained on" in out
        assert "was trained on 2 of these 3 images ('photo001', 'photo002')" in " ".join(out.split())
        assert f"--run {of_run.parent}" in out.replace("\n", "")


def test_weights_of_which_nothing_is_recorded_mark_nothing(of_run, pairs, tmp_path, capsys):
    _, gt = pairs
    report = evaluate(of_run, "--gt", gt, "--degrade", "quantize")
    assert [image["trained_on"] for image in report["images"]] == [None] * 3 and "mean_not_trained_on" not in report
    assert "note: no images.json next to" in capsys.readouterr().out
    record(tmp_path, [], sorted(gt.iterdir()))
    report = evaluate(of_run, "--gt", gt, "--degrade", "quantize")
    assert [image["trained_on"] for image in report["images"]] == [False] * 3
    out = capsys.readouterr().out
    assert "trained on" not in out and "warning" not in out and "images.json" not in out
    (tmp_path / RECORD).write_text("{")
    evaluate(of_run, "--gt", gt, "--degrade", "quantize")
    assert "note: no images.json next to" in capsys.readouterr().out


def test_each_of_two_files_of_weights_is_warned_of(of_run, weights, pairs, tmp_path, capsys):
    input, gt = pairs
    record(tmp_path, sorted(gt.iterdir())[:1], [])
    commit = tmp_path / "checkpoints" / "step-00000004" / "best.safetensors"  # the record is that of the run
    commit.parent.mkdir(parents=True)
    shutil.copy(of_run, commit)
    report = evaluate(commit, weights[1], "--input", input, "--gt", gt)
    assert [image["trained_on"] for image in report["images"]] == [True, False, False]
    out = " ".join(capsys.readouterr().out.split())
    assert f"{commit.name} was trained on 1 of these 3 images" in out and "note: no images.json next to" in out


def test_a_change_of_the_images_of_a_run_is_reported(tmp_path):
    scored = ImageSet(["a", "b"], ["1", "2"], ["3", "4"])
    assert not changed_validation(tmp_path, scored), "nothing is recorded"
    for recorded, words in ((scored, ""), (ImageSet(["a", "b"], ["1", "9"], ["3", "8"]), "input of 'b'")):
        (tmp_path / RECORD).write_bytes(to_record({"train": scored, "val": recorded}))
        found = changed_validation(tmp_path, scored)
        assert bool(found) == bool(words) and words in "".join(found)
