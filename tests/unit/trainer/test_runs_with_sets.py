"""A run with several validation sets: what it records, which weights it keeps, and whether it continues."""

import csv
import json

import numpy as np
import pytest
import torch
from image_files import save
from PIL import Image
from runs import epochs_of, json_lines, make_photos, run_folder, small_config
from safetensors import safe_open
from safetensors.torch import load_file

from accel_restore import fit
from accel_restore.cli import main
from accel_restore.config.load import config_from
from accel_restore.data.previews import open_previews
from accel_restore.errors import UserError
from accel_restore.tracking.rows import Rows
from accel_restore.tracking.run_files import read_status

PHOTOS = 8, 2  # training, validation


class Contrast(torch.nn.Module):
    """A network whose output is gray at first; training adds the image."""

    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return 0.5 + self.weight * (images - 0.5)


def config_of(photos, out, name, validation=None, **sets):
    """Return a configuration with the sets `strong`, noise that training removes, and `clean`, with weaker noise."""
    config = small_config(*photos, out, run={"name": name}, validation={"metrics": ["psnr", "ssim"]})
    own = {"strong": {"degradation": [{"name": "gaussian_noise", "sigma": 60}]}, "clean": {}}
    sets = {name: {**own.get(name, {}), **sets.get(name, {})} for name in own | sets}
    config["data"]["val"] = {name: {"gt": str(photos[1]), **one} for name, one in sets.items()}
    config["data"]["degradation"] = [{"name": "gaussian_noise", "sigma": 10}]
    config["train"], config["model"] = {"epochs": 3}, {"name": "test_runs_with_sets:Contrast"}
    config["optimizer"] = {"lr": 0.1}
    config["validation"] |= validation or {}
    return config


def best_of(config):
    with safe_open(run_folder(config) / "best.safetensors", "pt") as file:
        return json.loads(file.metadata()["metrics"]), int(file.metadata()["epoch"])


def test_scores_of_each_set_are_recorded_and_the_monitored_set_decides_which_weights_are_best(
    photos, tmp_path, one_thread, capsys
):
    """The gt of one set are negatives: the better a network restores, the worse is its score there."""
    for file in photos[1].iterdir():
        save(tmp_path / "negative" / file.name, 255 - np.asarray(Image.open(file)))
    negative = {"input": str(photos[1]), "gt": str(tmp_path / "negative")}
    runs = {
        monitor: config_of(photos, tmp_path, monitor.replace(".", "_"), {"monitor": monitor}, negative=negative)
        for monitor in ("psnr", "negative.psnr", "strong.loss")
    }
    for config in runs.values():
        fit(config, cpu=True)
    lines = epochs_of(runs["psnr"])
    for line in lines:
        sets = line["val_sets"]
        assert list(sets) == ["strong", "clean", "negative"]
        assert list(sets["clean"]) == ["loss", "psnr", "ssim", "input_psnr", "input_ssim"]
        for score, mean in sets["clean"].items():
            others = sets["strong"][score] + sets["negative"][score]
            assert line[f"val_{score}"] == pytest.approx((mean + others) / 3, rel=1e-12)
    for monitor, config in runs.items():
        others = [{key: value for key, value in line.items() if key not in ("is_best", "seconds")} for line in lines]
        mine = [{key: line[key] for key in others[0]} for line in epochs_of(config)]
        assert mine == others, monitor
        metrics, epoch = best_of(config)
        name, _, score = monitor.rpartition(".")
        values = [line["val_sets"][name][score] if name else line["val_psnr"] for line in lines]
        assert epoch == values.index(min(values) if score == "loss" else max(values)), monitor
        clean = {name: value for name, value in metrics["sets"]["clean"].items() if name != "protocol"}
        assert clean == lines[epoch]["val_sets"]["clean"] == read_status(run_folder(config))["best"]["sets"]["clean"]
        assert metrics["psnr"] == lines[epoch]["val_psnr"]
    assert best_of(runs["negative.psnr"])[1] != best_of(runs["strong.loss"])[1], "the control: the sets disagree"

    metrics, _ = best_of(runs["negative.psnr"])
    protocol = metrics["sets"]["strong"]["protocol"]
    assert protocol["degradation"][0]["sigma"] == 60 and "data.val.strong.degradation" in protocol["input"]
    assert metrics["protocol"]["input"] == "differs between the sets"
    folder = run_folder(runs["negative.psnr"])
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["validation_sets"]["clean"]["images"] == ["photo000", "photo001"]
    assert plan["validation_images"][0] == "strong/photo000"
    assert json.loads((folder / "images.json").read_text()).keys() == {
        "train", "val.strong", "val.clean", "val.negative",
    }  # fmt: skip
    assert "strong: 2 images, clean: 2 images, negative: 2 images; best by negative.psnr" in capsys.readouterr().out


