"""Runs with `train.steps_per_epoch`: samples go on from epoch to epoch, on any number of ranks and when continued."""

import json
from collections import Counter
from pathlib import Path

import forked
import pytest
from runs import audit_events, epochs_of, json_lines, last_weights, run_folder, samples_per_step, small_config

from accel_restore.commands.verify_resume import compare

PHOTOS = 17, 2  # training, validation
LENGTH = {"steps_per_epoch": 8, "max_steps": 27}  # three epochs of 8 steps, the last one of 3: 27 × 6 / 17 = 9.5 passes
STAGES = [
    {"until_epoch": 1, "patch_size": 8, "global_batch_size": 12},
    {"until_epoch": 3, "patch_size": 12, "batch_size": 1},
]


def configuration(photos, out: Path, name: str, batch_size: int = 2, **sections) -> dict:
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": batch_size, "patch_size": 16, "mixup": {"probability": 0.5}, **sections.pop("data", {})},
        train={"global_batch_size": 6, "ema_decay": 0.9, **LENGTH, **sections.pop("train", {})},
        scheduler={"name": "multistep", "milestones": [2], **sections.pop("scheduler", {})},
        tracking={"wandb": "disabled", "log_every_steps": 5},
        **sections,
    )


def lengths(config: dict) -> list[int]:
    return [line["optimizer_steps"] for line in epochs_of(config)]


def differences(first: dict, second: dict) -> dict[str, str]:
    return {what: how for what, how in compare(run_folder(first), run_folder(second)) if how}


def assert_each_sample_once_per_pass(config: dict) -> None:
    """After any number of steps, the samples differ by at most one in how often they were taken."""
    seen: Counter[int] = Counter(dict.fromkeys(range(PHOTOS[0]), 0))
    for ids in samples_per_step(config).values():
        seen.update(ids)
        assert len(seen) == PHOTOS[0] and max(seen.values()) - min(seen.values()) <= 1


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> dict:
    """An uninterrupted, audited run of one rank, in float64."""
    config = configuration(photos, tmp_path_factory.mktemp("steps"), "whole", batch_size=3)
    assert forked.run(config, "--audit", mode="float64") == [0], forked.printed(config)
    return config


def test_epochs_have_their_number_of_steps_and_max_steps_is_exact(whole):
    assert lengths(whole) == [8, 8, 8, 3]
    assert_each_sample_once_per_pass(whole)
    assert [len(ids) for ids in samples_per_step(whole).values()] == [6] * 27
    steps = [event for event in audit_events(whole)[0] if event["op"] == "scheduler_step"]
    assert [event["step"] for event in steps] == [8, 16, 24, 27]
    assert [line["lr"] for line in epochs_of(whole)] == [0.001, 0.001, 0.0005, 0.0005]
    plan = json.loads((run_folder(whole) / "plan.json").read_text())
    rows = dict(plan["plan"])
    assert (plan["epochs"], plan["steps"], rows["samples per epoch"]) == (4, 27, "48")
    assert rows["steps"] == "8 per epoch × 3 epochs + 3 in the last = 27"
    assert rows["passes"] == "9.53 over 17 samples, 2.82 per epoch"


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_takes_the_same_samples(ranks, whole, photos, tmp_path):
    config = configuration(photos, tmp_path, "ranks", batch_size=1 if ranks == 3 else 3)
    assert forked.run(config, "--audit", ranks=ranks, mode="float64") == [0] * ranks, forked.printed(config)
    assert samples_per_step(config) == samples_per_step(whole)
    assert [line["lr"] for line in epochs_of(config)] == [line["lr"] for line in epochs_of(whole)]
    for file in ("model.safetensors", "ema.safetensors"):
        expected = last_weights(whole, file)
        for key, value in last_weights(config, file).items():
            assert (value - expected[key]).norm() <= 1e-9 * expected[key].norm(), key


@pytest.mark.parametrize("step", [8, 19, 27])
def test_a_run_stopped_anywhere_and_continued_ends_bit_identical(step, whole, photos, tmp_path):
    config = configuration(photos, tmp_path, "whole", batch_size=3)
    assert forked.run(config, "--audit", "--stop-after", str(step), mode="float64") == [143]
    assert forked.run(config, "--audit", mode="float64") == [0], forked.printed(config)
    assert differences(whole, config) == {}
    assert samples_per_step(config) == samples_per_step(whole)


