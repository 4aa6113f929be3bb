"""Optimizers and schedules by import path in real runs: refused, skipped, audited, stopped in a validation."""

import signal

import forked
import pytest
from forked import launch
from runs import json_lines, last_weights, run_folder, small_config, succeed
from safetensors.torch import load_file
from watched import GENEROUS, same, start_forked, status

PHOTOS = 14, 2  # training, validation


def configuration(photos, out, name="mine", ranks=1, **sections):
    return small_config(*photos, out, run={"name": name}, data={"batch_size": 4 // ranks}, **sections)


@pytest.mark.parametrize("name", ["pytorch_optimizer:ScheduleFreeAdamW", "own_parts:wrapped"])
def test_a_run_stopped_in_a_validation_continues_bit_identically(photos, tmp_path, name):
    sections = {"optimizer": {"name": name, "lr": 0.01}, "scheduler": {"name": "constant"}}
    whole, stopped = (configuration(photos, tmp_path, run, **sections) for run in ("whole", "stopped"))
    succeed(launch(whole, "--audit"))
    training = start_forked(stopped, f"await=image:1:{GENEROUS}")
    training.wait_for("image", rank=0, count=1)
    training.signal(signal.SIGTERM)
    assert training.exit_codes() == [143]
    assert (status(stopped)["state"], status(stopped)["step"]) == ("preempted", 4)
    succeed(launch(stopped, "--audit"))
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "best.safetensors"):
        assert same(last_weights(stopped, file), last_weights(whole, file)), file
    assert not same(last_weights(whole, "ema.safetensors"), last_weights(whole))  # the control: it evaluates others
    step = status(whole)["best"]["step"]
    evaluated = load_file(run_folder(whole) / f"checkpoints/step-{step:08}/ema.safetensors")
    assert same(last_weights(whole, "best.safetensors"), evaluated)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"optimizer": {"name": "own_parts:Hidden"}}, "own_parts:Hidden makes other steps after its state was loaded"),
        ({"scheduler": {"name": "own_parts:negative"}, "train": {"epochs": 3}}, "gives the learning rate -0.001"),
    ],
)
def test_a_wrong_part_is_refused_on_all_ranks_before_anything_is_written(photos, tmp_path, sections, said):
    refused = launch(configuration(photos, tmp_path, ranks=2, **sections), ranks=2)
    assert refused.returncode == 2 and said in " ".join(refused.stdout.split())
    assert "Traceback" not in refused.stdout
    assert not run_folder({"run": {"dir": str(tmp_path), "name": "mine"}}).exists()


def test_all_ranks_skip_a_step_with_a_non_finite_gradient(photos, tmp_path):
    config = configuration(photos, tmp_path, ranks=2, optimizer={"name": "pytorch_optimizer:Lion", "lr": 0.001})
    succeed(launch(config, "--audit", "train.check_ranks_every_steps=1", ranks=2, mode="nan@1:2"))
    (skipped,) = (line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "skip")
    assert skipped["step"] == 2
    assert all(value.isfinite().all() for value in last_weights(config).values())


def test_the_audit_finds_a_schedule_that_changes_the_rate_in_the_optimizers_step(photos, tmp_path):
    config = configuration(photos, tmp_path, scheduler={"name": "own_parts:sneaking"})
    assert forked.run(config, "--audit") == [1]
    assert "the learning rate changed in optimizer_step, outside scheduler.step" in " ".join(
        forked.printed(config).split()
    )
