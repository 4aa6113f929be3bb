"""Adversarial training in real processes: every promise that is kept for one network is kept for two."""

import json

import forked
import pytest
import torch
from runs import audit_events, json_lines, last_weights, run_folder, small_config, succeed

from accel_restore.commands.verify_resume import compare

PHOTOS = 29, 3  # training, validation
LAYOUTS = {"1x8": (1, 8, 1), "2x4": (2, 4, 1), "1x4x2": (1, 4, 2), "4x2": (4, 2, 1)}  # ranks, batch, accumulation
DISCRIMINATOR = {"name": "unet_sn", "width": 4}
FILES = ("model", "discriminator", "optimizer", "discriminator_optimizer")
STEPS = 8  # two epochs of four; the last of each has fewer samples


def configuration(photos, out, name="small", ranks=1, **sections):
    adversarial = {"discriminator": DISCRIMINATOR, "weight": 0.05, **sections.pop("adversarial", {})}
    train = {"epochs": 2, "gradient_accumulation_steps": 2, "ema_decay": 0.9, **sections.pop("train", {})}
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 4 // ranks},
        checkpoint={"every_steps": 1, "keep": 2},
        train=train,
        adversarial=adversarial,
        **sections,
    )


def differences(first, second):
    return {what: how for what, how in compare(run_folder(first), run_folder(second)) if how}


def lines(config, event="train"):
    return [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == event]


@pytest.mark.parametrize(
    "adversarial",
    [
        {"r1": 1.0, "r1_every": 3, "loss": "relativistic"},
        pytest.param({"generator_every": 2}, marks=pytest.mark.sweep),
        pytest.param({"discriminator_every": 2}, marks=pytest.mark.sweep),
    ],
)
def test_both_networks_are_the_same_on_any_number_of_ranks(photos, tmp_path, adversarial):
    configs = {}
    for name, (ranks, batch_size, accumulation) in LAYOUTS.items():
        config = configuration(photos, tmp_path, name, adversarial=adversarial)
        config["data"]["batch_size"] = batch_size
        config["train"]["gradient_accumulation_steps"] = accumulation
        succeed(forked.launch(config, ranks=ranks, mode="float64"))
        configs[name] = config
    for file in FILES:
        expected = last_weights(configs["1x8"], f"{file}.safetensors")
        assert expected
        for config in configs.values():
            for key, value in last_weights(config, f"{file}.safetensors").items():
                assert (value - expected[key]).norm() <= 1e-9 * max(expected[key].norm(), 1e-3), (file, key)


@pytest.mark.parametrize(
    ("ranks", "sections"),
    [
        (1, {"train": {"mixed_precision": "bf16", "max_grad_norm": 0.5}, "adversarial": {"r1": 1.0, "r1_every": 3}}),
        pytest.param(
            2,
            {
                "adversarial": {
                    "loss": "relativistic",
                    "starts_at_epoch": 1,
                    "generator_every": 2,
                    "optimizer": {"name": "sgd", "momentum": 0.9},
                    "scheduler": {"name": "step", "step_size": 1},
                }
            },
            marks=pytest.mark.sweep,
        ),
    ],
    ids=["bf16, R1", "2 ranks, SGD"],
)
def test_a_run_interrupted_after_every_step_ends_bit_identical(photos, tmp_path, ranks, sections):
    whole, broken = (
        configuration(photos, tmp_path, name, ranks, **json.loads(json.dumps(sections))) for name in ("whole", "broken")
    )
    assert forked.run(whole, ranks=ranks) == [0] * ranks
    for step in range(1, STEPS + 1):
        assert forked.run(broken, "--stop-after", str(step), ranks=ranks) == [143] * ranks
    assert forked.run(broken, ranks=ranks) == [0] * ranks
    assert differences(whole, broken) == {}
    assert "discriminator.safetensors" in dict(compare(run_folder(whole), run_folder(broken)))


@pytest.mark.parametrize("forgotten", ["discriminator", "discriminator_optimizer"])
def test_control_without_the_discriminators_state_the_run_ends_differently(photos, tmp_path, forgotten):
    whole, broken = (configuration(photos, tmp_path, name) for name in ("whole", "broken"))
    assert forked.run(whole) == [0]
    assert forked.run(broken, "--stop-after", "3") == [143]
    assert forked.run(broken, mode=f"forget={forgotten}") == [0]
    assert any("discriminator" in what for what in differences(whole, broken))


def test_a_killed_run_continues_bit_identical(photos, tmp_path):
    whole, broken = (configuration(photos, tmp_path, name, 2) for name in ("whole", "broken"))
    assert forked.run(whole, ranks=2) == [0, 0]
    for step in (2, 5):
        assert all(code for code in forked.run(broken, ranks=2, mode=f"kill:{step}"))
    assert forked.run(broken, ranks=2) == [0, 0]
    assert differences(whole, broken) == {}