def test_evaluate_repeats_the_validation_of_each_set(photos, tmp_path, one_thread, capsys):
    config = config_of(photos, tmp_path, "again", clean={"crop_border": 1, "gt": str(photos[0])})
    fit(config, cpu=True)
    folder, file = run_folder(config), tmp_path / "scores.json"
    metrics, _ = best_of(config)
    weights = ["evaluate", str(folder / "best.safetensors"), "--cpu"]
    files = ["--json", str(file), "--csv", str(tmp_path / "scores.csv"), "--pictures", str(tmp_path / "worst")]
    assert main([*weights, "--run", str(folder), *files]) == 0
    report, printed = json.loads(file.read_text()), capsys.readouterr().out
    for name, scores in report["sets"].items():
        assert scores["mean"]["psnr"] == pytest.approx(metrics["sets"][name]["psnr"], abs=1e-6), name
        assert scores["protocol"] == metrics["sets"][name]["protocol"] | {"precision": "no"}
        assert f"scores on {name}" in printed and (tmp_path / "worst" / name).is_dir()
    assert report["mean"]["psnr"] == pytest.approx(metrics["psnr"], abs=1e-6)
    assert "clean: crop_border: 1" in printed and "strong: crop_border: 0" in printed and "mean of sets" in printed
    assert "was trained on 8 of these 8 images" in printed
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["set"] for row in rows] == ["strong"] * 2 + ["clean"] * 8 + ["strong", "clean", ""]
    assert float(rows[-1]["psnr"]) == report["mean"]["psnr"]

    assert main([*weights, "--run", str(folder), "--crop-border", "3", "--json", str(file)]) == 0
    again = json.loads(file.read_text())["sets"]
    assert [one["protocol"]["crop_border"] for one in again.values()] == [3, 3]
    capsys.readouterr()
    assert main([*weights, "--gt", str(photos[1]), "--degrade", "quantize", "--json", str(file)]) == 0
    assert "sets" not in json.loads(file.read_text())
    for photo in photos[1].iterdir():
        photo.rename(photo.with_suffix(".moved"))
    assert main([*weights, "--run", str(folder)]) == 2
    assert "data.val.strong.gt" in capsys.readouterr().err
    for photo in photos[1].iterdir():
        photo.rename(photo.with_suffix(".png"))


def test_a_run_continues_only_with_the_same_sets_and_protocols(photos, tmp_path, one_thread):
    config = config_of(photos, tmp_path, "kept", {"monitor": "clean.psnr"})
    fit(config, cpu=True)
    lines = json_lines(run_folder(config) / "metrics.jsonl")
    for change, message in (
        ({"clean": {"crop_border": 2}}, r"data\.val\.clean\.crop_border: .* in the commit, 2 now"),
        ({"third": {}}, "val.third: was not a set then"),
        ({"clean": {"gt": str(photos[0])}}, "val.clean: .*has in addition 'photo002'"),
    ):
        changed = config_of(photos, tmp_path, "kept", {"monitor": "clean.psnr"}, **change)
        with pytest.raises(UserError, match=message):
            fit(changed, cpu=True)
    assert json_lines(run_folder(config) / "metrics.jsonl") == lines


def test_early_stopping_follows_the_monitored_set(photos, tmp_path, one_thread):
    negative = {"input": str(photos[1]), "gt": str(tmp_path / "negative")}
    for file in photos[1].iterdir():
        save(tmp_path / "negative" / file.name, 255 - np.asarray(Image.open(file)))
    config = config_of(photos, tmp_path, "early", {"monitor": "negative.psnr"}, negative=negative)
    config["train"] = {"epochs": 9, "early_stopping": {"patience": 1}}
    fit(config, cpu=True)
    status = read_status(run_folder(config))
    assert status["stopped"].startswith("early stopping: val_negative.psnr has not improved for 1 validation")
    assert status["epoch"] < 9


def test_held_out_images_of_named_training_sets_are_scored_per_set(photos, tmp_path, one_thread):
    config = small_config(*photos, tmp_path, run={"name": "held"}, validation={"monitor": "mine.psnr"})
    config["data"] |= {"train": {"mine": {"gt": str(photos[0])}}, "val": None, "val_fraction": 0.25}
    config["train"] = {"epochs": 1}
    fit(config, cpu=True)
    (line,) = epochs_of(config)
    assert list(line["val_sets"]) == ["mine"] and line["val_sets"]["mine"]["psnr"] == line["val_psnr"]


