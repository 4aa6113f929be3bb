"""A run interrupted after every step ends bit-identical to an uninterrupted one; on other ranks, equal to rounding."""

import json
import subprocess
import sys

import forked
import pytest
import safetensors.torch
import torch
import yaml
from runs import clean_environment, json_lines, last_weights, run_folder, samples_per_step, small_config, succeed

from accel_restore.commands.verify_resume import compare, short
from accel_restore.config.load import config_from

PHOTOS = 29, 3  # training, validation
STEPS = 8  # two epochs of four steps; the last step of each has fewer samples
STAGES = [{"until_epoch": 1, "patch_size": 8, "batch_size": 4}]
STAGED_STEPS = 2 + 4
BY_PATH = [f"pytorch_optimizer:{name}" for name in ("Adan", "Lion", "Prodigy")]


def configuration(photos, out, name, **sections):
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 4, **sections.pop("data", {})},
        checkpoint={"every_steps": 3},
        train={"epochs": 2, "gradient_accumulation_steps": 2, "ema_decay": 0.9, **sections.pop("train", {})},
        tracking={"wandb": "disabled", "log_every_steps": 3},  # one log line covers several interruptions
        **sections,
    )


def differences(first, second):
    """Return descriptions of the differences between two runs."""
    return {what: how for what, how in compare(run_folder(first), run_folder(second)) if how}


@pytest.mark.parametrize(
    ("ranks", "sections"),
    [
        (
            1,
            {
                "train": {"mixed_precision": "bf16", "max_grad_norm": 0.5},
                "optimizer": {"name": "sgd", "momentum": 0.9, "lr": 0.01},
                "scheduler": {"name": "plateau", "patience": 0},
                "validation": {"metrics": ["psnr"], "monitor": "psnr"},
            },
        ),
        pytest.param(
            2, {"data": {"batch_size": 2}, "scheduler": {"name": "cosine", "warmup_epochs": 1}}, marks=pytest.mark.sweep
        ),
        (2, {"data": {"batch_size": 2, "stages": STAGES, "mixup": {"probability": 0.5}}}),
        pytest.param(
            2,
            {"data": {"batch_size": 2}, "optimizer": {"name": "pytorch_optimizer:SOAP", "lr": 0.003}},
            marks=pytest.mark.sweep,
        ),
        (
            1,
            {
                "train": {"ema_decay": None, "mixed_precision": "bf16"},
                "optimizer": {"name": "pytorch_optimizer:ScheduleFreeAdamW", "lr": 0.01},
                "scheduler": {"name": "own_parts:Chained", "warmup_epochs": 1},
            },
        ),
        *(pytest.param(1, {"optimizer": {"name": name}}, marks=pytest.mark.sweep) for name in BY_PATH),
    ],
    ids=[
        "1 rank, plateau, bf16",
        "2 ranks, cosine",
        "2 ranks, stages, mixup",
        "2 ranks, SOAP",
        "ScheduleFree",
        *BY_PATH,
    ],
)
def test_run_interrupted_after_every_step_ends_bit_identical(photos, tmp_path, ranks, sections):
    whole = configuration(photos, tmp_path, "whole", **json.loads(json.dumps(sections)))
    broken = configuration(photos, tmp_path, "broken", **json.loads(json.dumps(sections)))
    assert forked.run(whole, "--audit", ranks=ranks) == [0] * ranks
    steps = json_lines(run_folder(whole) / "metrics.jsonl")[-1]["step"]
    assert steps == (STAGED_STEPS if "stages" in sections.get("data", {}) else STEPS)
    for step in range(1, steps + 1):  # at the last step of an epoch, the interruption precedes its validation
        assert forked.run(broken, "--audit", "--stop-after", str(step), ranks=ranks) == [143] * ranks
        status = json.loads((run_folder(broken) / "status.json").read_text())
        assert (status["state"], status["step"]) == ("preempted", step)
    assert forked.run(broken, "--audit", ranks=ranks) == [0] * ranks
    assert differences(whole, broken) == {}
    assert samples_per_step(whole) == samples_per_step(broken)
    epochs = [line["epoch"] for line in json_lines(run_folder(broken) / "metrics.jsonl") if line["event"] == "epoch"]
    assert epochs == [0, 1]


@pytest.mark.parametrize("forgotten", ["optimizer", "ema", "sums", "scheduler", "place"])
def test_control_resuming_without_part_of_the_state_gives_another_result(photos, tmp_path, forgotten):
    sections = {"scheduler": {"name": "plateau", "patience": 0, "factor": 0.1}, "optimizer": {"lr": 0.05}}
    whole, broken = (configuration(photos, tmp_path, name, **sections) for name in ("whole", "broken"))
    assert forked.run(whole) == [0]
    assert forked.run(broken, "--stop-after", "5") == [143]
    assert forked.run(broken, mode=f"forget={forgotten}") == [0]
    assert differences(whole, broken)


