"""NaN and inf in losses and gradients on one rank: all ranks skip the step, and a diverging run ends before it replaces
good weights. Ranks whose weights differ are reported."""

import json
import math

import forked
import pytest
import torch
from runs import audit_events, json_lines, last_weights, run_folder, small_config

from accel_restore.checkpoint.commits import find_commits, read_commit
from accel_restore.metrics.protocol import Protocol
from accel_restore.state import Scores

PHOTOS = 32, 3  # training, validation
RANKS, STEPS = 2, 4  # per epoch; there are two epochs


def configuration(photos, out, name="small", **train):
    return small_config(
        *photos, out, run={"name": name}, data={"batch_size": 4}, checkpoint={"every_steps": 1, "keep": 2}, train=train
    )


def train(photos, out, mode, *arguments, **settings):
    """Return the exit codes and the configuration of a training on two ranks."""
    config = configuration(photos, out, **settings)
    return forked.run(config, *arguments, ranks=RANKS, mode=mode), config


def lines(config, event):
    return [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == event]


def status(config):
    return json.loads((run_folder(config) / "status.json").read_text())


def is_finite(weights):
    return all(value.isfinite().all() for value in weights.values())


def are_equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_all_ranks_skip_a_step_that_is_non_finite_on_one(photos, tmp_path):
    ends = {}
    for mode in ("nan@1:3", "inf@0:3", "gradient@1:3"):
        codes, config = train(photos, tmp_path, mode, "--audit", name=mode)
        assert codes == [0, 0], forked.printed(config)
        ends[mode] = last_weights(config)
        assert [(line["step"], line["in_row"]) for line in lines(config, "skip")] == [(3, 1)]
        assert all(math.isfinite(line["train_loss"]) for line in lines(config, "epoch"))
        assert "epoch 1, step 3: NaN or inf in" in forked.printed(config)
    # The cause and its place do not matter: the same step is skipped.
    assert is_finite(ends["nan@1:3"])
    assert are_equal(ends["nan@1:3"], ends["inf@0:3"]) and are_equal(ends["nan@1:3"], ends["gradient@1:3"])
    codes, config = train(photos, tmp_path, "", name="whole")
    assert codes == [0, 0] and not are_equal(last_weights(config), ends["nan@1:3"])


def test_the_files_and_the_non_finite_term_of_the_loss_are_named(photos, tmp_path):
    config = configuration(photos, tmp_path)
    config["loss"] = {"l1": 1.0, "mse": 0.5}
    assert forked.run(config, "--audit", ranks=RANKS, mode="nan@1:6") == [0, 0]
    (samples,) = (
        event["samples"] for event in audit_events(config)[1] if (event["op"], event["step"]) == ("backward", 6)
    )
    file = str(photos[0] / f"photo{samples[0]:03d}.png")
    (line,) = lines(config, "skip")
    assert line["of"] == [{"rank": 1, "files": [file], "terms": ["l1", "mse"]}]
    assert f"epoch 2, step 6: NaN or inf in loss l1, mse on rank 1 of {file}" in forked.printed(config)


@pytest.mark.parametrize("guard", ["gradient", "loss"])
def test_control_without_the_guard_the_step_is_taken(photos, tmp_path, guard):
    codes, config = train(photos, tmp_path, f"nan@1:3,without={guard}")
    assert not lines(config, "skip")
    if guard == "gradient":
        assert codes == [3, 3]  # at the commit, one step later
        assert "some weights are NaN or inf" in forked.printed(config)
    else:
        assert codes == [0, 0]


def test_n_consecutive_non_finite_steps_end_the_run_and_keep_the_last_good_commit(photos, tmp_path):
    codes, config = train(photos, tmp_path, "nan@1:6:99", max_skipped_steps=3)
    assert codes == [3, 3], forked.printed(config)
    assert status(config)["state"] == "diverged"
    printed = forked.printed(config)
    assert "Traceback" not in printed and printed.count("training has diverged") == 1
    assert "3 consecutive steps were skipped" in printed and "photo" in printed

    # The last good commit, and later ones with the same weights.
    commits = {int(path.name[5:]): read_commit(path) for path in find_commits(run_folder(config) / "checkpoints")}
    assert 5 in commits and max(commits) == 7
    assert len({commits[step]["model.safetensors"] for step in (5, 6, 7)}) == 1
    assert is_finite(last_weights(config)) and is_finite(last_weights(config, "best.safetensors"))

    # Once the cause is removed, the same command continues.
    assert forked.run(config, ranks=RANKS) == [0, 0]
    assert status(config)["state"] == "finished" and status(config)["step"] == 2 * STEPS


def test_fewer_consecutive_non_finite_steps_do_not_end_the_run(photos, tmp_path):
    codes, config = train(photos, tmp_path, "nan@0:2:3,inf@1:5:6", max_skipped_steps=3)
    assert codes == [0, 0], forked.printed(config)
    assert [(line["step"], line["in_row"]) for line in lines(config, "skip")] == [(2, 1), (3, 2), (5, 1), (6, 2)]


def test_the_count_of_skipped_steps_continues_after_a_resumption(photos, tmp_path):
    codes, config = train(photos, tmp_path, "nan@0:2:99", "--stop-after", "3", max_skipped_steps=3)
    assert codes == [143, 143]
    assert forked.run(config, ranks=RANKS, mode="nan@0:2:99") == [3, 3]
    assert [(line["step"], line["in_row"]) for line in lines(config, "skip")] == [(2, 1), (3, 2), (4, 3)]


def test_a_non_finite_score_is_never_the_best():
    def value(loss, psnr, monitor):
        return Protocol().monitored_value(Scores(loss, {"psnr": psnr}, {}, {}), monitor)

    for score in (math.nan, math.inf):
        assert not value(score, 20.0, "loss") < math.inf
    assert not value(1.0, math.nan, "psnr") < math.inf
    assert value(1.0, 20.0, "psnr") < math.inf  # control


def test_ranks_with_different_weights_are_named_before_a_commit(photos, tmp_path):
    for check_every, ranks in ((2, 3), (1000, 2)):
        config = configuration(photos, tmp_path, f"every{check_every}", check_ranks_every_steps=check_every)
        config["data"]["batch_size"], config["checkpoint"] = 12 // ranks, {"every_steps": 2}
        codes = forked.run(config, ranks=ranks, mode="flip@1:3")
        printed = " ".join(forked.printed(config).split())
        assert codes == [1] * ranks, printed
        assert "rank 1's weights differ from those of rank 0 (first in " in printed and "Traceback" not in printed
        assert ("rank 1 differs from the majority" in printed) == (ranks == 3)
        assert status(config)["state"] == "failed" and "weights differ" in status(config)["error"]
        assert find_commits(run_folder(config) / "checkpoints")[-1].name == "step-00000002"
        assert forked.run(config, ranks=ranks) == [0] * ranks


def test_control_without_the_check_different_weights_go_unnoticed(photos, tmp_path):
    codes, config = train(photos, tmp_path, "flip@1:3,without=weights")
    assert codes == [0, 0] and status(config)["state"] == "finished"