def test_control_without_its_place_in_the_stream_a_continued_run_ends_otherwise(whole, photos, tmp_path):
    config = configuration(photos, tmp_path, "whole", batch_size=3)
    assert forked.run(config, "--stop-after", "19", mode="float64") == [143]
    assert forked.run(config, mode="float64,forget=place") == [0]
    assert differences(whole, config)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.sweep), 2])
def test_a_killed_run_with_stages_and_accumulation_ends_bit_identical(ranks, photos, tmp_path):
    whole, killed = (
        configuration(photos, tmp_path, name, data={"stages": STAGES}, checkpoint={"every_steps": 3})
        for name in ("whole", "killed")
    )
    for config in (whole, killed):
        config["data"]["batch_size"] = 3 // ranks
    assert forked.run(whole, "--audit", ranks=ranks) == [0] * ranks, forked.printed(whole)
    for step in (7, 14, 26):  # in each stage
        assert set(forked.run(killed, "--audit", ranks=ranks, mode=f"kill:{step}")) != {0}
    assert forked.run(killed, "--audit", ranks=ranks) == [0] * ranks
    assert differences(whole, killed) == {} and samples_per_step(killed) == samples_per_step(whole)
    assert lengths(whole) == [8, 8, 8, 3]
    assert [len(ids) for ids in samples_per_step(whole).values()] == [12] * 8 + [6] * 19
    assert_each_sample_once_per_pass(whole)


def test_a_run_made_longer_goes_back_to_the_start_of_an_epoch_that_was_cut_short(photos, tmp_path):
    longer, extended = (configuration(photos, tmp_path, name, train=train) for name, train in (
        ("longer", {"max_steps": 30}), ("extended", {})
    ))  # fmt: skip
    assert forked.run(longer) == forked.run(extended) == [0]
    assert lengths(extended) == [8, 8, 8, 3]
    extended["train"]["max_steps"] = 30
    assert forked.run(extended) == [0], forked.printed(extended)
    said = forked.printed(extended)
    assert "train.max_steps cut epoch 4 short by 5 steps" in said and "going back to step-00000024" in said
    assert lengths(extended) == [8, 8, 8, 6] and differences(longer, extended) == {}


def test_a_run_cut_short_cannot_be_made_longer_without_an_earlier_checkpoint(photos, tmp_path):
    config = configuration(photos, tmp_path, "cut", checkpoint={"keep": 1})
    assert forked.run(config) == [0]
    folder = run_folder(config)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert forked.run(config) == [0]  # the same length: it is finished
    assert forked.run(config, "train.max_steps=100") == [2]
    said = forked.printed(config)
    assert "no checkpoint can be used" in said and "cut epoch 4 short by 5 steps" in said and "Traceback" not in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_length_of_an_epoch_is_fixed_when_a_run_continues(photos, tmp_path):
    config = configuration(photos, tmp_path, "fixed")
    assert forked.run(config, "--stop-after", "3") == [143]
    for given, now in (("train.steps_per_epoch=9", "9"), ("train.steps_per_epoch=null", "None")):
        assert forked.run(config, given) == [2]
        assert f"train.steps_per_epoch: 8 in the commit, {now} now" in forked.printed(config)


def test_a_global_batch_may_be_larger_than_a_pass(photos, tmp_path):
    train = {"global_batch_size": 40, "steps_per_epoch": 2, "max_steps": 5}
    config = configuration(photos, tmp_path, "large", batch_size=20, train=train)
    assert forked.run(config, "--audit") == [0], forked.printed(config)
    assert [len(ids) for ids in samples_per_step(config).values()] == [40] * 5
    assert_each_sample_once_per_pass(config)
    lines = [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "train"]
    assert [line["samples"] for line in lines] == [200]  # of 5 steps


def test_a_loss_that_is_nan_names_the_file_in_a_later_pass(photos, tmp_path):
    config = configuration(photos, tmp_path, "nan", train={"max_steps": 20}, data={"mixup": None})
    assert forked.run(config, "--audit", mode="nan@0:13") == [0], forked.printed(config)
    [skip] = [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "skip"]
    [found] = skip["of"]
    assert skip["step"] == 13 and found["files"]
    backward = [event for event in audit_events(config)[0] if event["op"] == "backward" and event["step"] == 13]
    assert [Path(file).name for file in found["files"]] == [f"photo{event['samples'][0]:03}.png" for event in backward]
