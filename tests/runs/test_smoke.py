"""The promises of the README in five runs. The other files of this folder test each promise in every variant."""

import json
import signal

import forked
import numpy as np
import pytest
import yaml
from PIL import Image
from reference import STEPS, configuration
from runs import epochs_of, json_lines, last_weights, run_folder, samples_per_step
from watched import GENEROUS, commits, same, start_forked, status

from accel_restore.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_rank_with_batches_of_8_and_two_ranks_with_batches_of_4_train_alike_in_float64(reference, tmp_path):
    runs = {}
    for ranks in (1, 2):
        sections = {"data": {"batch_size": 8 // ranks}, "train": {"global_batch_size": 8}}
        runs[ranks] = configuration(reference.photos, tmp_path, ranks, name=f"{ranks}x{8 // ranks}", **sections)
        assert forked.run(runs[ranks], "--audit", ranks=ranks, mode="float64,no_curves") == [0] * ranks
    assert samples_per_step(runs[1]) == samples_per_step(runs[2])
    for file in ("model.safetensors", "ema.safetensors"):
        one, two = (last_weights(runs[ranks], file) for ranks in (1, 2))
        for name, value in one.items():
            assert (two[name] - value).norm() <= 1e-9 * value.norm(), (file, name)
    for one, two in zip(epochs_of(runs[1]), epochs_of(runs[2]), strict=True):
        assert two["lr"] == one["lr"] and two["val_psnr"] == pytest.approx(one["val_psnr"], rel=1e-6)


def test_a_run_that_sigterm_stopped_continues_bit_identically(reference, tmp_path):
    config = configuration(reference.photos, tmp_path, ranks=2)
    training = start_forked(config, f"await=step:11:{GENEROUS}", ranks=2)
    for rank in (0, 1):
        training.wait_for("step", rank=rank, count=11)
    training.signal(signal.SIGTERM)
    assert training.exit_codes() == [143, 143], forked.printed(config)
    assert status(config)["state"] == "preempted" and STEPS < commits(config)[-1] < 2 * STEPS
    assert forked.run(config, ranks=2, mode="no_curves") == [0, 0]
    assert same(last_weights(config), reference.weights(2))
    for file in ("ema.safetensors", "optimizer.safetensors"):
        assert same(last_weights(config, file), last_weights(reference.run(2), file)), file


def test_all_ranks_skip_a_step_whose_loss_is_nan_on_one(reference, tmp_path):
    config = configuration(reference.photos, tmp_path, ranks=2)
    assert forked.run(config, "train.epochs=1", ranks=2, mode="nan@1:3,no_curves") == [0, 0], forked.printed(config)
    lines = json_lines(run_folder(config) / "metrics.jsonl")
    (skip,) = (line for line in lines if line["event"] == "skip")
    assert skip["step"] == 3 and {found["rank"] for found in skip["of"]} == {1} and skip["of"][0]["files"]
    assert all(value.isfinite().all() for value in last_weights(config).values())


def test_the_best_weights_restore_an_image(reference, tmp_path):
    best, photo = run_folder(reference.run(2)) / "best.safetensors", next(reference.photos[1].iterdir())
    assert main(["restore", str(best), str(photo), "-o", str(tmp_path / "restored.png"), "--cpu"]) == 0
    restored, given = (np.asarray(Image.open(file), int) for file in (tmp_path / "restored.png", photo))
    assert restored.shape == given.shape and 0 < np.abs(restored - given).mean() < 64


def test_check_finds_a_damaged_image_before_training(reference, tmp_path):
    (tmp_path / "gt").mkdir()
    for file in reference.photos[0].iterdir():
        (tmp_path / "gt" / file.name).write_bytes(file.read_bytes())
    config, report = tmp_path / "config.yaml", tmp_path / "check.json"
    config.write_text(yaml.safe_dump(configuration((tmp_path / "gt", reference.photos[1]), tmp_path)))
    command = ["check", "--config", str(config), "--json", str(report)]
    assert main(command) == 0
    assert json.loads(report.read_text())["errors"] == []
    damaged = tmp_path / "gt" / "photo003.png"
    damaged.write_bytes(damaged.read_bytes()[:-500])
    report.unlink()
    assert main(command) != 0
    (error,) = json.loads(report.read_text())["errors"]
    assert "photo003.png: is damaged" in error
