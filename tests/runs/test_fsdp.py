"""FSDP2 over gloo gives the same run and the same commits as full weights on every rank."""

import pytest
import safetensors.torch
import torch
from forked import launch
from runs import audit_events, epochs_of, json_lines, last_weights, run_folder, small_config, succeed
from torch import nn

from accel_restore.models import build_model
from accel_restore.models.blocks import ChannelNorm
from accel_restore.models.compile import repeated_blocks

PHOTOS = 29, 3  # training, validation
FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"]
STOP_STEP = 6  # in the second epoch; an epoch has four steps


def configuration(photos, out, ranks, **sections):
    return small_config(
        *photos,
        out,
        data={"batch_size": 8 // ranks},
        train={"epochs": 3, "ema_decay": 0.9, "max_grad_norm": 0.5, "check_ranks_every_steps": 1},
        checkpoint={"every_steps": 1, "keep": 20},
        validation={"metrics": ["psnr", "ssim"]},
        **sections,
    )


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    """A float64 run with full weights on one rank."""
    config = configuration(photos, tmp_path_factory.mktemp("plain"), 1)
    succeed(launch(config, "--audit", mode="float64"))
    return config


@pytest.fixture(scope="module")
def parts(photos, tmp_path_factory):
    """The same run with FSDP2 on 2 ranks, which sum gradients in the same order as DDP."""
    config = configuration(photos, tmp_path_factory.mktemp("parts"), 2) | {"callbacks": ["own_callbacks:WholeModel"]}
    succeed(launch(config, "--audit", ranks=2, mode="float64,fsdp2"))
    return config


def assert_same_run(config, reference):
    for file in FILES:
        weights, expected = last_weights(config, file), last_weights(reference, file)
        assert list(weights) == list(expected)
        for name, value in expected.items():
            assert (weights[name] - value).norm() <= 1e-9 * value.norm() + 1e-15, (file, name)
    for line, expected in zip(epochs_of(config), epochs_of(reference), strict=True):
        for key in ("train_loss", "val_loss", "val_psnr", "val_ssim", "lr"):
            assert line[key] == pytest.approx(expected[key], rel=1e-6)
    best = [safetensors.torch.load_file(run_folder(c) / "best.safetensors") for c in (config, reference)]
    torch.testing.assert_close(*best, rtol=1e-6, atol=1e-9)


def test_sharded_weights_train_like_full_weights(parts, plain):
    assert_same_run(parts, plain)
    assert [len(events) for events in audit_events(parts)] == [len(audit_events(plain)[0])] * 2


def test_a_sharded_run_continues_bit_identically(photos, parts, tmp_path):
    config = configuration(photos, tmp_path, 2)
    stopped = launch(config, ranks=2, mode=f"float64,fsdp2,kill:{STOP_STEP}")
    assert stopped.returncode != 0
    succeed(launch(config, ranks=2, mode="float64,fsdp2"))
    for file in FILES:
        for name, value in last_weights(parts, file).items():
            assert torch.equal(last_weights(config, file)[name], value), (file, name)


def test_a_run_sharded_over_four_ranks_continues_unsharded_on_two(photos, plain, tmp_path):
    config = configuration(photos, tmp_path, 4)
    accumulated = ("data.batch_size=1", "train.gradient_accumulation_steps=2")
    stopped = launch(config, *accumulated, ranks=4, mode=f"float64,fsdp2@NO_WRAP,kill:{STOP_STEP}")
    assert stopped.returncode != 0
    succeed(launch(config, "data.batch_size=4", ranks=2, mode="float64"))
    assert_same_run(config, plain)


def test_mixed_precision_keeps_weights_and_gradient_sums_in_float32(photos, tmp_path):
    def losses(name, mode):
        config = configuration(photos, tmp_path, 2, run={"name": name})
        succeed(launch(config, "train.epochs=1", "train.mixed_precision=bf16", ranks=2, mode=mode))
        lines = json_lines(run_folder(config) / "metrics.jsonl")
        return torch.tensor([line["loss"] for line in lines if line["event"] == "train"])

    whole, in_parts, rounded = losses("ddp", ""), losses("fsdp2", "fsdp2"), losses("own", "fsdp2,without=float32_parts")
    assert (in_parts - whole).abs().max() < 1e-5
    assert (rounded - whole).abs().max() > 1e-4  # control: Accelerate's default policy


def test_all_shards_skip_a_step_with_a_non_finite_loss(photos, tmp_path):
    config = configuration(photos, tmp_path, 2)
    succeed(launch(config, "train.epochs=1", ranks=2, mode="fsdp2,nan@1:2"))
    lines = json_lines(run_folder(config) / "metrics.jsonl")
    (skipped,) = (line for line in lines if line["event"] == "skip")
    assert skipped["step"] == 2
    assert all(value.isfinite().all() for value in last_weights(config).values())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer={name: muon}", "optimizer.name: muon needs full weights"),
        ("optimizer={name: 'torch.optim:RAdam'}", "optimizer.name: torch.optim:RAdam needs full weights"),
        ("data.batch_size=auto", "data.batch_size: auto needs full weights"),
    ],
)
def test_features_that_need_full_weights_are_rejected(photos, tmp_path, override, said):
    refused = launch(configuration(photos, tmp_path, 2), override, ranks=2, mode="fsdp2")
    assert refused.returncode == 2 and said in refused.stdout


def test_fsdp1_is_rejected(photos, tmp_path):
    refused = launch(configuration(photos, tmp_path, 2), ranks=2, mode="fsdp1")
    assert refused.returncode == 2 and "use one of launch/*.yaml" in refused.stdout


@pytest.mark.parametrize(
    ("model", "block"), [("unet", "Block"), ("nafnet", "NAFBlock"), ("restormer", "TransformerBlock")]
)
def test_repeated_blocks_are_found(model, block):
    assert {type(found).__name__ for found in repeated_blocks(build_model(model, {}, 3, 1))} == {block}
    assert repeated_blocks(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))) == []
    norms = nn.Sequential(ChannelNorm(3), nn.Conv2d(3, 3, 3), ChannelNorm(3), nn.Conv2d(3, 3, 3))
    assert repeated_blocks(norms) == [], "they hold few of its parameters"