def test_the_audit_has_each_operation_of_both_networks(photos, tmp_path):
    config = configuration(photos, tmp_path, ranks=2)
    process = succeed(forked.launch(config, "--audit", ranks=2))
    audit = json.loads((run_folder(config) / "audit.json").read_text())
    assert audit["ok"] and audit["ranks"] == 2
    rows = {row["operation"]: (row["calls"], row["weights_changed"], row["lr_changed"]) for row in audit["table"]}
    backwards = 2 * (2 + 2 + 2 + 2)
    for suffix in ("", " (discriminator)"):
        assert rows[f"zero_grad{suffix}"] == (STEPS, 0, 0)
        assert rows[f"accelerator.backward{suffix}"] == (backwards, 0, 0)
        assert rows[f"optimizer.step{suffix}"] == (STEPS, STEPS, 0)
        assert f"optimizer.step{suffix}" in process.stdout
    assert rows["scheduler.step"] == (2, 0, 2)
    assert rows["scheduler.step (discriminator)"] == (2, 0, 0)  # a constant rate
    micro_batch = ["backward", "backward (discriminator)"]
    steps = ["optimizer_step", "optimizer_step (discriminator)"]
    step = ["zero_grad", "zero_grad (discriminator)", *micro_batch, *micro_batch, *steps]
    for events in audit_events(config):
        assert [event["op"] for event in events][: len(step)] == step


def test_the_audit_finds_a_change_of_the_discriminator_elsewhere(photos, tmp_path):
    config = configuration(photos, tmp_path, train={"epochs": 1})
    process = forked.launch(config, "--audit", mode="discriminator_outside_step")
    assert process.returncode == 1
    said = "weights (discriminator) changed before zero_grad, outside optimizer.step (discriminator)"
    assert said in " ".join(process.stderr.split())


def test_ranks_whose_discriminators_differ_are_reported(photos, tmp_path):
    config = configuration(photos, tmp_path, ranks=2)
    codes = forked.run(config, ranks=2, mode="discriminator_flip@1:2")
    assert codes == [1, 1]
    assert "weights differ from those of rank" in forked.printed(config) and "discriminator." in forked.printed(config)


def test_from_three_ranks_on_the_discriminator_trains_with_batch_statistics(photos, tmp_path):
    config = configuration(photos, tmp_path, adversarial={"discriminator": {"name": "own_parts:Normed"}})
    config["data"]["batch_size"], config["train"]["gradient_accumulation_steps"] = 2, 1
    assert forked.run(config, ranks=3) == [0, 0, 0], forked.printed(config)
    assert int(last_weights(config, "discriminator.safetensors")["norm.num_batches_tracked"]) > 0


def test_both_steps_are_skipped_on_all_ranks_if_one_is_not_finite(photos, tmp_path):
    ends = {}
    for mode in ("nan@1:3", "inf@0:3"):
        config = configuration(photos, tmp_path, mode, 2)
        assert forked.run(config, "--audit", ranks=2, mode=mode) == [0, 0], forked.printed(config)
        assert [(line["step"], line["in_row"]) for line in lines(config, "skip")] == [(3, 1)]
        ends[mode] = {file: last_weights(config, f"{file}.safetensors") for file in FILES}
    for file in FILES:
        one, other = (end[file] for end in ends.values())
        assert all(torch.equal(value, other[key]) and value.isfinite().all() for key, value in one.items())
    whole = configuration(photos, tmp_path, "whole", 2)
    assert forked.run(whole, ranks=2) == [0, 0]
    second = last_weights(whole, "discriminator.safetensors")
    assert not all(torch.equal(value, second[key]) for key, value in ends["nan@1:3"]["discriminator"].items())


def test_lines_and_best_weights(photos, tmp_path):
    config = configuration(photos, tmp_path, ranks=2, adversarial={"starts_at_epoch": 1})
    assert forked.run(config, ranks=2) == [0, 0]
    names = ("d_loss", "d_real", "d_fake", "d_accuracy", "g_share")
    for line in lines(config):
        assert ("adversarial" in line["terms"]) and "d_lr" in line and "d_grad_norm" in line
        assert all((line[name] is None) == (line["epoch"] < 1) for name in names)
    assert all("val_terms" not in line for line in lines(config, "epoch"))
    best = last_weights(config, "best.safetensors")
    assert best.keys() == last_weights(config).keys()  # the generator alone


@pytest.mark.parametrize(
    ("adversarial", "said"),
    [
        ({"discriminator": {"name": "vgg", "size": 128}}, "adversarial.discriminator"),
        ({"discriminator": {"name": "patch", "depth": 3}}, "adversarial.discriminator.depth: unknown key"),
        ({"discriminator": {"checkpoint": "gone.pth"}}, "adversarial.discriminator.checkpoint: gone.pth"),
        ({"optimizer": {"name": "own_parts:Warming"}}, "adversarial.optimizer.name: own_parts:Warming changes"),
        ({"scheduler": {"name": "own_parts:undefined"}}, "adversarial.scheduler.name: own_parts:undefined gives"),
        ({"weight": 0}, "adversarial.weight"),
        ({"starts_at_epoch": 2}, "adversarial.starts_at_epoch: 2, but the run has 2 epochs"),
    ],
)
def test_wrong_input_is_refused_with_its_key(photos, tmp_path, adversarial, said):
    config = configuration(photos, tmp_path, adversarial=adversarial)
    assert forked.run(config) == [2]
    assert said in " ".join(forked.printed(config).split())
    assert not run_folder(config).exists()