def test_previews_are_restored_and_drawn_next_to_their_inputs_and_never_scored(photos, tmp_path, one_thread, capsys):
    folder = make_photos(tmp_path / "unknown", 3, seed=2)
    plain, shown = (config_of(photos, tmp_path, name) for name in ("plain", "shown"))
    shown["data"]["preview"] = str(folder)
    for config in (plain, shown):
        config["tracking"]["tensorboard"] = True
        fit(config, cpu=True)
    lines = [[{**line, "seconds": 0} for line in epochs_of(config)] for config in (plain, shown)]
    assert lines[0] == lines[1], "training and scores are the same"
    assert (run_folder(plain) / "images.json").read_bytes() == (run_folder(shown) / "images.json").read_bytes()
    assert "previews" in capsys.readouterr().out and not (run_folder(plain) / "samples" / "preview").exists()

    run = run_folder(shown)
    sheets = sorted(path.name for path in (run / "samples" / "preview").iterdir())
    assert sheets == ["epoch-0000.png", "epoch-0001.png", "epoch-0002.png"]
    with Image.open(run / "samples" / "preview" / "epoch-0002.png") as sheet:
        rows, sheet = json.loads(sheet.info["accel_restore"]), sheet.convert("RGB")
    assert [[tile["caption"] for tile in row] for row in rows] == [
        [f"photo{number:03d}: input", "output"] for number in range(3)
    ]
    weight = float(load_file(run / "checkpoints" / "step-00000003" / "model.safetensors")["weight"])
    for number, row in enumerate(rows):
        input, output = (np.asarray(sheet.crop(tile["box"])).astype(float) / 255 for tile in row)
        assert (input == np.asarray(Image.open(folder / f"photo{number:03d}.png")) / 255).all()
        assert np.abs(output - (0.5 + weight * (input - 0.5))).max() < 1 / 255
    pictures = [row for row in Rows(run, 1).read(flush=True) if "val/previews" in row]
    assert [row["epoch"] for row in pictures] == [0, 1, 2]
    page = (run / "report.html").read_text()
    assert '"kind":"preview"' in page.replace(": ", ":") and "photo002: input" in page

    again = {**shown, "train": {"epochs": 3}}
    again["data"] = {**shown["data"], "preview": None}
    fit(again, cpu=True)
    assert "the run is finished" in capsys.readouterr().out, "previews may change"


@pytest.mark.parametrize(
    ("preview", "message"),
    [
        ("none", r"data\.preview: .*none does not exist"),
        ("empty", r"data\.preview: no images in .*empty"),
        ("damaged", r"damaged/photo001\.png: "),
        ("damaged/photo000.png", r"data\.preview: .*photo000\.png is a file; give a list \[file, \.\.\.\]"),
        ("{}/photo*.tif", r"data\.preview: no file matches"),
        (["none.png"], r"data\.preview: no such file: .*none\.png"),
    ],
)
def test_problems_of_previews_are_found_before_the_run(photos, tmp_path, preview, message):
    (tmp_path / "empty").mkdir()
    damaged = make_photos(tmp_path / "damaged", 2) / "photo001.png"
    damaged.write_bytes(damaged.read_bytes()[:99])
    config = config_of(photos, tmp_path, "refused")
    places = [preview] if isinstance(preview, str) else preview
    places = [str(tmp_path / place) for place in places]
    config["data"]["preview"] = places[0] if isinstance(preview, str) else places
    with pytest.raises(UserError, match=message):
        fit(config, cpu=True)
    assert not run_folder(config).exists()


@pytest.mark.parametrize("places", ["a" * 300, ["a" * 300], "a" * 300 + "{}", ["a" * 300 + "{}"]])
def test_a_preview_whose_name_is_too_long_is_a_problem_with_its_key(tmp_path, places):
    data = {"train": {"gt": "x"}, "preview": places, "cache_dir": str(tmp_path)}
    with pytest.raises(UserError, match=r"data\.preview: cannot be searched: File name too long: a*"):
        open_previews(config_from({"data": data}).data)


def test_previews_are_at_most_24_and_may_be_lists_of_folders_and_files(tmp_path):
    many, one = make_photos(tmp_path / "many", 26), make_photos(tmp_path / "one", 2)

    def previews(preview, **more):
        data = {"train": {"gt": "x"}, "preview": preview, "cache_dir": str(tmp_path / "cache"), **more}
        return open_previews(config_from({"data": data}).data)

    found = previews(str(many), scale=2)
    assert len(found) == 24 and "26 images were found; the first 24" in found.notes[0]
    height, width = found[23].shape[-2:]
    assert found.sizes()[23] == (2 * height, 2 * width)
    found = previews([str(one), str(many / "photo007.png")])
    assert found.names == ["photo007", "photo000", "photo001"] and not found.notes
    assert previews(f"{one}/photo{{}}.png").names == ["000", "001"]
    assert len(previews(str(many), max_images=3)) == 3
    assert previews(None) is None


def test_a_preview_that_does_not_fit_in_memory_is_left_out(photos, tmp_path, one_thread, capsys, monkeypatch):
    config = config_of(photos, tmp_path, "large")
    config["data"]["preview"] = str(make_photos(tmp_path / "unknown", 2, seed=2, least=50, most=60))
    forward = Contrast.forward

    def greedy(self, images):
        if images.shape[-1] > 50 and not self.training:
            raise torch.OutOfMemoryError("no memory")
        return forward(self, images)

    monkeypatch.setattr(Contrast, "forward", greedy)
    fit(config, cpu=True)
    assert "data.preview: photo000 does not fit in memory; set validation.tile" in capsys.readouterr().out
    assert read_status(run_folder(config))["state"] == "finished"