@pytest.mark.parametrize(
    ("precision", "bound"), [("float64", 1e-9), pytest.param("float32", 1e-3, marks=pytest.mark.sweep)]
)
def test_commit_of_two_ranks_continues_on_one_and_on_three(photos, tmp_path, precision, bound):
    mode = "float64" if precision == "float64" else ""
    data = {"batch_size": 6, "stages": [{"until_epoch": 1, "patch_size": 8, "batch_size": 12}], "mixup": {}}
    runs = {}
    for name in ("two", "one", "three"):
        runs[name] = config = configuration(photos, tmp_path, name, data=data)
        config["train"]["gradient_accumulation_steps"] = 1
        if name != "two":
            assert forked.run(config, "--audit", "--stop-after", "1", ranks=2, mode=mode) == [143, 143]
    assert forked.run(runs["two"], "--audit", ranks=2, mode=mode) == [0, 0]
    assert forked.run(runs["one"], "--audit", mode=mode) == [0]
    assert forked.run(runs["three"], "--audit", ranks=3, mode=mode) == [0, 0, 0]
    said = {name: forked.printed(runs[name]) for name in ("one", "three")}
    assert "24 = 12 per device × 2 accumulated × 1 rank" in said["one"]
    assert "12 = 6 per device × 2 accumulated × 1 rank" in said["one"]
    assert "24 = 8 per device × 1 accumulated × 3 ranks" in said["three"]
    assert "12 = 4 per device × 1 accumulated × 3 ranks" in said["three"]
    for name in ("one", "three"):
        assert samples_per_step(runs[name]) == samples_per_step(runs["two"])
        for file in ("model.safetensors", "ema.safetensors"):
            expected = last_weights(runs["two"], file)
            for key, value in last_weights(runs[name], file).items():
                assert value.dtype == getattr(torch, precision)
                assert (value - expected[key]).norm() <= bound * expected[key].norm(), (name, key)


def test_a_world_size_that_cannot_keep_the_global_batch_is_rejected(photos, tmp_path):
    config = configuration(photos, tmp_path, "odd", data={"batch_size": 2})
    assert forked.run(config, "--stop-after", "2", ranks=2) == [143, 143]
    assert forked.run(config, ranks=3) == [2, 2, 2]
    said = "it is not a multiple of 3 processes; use one of these numbers of processes: 1, 2, 4, 8"
    assert said in " ".join(forked.printed(config).split())


@pytest.mark.sweep  # takes more than a minute
def test_verify_resume_proves_bit_identical_resuming(photos, tmp_path):
    config = configuration(photos, tmp_path, "mine")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(config))
    process = subprocess.run(
        [sys.executable, "-m", "accel_restore.cli", "verify-resume", "--config", str(file), "--cpu"],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    succeed(process)
    assert "resuming is bit-identical with" in process.stdout and "differ" not in process.stdout
    assert not run_folder(config).exists()


def test_verify_resume_changes_only_the_length_of_the_run(photos, tmp_path):
    config = config_from(configuration(photos, tmp_path, "mine", scheduler={"name": "step", "step_size": 7}))
    tree = short(config, processes=2)
    assert tree["train"]["epochs"] == 2 and tree["data"]["max_images"] * tree["data"]["crops_per_image"] >= 3.5 * 16
    assert tree["train"]["steps_per_epoch"] is None
    config = config_from(configuration(photos, tmp_path, "mine", scheduler={"name": "step", "step_size": 7}),
                         ["train.steps_per_epoch=5000", "train.max_steps=90000"])  # fmt: skip
    tree = short(config, processes=2)
    assert (tree["train"]["epochs"], tree["train"]["max_steps"], tree["train"]["steps_per_epoch"]) == (2, None, 3)
    same = ("model", "loss", "optimizer", "scheduler")
    assert {key: tree[key] for key in same} == {key: config.model_dump(mode="json")[key] for key in same}


def test_verify_resume_takes_images_of_every_set(photos, tmp_path):
    sets = {"a": {"gt": str(photos[0]), "crops_per_image": 500, "share": 0.9}, "b": {"gt": str(photos[1])}}
    config = configuration(photos, tmp_path, "mine", data={"train": sets, "preview": str(photos[1])})
    data = short(config_from(config), processes=2)["data"]
    assert data["train"]["a"]["share"] == 0.9 and data["preview"] is None
    crops = [data["train"]["a"]["crops_per_image"], data["crops_per_image"]]
    assert crops[0] <= 8 and data["max_images"] * min(crops) >= 3.5 * 16 / 2


def test_compare_reports_each_difference(photos, tmp_path):
    first, second = (configuration(photos, tmp_path, name) for name in ("first", "second"))
    for config in (first, second):
        assert forked.run(config, "train.epochs=1") == [0]
    assert differences(first, second) == {}
    best = run_folder(second) / "best.safetensors"
    weights = safetensors.torch.load_file(best)
    next(iter(weights.values())).view(-1)[0] += 0.5
    best.write_bytes(safetensors.torch.save(weights))
    lines = (run_folder(second) / "metrics.jsonl").read_text().splitlines()
    (run_folder(second) / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert differences(first, second) == {
        "best.safetensors of the run": "differs by up to 0.5",
        "metrics.jsonl, except times": "1 lines differ",
    }
