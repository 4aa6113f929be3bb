"""Frozen parameters keep their values in every mode of training, and only the others are trained."""

import copy
import json

import pytest
import torch
from forked import launch
from runs import last_weights, run_folder, small_config, succeed
from torch import nn

from accel_restore.config.load import config_from
from accel_restore.config.optim import AdamW
from accel_restore.errors import UserError
from accel_restore.models import build_model
from accel_restore.models.parameters import freeze
from accel_restore.optim import get_optimizer

PHOTOS = 13, 1  # training, validation
FROZEN = ["body.0.*", "body.[23].*"]  # the first convolution, and the second with its batch norm


def dncnn() -> nn.Module:
    torch.manual_seed(0)
    return build_model("dncnn", {"width": 8, "depth": 4, "norm": "batch"}, 3)


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_patterns_select_parameters_by_name():
    net = dncnn()
    freeze(net, [])
    assert len(trainable(net)) == 10
    freeze(net, ["body.0.*", "*.bias"])
    assert trainable(net) == ["body.2.weight", "body.3.weight", "body.5.weight", "body.6.weight", "body.8.weight"]
    made = get_optimizer(net, AdamW())
    assert sum(len(group["params"]) for group in made.param_groups) == 5


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["body.0.*", "bdy.*"], r"no parameter matches 'bdy\.\*'; did you mean 'body\.\*'\?"),
        (["body.0.weigth"], r"no parameter matches 'body\.0\.weigth'; did you mean 'body\.0\.weight'\?"),
        (["encoder*"], r"no parameter matches 'encoder\*'; names start with body$"),
        (["body.*"], r"body\.\* freeze all parameters; leave some"),
        (["*.weight", "*.bias"], r"freeze all parameters"),
    ],
)
def test_invalid_patterns_are_rejected(patterns, said):
    with pytest.raises(UserError, match=rf"^train\.freeze: [^\n]*{said}"):
        freeze(dncnn(), patterns)


def test_a_pattern_must_be_a_string():
    for value in ("body.*", [""], [3]):
        with pytest.raises(UserError, match=r"train\.freeze"):
            config_from({"data": {"train": {"gt": "a"}}, "train": {"freeze": value}})


def test_a_frozen_norm_and_its_copies_keep_their_statistics():
    net = dncnn()
    freeze(net, ["body.3.*", "body.6.weight"])
    image = torch.rand(4, 3, 9, 9)
    for model in (net, copy.deepcopy(net)):
        before = copy.deepcopy(model.state_dict())
        model.train()
        assert model.body[6].training and not model.body[3].training
        model(image)
        changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
        assert changed == {f"body.6.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
        assert not model.eval().body[6].training  # control: only its weight is frozen
    assert net.body[3] is not copy.deepcopy(net).body[3]


def configuration(photos, out, name: str, ranks: int, norm: str = "none", patterns: list[str] = FROZEN) -> dict:
    """Return a configuration with 4 steps per epoch and commits at steps 3, 4, 6 and 8."""
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 2, "patch_size": 12},
        model={"name": "dncnn", "width": 8, "depth": 4, "norm": norm},
        optimizer={"weight_decay": 0.3, "no_decay": ["biases"]},
        train={
            "freeze": patterns,
            "ema_decay": 0.9,
            "max_grad_norm": 0.1,
            "check_ranks_every_steps": 1,
            "global_batch_size": {1: 4, 2: 4, 3: 6}[ranks],
        },
        checkpoint={"every_steps": 3, "keep": 9},
    )


@pytest.mark.parametrize(
    ("ranks", "norm"), [(1, "batch"), (2, "none"), pytest.param(3, "none", marks=pytest.mark.sweep)]
)
def test_a_run_trains_only_unfrozen_parameters_and_continues_bit_identically(photos, tmp_path, ranks, norm):
    patterns = FROZEN if norm == "batch" else ["body.0.*", "body.2.*"]
    whole, killed = (configuration(photos, tmp_path, name, ranks, norm, patterns) for name in ("whole", "killed"))
    shown = succeed(launch(whole, "--audit", ranks=ranks)).stdout
    assert json.loads((run_folder(whole) / "audit.json").read_text())["ok"]
    assert launch(killed, ranks=ranks, mode="kill:4").returncode != 0
    succeed(launch(killed, ranks=ranks))
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, other = (last_weights(config, file) for config in (whole, killed))
        assert list(one) == list(other) and all(one[name].equal(other[name]) for name in one), file

    torch.manual_seed(7)
    begun = build_model("dncnn", {"width": 8, "depth": 4, "norm": norm}, 3)
    weights, average = (last_weights(whole, file) for file in ("model.safetensors", "ema.safetensors"))
    kept = {name for name, tensor in begun.state_dict().items() if tensor.equal(weights[name])}
    freeze(begun, patterns)
    learns = set(trainable(begun))
    count = sum(parameter.numel() for parameter in begun.parameters() if parameter.requires_grad)
    assert f"{count:,} trained of " in shown
    statistics = {"body.3.running_mean", "body.3.running_var", "body.3.num_batches_tracked"}
    assert kept == {name for name, _ in begun.named_parameters()} - learns | (statistics if norm == "batch" else set())
    assert all(average[name].equal(weights[name]) for name in kept)
    assert all(not average[name].equal(weights[name]) for name in learns)
    assert {name.split("|")[0] for name in last_weights(whole, "optimizer.safetensors")} == learns


def test_an_invalid_pattern_ends_the_run_before_anything_is_written(photos, tmp_path):
    config = configuration(photos, tmp_path, "wrong", 1, patterns=["bdy.*"])
    process = launch(config)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "train.freeze: no parameter matches 'bdy.*'; did you mean 'body.*'?" in process.stderr
    assert not run_folder(config).exists()


def test_frozen_parameters_are_part_of_the_identity_of_a_run(photos, tmp_path):
    config = configuration(photos, tmp_path, "whole", 1, patterns=["body.0.*"])
    succeed(launch(config, "train.epochs=1"))
    refused = launch(config, "train.epochs=2", "train.freeze=[]")
    assert refused.returncode == 2 and "train.freeze: ['body.0.*'] in the commit, [] now" in refused.stderr
