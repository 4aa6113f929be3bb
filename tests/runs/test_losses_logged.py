"""Each loss term is logged by name, and its value in metrics.jsonl equals the recomputed loss."""

import json

import forked
import numpy as np
import pytest
import torch
from reference_losses import REFERENCES
from runs import epochs_of, json_lines, last_weights, make_photos, run_folder, small_config
from vgg import write_weights

from accel_restore.commands.verify_resume import compare
from accel_restore.tracking.rows import Rows

PHOTOS = 29, 3  # training, validation
WEIGHTS = {"fft": 0.1, "l1": 1.0, "psnr": 0.01, "ssim": 0.25}


def configuration(photos, out, name, loss, every=1, **sections):
    """Return a configuration with 8 steps per epoch; the last step has one sample, on rank 0."""
    sections = {"data": {"batch_size": 2}, "checkpoint": {"every_steps": 3}, **sections}
    config = small_config(*photos, out, run={"name": name}, **sections)
    config["tracking"]["log_every_steps"], config["loss"] = every, loss
    return config


def lines_of(config, event):
    return [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == event]


def terms_of(seen):
    """Return name → weighted term of each image, from independent implementations."""
    pairs = [(o.double().numpy(), g.double().numpy()) for those in seen for o, g in zip(*those, strict=True)]
    return {name: [weight * REFERENCES[name](*pair) for pair in pairs] for name, weight in WEIGHTS.items()}


@pytest.mark.parametrize(("ranks", "every", "accumulation"), [(1, 3, 2), (2, 1, 1)])
def test_logged_terms_are_the_mean_losses_over_the_samples_of_the_line(photos, tmp_path, ranks, every, accumulation):
    config = configuration(photos, tmp_path, "run", WEIGHTS, every, train={"gradient_accumulation_steps": accumulation})
    kept = tmp_path / "outputs"
    kept.mkdir()
    assert forked.run(config, ranks=ranks, mode=f"outputs={kept}") == [0] * ranks, forked.printed(config)
    seen = [[torch.load(file, weights_only=True) for file in sorted(kept.glob(f"{r}-*.pt"))] for r in range(ranks)]
    lines, without_samples = lines_of(config, "train"), 0
    assert len(lines) == ranks * (16 // every)
    for line in lines:
        steps = range(line["step"] - every + 1, line["step"] + 1)
        images = [(x["output"], x["gt"]) for x in seen[line["rank"]] if x["step"] in steps]
        expected = terms_of(images)
        assert len(expected["l1"]) == line["samples"] and list(line["terms"]) == list(WEIGHTS)
        if not line["samples"]:
            without_samples += 1
            assert line["loss"] is None and set(line["terms"].values()) == {None}
            continue
        for name, values in expected.items():
            assert line["terms"][name] == pytest.approx(np.mean(values), rel=1e-3), name
        assert line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-6)
    assert without_samples == (2 if ranks == 2 else 0)

    validated = [[(x["output"], x["gt"]) for x in mine if x["step"] is None] for mine in seen]
    for epoch, line in enumerate(epochs_of(config)):
        images = [pair for mine in validated for pair in mine[epoch * len(mine) // 2 : (epoch + 1) * len(mine) // 2]]
        expected = terms_of(images)
        assert len(expected["l1"]) == 3 and list(line["val_terms"]) == list(WEIGHTS)
        for name, values in expected.items():
            assert line["val_terms"][name] == pytest.approx(np.mean(values), rel=1e-3), name
        assert line["val_loss"] == pytest.approx(sum(line["val_terms"].values()), rel=1e-6)
    check_rows(config, ranks)


def check_rows(config, ranks):
    """Assert that W&B gets the mean of each term over the samples of all ranks."""
    rows = list(Rows(run_folder(config), ranks).read(flush=True))
    steps = {row["train/step"]: row for row in rows if "train/step" in row}
    for step, row in steps.items():
        lines = [line for line in lines_of(config, "train") if line["step"] == step and line["samples"]]
        for name in WEIGHTS:
            total = sum(line["terms"][name] * line["samples"] for line in lines)
            assert row[f"train/terms/{name}"] == pytest.approx(total / sum(line["samples"] for line in lines))
    assert all(isinstance(value, int | float) for row in steps.values() for value in row.values())
    scores = [row for row in rows if "val/loss" in row]
    for row, line in zip(scores, epochs_of(config), strict=True):
        assert {name: row[f"val/terms/{name}"] for name in WEIGHTS} == line["val_terms"] and "val/terms" not in row


def test_a_single_term_is_logged_only_as_the_loss(photos, tmp_path):
    config = configuration(photos, tmp_path, "single", {"psnr": 1.0}, train={"epochs": 3})
    assert forked.run(config) == [0], forked.printed(config)
    assert not any("terms" in line or "val_terms" in line for line in lines_of(config, "train") + epochs_of(config))
    assert not any("terms" in key for row in Rows(run_folder(config), 1).read(flush=True) for key in row)
    # The losses are negative, and the best is the lowest.
    losses = [line["val_loss"] for line in epochs_of(config)]
    best = json.loads((run_folder(config) / "status.json").read_text())["best"]
    assert max(losses) < 0 and best["loss"] == min(losses)
    assert [line["is_best"] for line in epochs_of(config)] == [
        value == min(losses[: epoch + 1]) for epoch, value in enumerate(losses)
    ]


def differences(first, second):
    return {what: how for what, how in compare(run_folder(first), run_folder(second)) if how}


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.sweep), 2])
def test_a_run_interrupted_between_two_log_lines_logs_the_same_terms(photos, tmp_path, ranks):
    whole, broken = (configuration(photos, tmp_path, name, WEIGHTS, every=5) for name in ("whole", "broken"))
    assert forked.run(whole, ranks=ranks) == [0] * ranks
    for step in (2, 8, 11):  # in mid-epoch, at its end, in the next epoch
        assert forked.run(broken, "--stop-after", str(step), ranks=ranks) == [143] * ranks
    assert forked.run(broken, ranks=ranks) == [0] * ranks
    assert differences(whole, broken) == {}
    assert len(lines_of(whole, "train")[0]["terms"]) == len(WEIGHTS)


