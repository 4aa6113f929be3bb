"""Runs with several training sets: shares after every step, the same on any number of ranks and when continued."""

import json
from pathlib import Path

import forked
import pytest
from runs import audit_events, json_lines, last_weights, make_photos, run_folder, samples_per_step, small_config

from accel_restore.commands.verify_resume import compare

PHOTOS = 17, 2  # training, validation
REAL, SHARE = 5, 0.3  # images, with 4 crops each: ids 17 to 36, as the names of the sets are in order


def configuration(photos, out: Path, name: str, batch_size: int = 2, **train: dict) -> dict:
    real = out.parent / "real"
    if not real.exists():
        make_photos(real / "gt", REAL, seed=3)
        make_photos(real / "input", REAL, seed=3)
    paired = {"input": f"{real}/input", "gt": f"{real}/gt", "share": SHARE, "crops_per_image": 4}
    made = {"gt": str(photos[0]), "share": 0.7, "degradation": [{"name": "gaussian_noise", "sigma": 15}]}
    sets = {"real": {**paired, "synthetic_share": 0.5}, "clean": made}
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"train": sets, "batch_size": batch_size, "mixup": {"probability": 0.3}},
        train={"global_batch_size": 8, "steps_per_epoch": 10, "max_steps": 25, "ema_decay": 0.9, **train},
        checkpoint={"every_steps": 4},
        tracking={"wandb": "disabled", "log_every_steps": 3},
    )


def differences(first: dict, second: dict) -> dict[str, str]:
    return {what: how for what, how in compare(run_folder(first), run_folder(second)) if how}


def train_lines(config: dict) -> list[dict]:
    return [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "train"]


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> dict:
    """An uninterrupted, audited run of one rank, in float64."""
    config = configuration(photos, tmp_path_factory.mktemp("sets") / "out", "whole", batch_size=4)
    assert forked.run(config, "--audit", mode="float64") == [0], forked.printed(config)
    return config


def test_each_set_is_used_as_its_share_says_after_every_step(whole):
    counts, samples = 0, 0
    for ids in samples_per_step(whole).values():
        counts, samples = counts + sum(id >= PHOTOS[0] for id in ids), samples + len(ids)
        assert abs(counts - SHARE * samples) <= 1 and max(ids) < PHOTOS[0] + 4 * REAL
    assert (counts, samples) == (60, 200)


def test_lines_have_the_samples_and_the_loss_of_each_set(whole):
    lines = train_lines(whole)
    assert len(lines) == 8
    for line in lines:
        assert sum(line["set_samples"].values()) == line["samples"] == 24
        total = sum(line["set_loss"][name] * line["set_samples"][name] for name in ("clean", "real"))
        assert total == pytest.approx(line["loss"] * line["samples"])
    rows = dict(json.loads((run_folder(whole) / "plan.json").read_text())["plan"])
    assert rows["set clean"].startswith(
        "17 images × 1 crop, input made by gaussian_noise(sigma=15); share 0.7: 56 of 80"
    )
    assert rows["set real"].startswith(
        "5 images × 4 crops, pairs, 0.5 of the samples with input made by gaussian_noise"
    )


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.sweep), 4])
def test_any_number_of_ranks_takes_the_same_samples_of_each_set(ranks, whole, photos, tmp_path):
    config = configuration(photos, tmp_path / "out", "ranks", batch_size=1)
    assert forked.run(config, "--audit", ranks=ranks, mode="float64") == [0] * ranks, forked.printed(config)
    assert samples_per_step(config) == samples_per_step(whole)
    for file in ("model.safetensors", "ema.safetensors"):
        expected = last_weights(whole, file)
        for key, value in last_weights(config, file).items():
            assert (value - expected[key]).norm() <= 1e-9 * expected[key].norm(), key
    by_step: dict[int, list[dict]] = {}
    for line in train_lines(config):
        by_step.setdefault(line["step"], []).append(line)
    for line in train_lines(whole):
        of_ranks = [other["set_samples"] for other in by_step[line["step"]]]
        assert {name: sum(each[name] for each in of_ranks) for name in line["set_samples"]} == line["set_samples"]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.sweep), 2])
def test_a_killed_and_a_stopped_run_end_bit_identical(ranks, photos, tmp_path):
    first, other = (configuration(photos, tmp_path / "out", name, 2) for name in ("whole", "killed"))
    assert forked.run(first, "--audit", ranks=ranks) == [0] * ranks, forked.printed(first)
    assert set(forked.run(other, "--audit", ranks=ranks, mode="kill:7")) != {0}
    assert forked.run(other, "--audit", "--stop-after", "14", ranks=ranks) == [143] * ranks
    assert forked.run(other, "--audit", ranks=ranks) == [0] * ranks, forked.printed(other)
    assert differences(first, other) == {} and samples_per_step(other) == samples_per_step(first)


def test_the_order_of_sets_in_the_file_does_not_matter_and_their_settings_are_fixed(whole, photos, tmp_path):
    config = configuration(photos, tmp_path / "out", "whole", batch_size=4)
    assert forked.run(config, "--audit", "--stop-after", "5", mode="float64") == [143]
    for given, now in (
        ("data.train.clean.share=0.6 data.train.real.share=0.4", "data.train.clean.share: 0.7 in the commit, 0.6 now"),
        ("data.train.real.crops_per_image=3", "data.train.real.crops_per_image: 4 in the commit, 3 now"),
        ("data.train.real.synthetic_share=null", "data.train.real.synthetic_share: 0.5 in the commit, None now"),
        ("data.train.clean.degradation.0.sigma=20", "data.train.clean.degradation.0.sigma: 15 in the commit, 20 now"),
    ):
        assert forked.run(config, *given.split()) == [2]
        assert now in forked.printed(config)
    assert forked.run(config, "data.train.real.gt=" + config["data"]["train"]["clean"]["gt"]) == [2]
    sets = config["data"]["train"]
    config["data"]["train"] = dict(reversed(sets.items()))
    assert forked.run(config, "--audit", mode="float64") == [0], forked.printed(config)
    assert differences(whole, config) == {}


def test_a_loss_that_is_nan_names_the_file_of_its_set(photos, tmp_path):
    config = configuration(photos, tmp_path / "out", "nan", batch_size=4, max_steps=6)
    config["data"]["mixup"] = None
    assert forked.run(config, "--audit", mode="nan@0:3") == [0], forked.printed(config)
    [skip] = [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "skip"]
    [found] = skip["of"]
    backward = [event for event in audit_events(config)[0] if event["op"] == "backward" and event["step"] == 3]
    ids = [event["samples"][0] for event in backward]  # the first of each micro-batch is spoiled
    clean, real = photos[0], tmp_path / "real"
    for file, id in zip(found["files"], ids, strict=True):
        image = id if id < PHOTOS[0] else (id - PHOTOS[0]) // 4
        folders = [clean] if id < PHOTOS[0] else [real / "gt", real / "input"]
        assert Path(file) in [folder / f"photo{image:03}.png" for folder in folders]