def test_control_without_the_window_sums_a_resumed_run_logs_other_terms(photos, tmp_path):
    whole, broken = (configuration(photos, tmp_path, name, WEIGHTS, every=5) for name in ("whole", "broken"))
    assert forked.run(whole) == [0]
    assert forked.run(broken, "--stop-after", "2") == [143]
    assert forked.run(broken, mode="forget=window") == [0]
    assert set(differences(whole, broken)) == {"metrics.jsonl, except times"}
    first, other = (lines_of(config, "train")[0] for config in (whole, broken))
    assert first["step"] == other["step"] == 5 and first["terms"] != other["terms"]


def test_checkpoints_do_not_contain_the_network_of_a_perceptual_loss(photos, tmp_path):
    setting = {"weight": 0.1, "weights": write_weights(tmp_path, "vgg19"), "layers": {"relu2_1": 1.0}}
    loss = {"l1": 1.0, "perceptual": setting}
    config = configuration(photos, tmp_path, "with", loss, train={"mixed_precision": "bf16", "ema_decay": 0.9})
    plain = configuration(photos, tmp_path, "without", {"l1": 1.0}, train=config["train"])
    for each in (config, plain):
        assert forked.run(each, "train.epochs=1") == [0], forked.printed(each)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "best.safetensors"):
        shapes = [{key: value.shape for key, value in last_weights(each, file).items()} for each in (config, plain)]
        assert shapes[0] == shapes[1]
    assert all(line["terms"]["perceptual"] > 0 for line in lines_of(config, "train"))
    assert not last_weights(config)["head.weight"].equal(last_weights(plain)["head.weight"])


@pytest.mark.parametrize("mode", ["", "unseen@1"])
def test_a_missing_weights_file_ends_all_ranks_before_anything_is_written(photos, tmp_path, mode):
    path = write_weights(tmp_path, "vgg19") if mode else str(tmp_path / "none.pth")
    config = configuration(photos, tmp_path, "run", {"perceptual": {"weights": path}})
    assert forked.run(config, ranks=2, mode=mode) == [2, 2]
    assert "accel-restore: loss.perceptual.weights: " in forked.printed(config)
    assert "Traceback" not in forked.printed(config)
    assert not run_folder(config).exists()


def test_images_too_small_for_a_loss_are_rejected_before_anything_is_written(photos, tmp_path):
    config = configuration(photos, tmp_path, "run", {"l1": 1.0, "ms_ssim": 1.0})
    assert forked.run(config) == [2]
    said = "loss.ms_ssim: needs images of at least 176 pixels a side, but data.patch_size is 16; raise it"
    assert said in forked.printed(config)
    large = make_photos(tmp_path / "large", 3, least=180, most=200)
    config = configuration((large, photos[1]), tmp_path, "run", {"ms_ssim": 1.0}, data={"patch_size": 176})
    assert forked.run(config) == [2]
    assert "smaller than the 176 pixels that validation needs for its metrics and the loss" in forked.printed(config)
    assert not run_folder(config).exists()
