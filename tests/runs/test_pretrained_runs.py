"""Runs that start from a weight file. Their own weights restore images without that file."""

import pytest
import torch
from forked import launch
from runs import json_lines, last_weights, run_folder, small_config, succeed
from watched import same

import accel_restore

PHOTOS = 13, 2  # training, validation


def finetuning(photos, out, name, model, **sections):
    """Return the configuration of a run with 4 steps of 4 pairs per epoch and commits at steps 3, 4, 6 and 8."""
    sections = {"optimizer": {"lr": 1e-4}, "checkpoint": {"every_steps": 3, "keep": 100}, **sections}
    config = small_config(*photos, out, run={"name": name}, data={"batch_size": 4}, **sections)
    config["model"] = model
    return config


def test_a_run_starts_with_the_weights_of_another_and_restores_without_them(photos, tmp_path):
    first = finetuning(photos, tmp_path, "first", {"name": "unet", "width": 8})
    succeed(launch(first))
    best = run_folder(first) / "best.safetensors"
    score = max(line["val_psnr"] for line in json_lines(run_folder(first) / "metrics.jsonl") if "val_psnr" in line)
    second = finetuning(photos, tmp_path, "second", {"checkpoint": str(best)}, optimizer={"lr": 1e-12})
    shown = succeed(launch(second, "scheduler.name=constant")).stdout
    assert "UNet, " in shown and ", from" in shown
    lines = json_lines(run_folder(second) / "metrics.jsonl")
    assert next(line["val_psnr"] for line in lines if "val_psnr" in line) == pytest.approx(score, abs=1e-4)
    metadata = accel_restore.load(run_folder(second) / "best.safetensors").metadata
    assert metadata["model"] == {"name": "unet", "arguments": {"width": 8}}
    best.unlink()
    accel_restore.load(run_folder(second) / "best.safetensors")


def swinir() -> torch.nn.Module:
    """Return a tiny SwinIR for scale 2 with random weights, as spandrel builds it."""
    pytest.importorskip("spandrel", reason="the optional library spandrel is not installed")
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(1)
    sizes = {"img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8}
    return SwinIR(**sizes, upscale=2, upsampler="pixelshuffledirect", resi_connection="1conv")


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.sweep), 2])
def test_a_foreign_model_is_fine_tuned_and_continues_bit_identically(photos, tmp_path, ranks):
    net = swinir()
    file = tmp_path / "net.pth"
    torch.save({"params_ema": net.state_dict()}, file)
    scaled = {"data": {"batch_size": 4 // ranks, "scale": 2}, "train": {"epochs": 2, "ema_decay": 0.9}}
    whole, killed = (finetuning(photos, tmp_path, name, {"checkpoint": str(file)}) for name in ("whole", "killed"))
    for config in (whole, killed):
        for section, values in scaled.items():
            config[section].update(values)
        config["data"].pop("degradation")
    succeed(launch(whole, "--audit", ranks=ranks))
    assert launch(killed, ranks=ranks, mode="kill:5").returncode != 0
    succeed(launch(killed, ranks=ranks))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert same(last_weights(killed, name), last_weights(whole, name)), name
    assert not same(last_weights(whole), net.state_dict())  # the weights have changed

    file.unlink()
    refused = launch(killed, "train.epochs=3", ranks=ranks)  # the architecture must be known to continue
    assert refused.returncode == 2 and f"model.checkpoint: {file}: does not exist" in refused.stderr
    restorer = accel_restore.load(run_folder(whole) / "best.safetensors")
    assert restorer.metadata["model"] == {"name": "spandrel", "arguments": {}} and restorer.scale == 2
    assert list(restorer.model.state_dict()) == list(net.state_dict())
    assert restorer(torch.rand(3, 7, 9)).shape == (3, 14, 18)


def test_a_wrong_weight_file_is_rejected_before_anything_is_written(photos, tmp_path):
    config = finetuning(photos, tmp_path, "wrong", {"checkpoint": str(tmp_path / "missing.pth")})
    process = launch(config)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert f"model.checkpoint: {tmp_path / 'missing.pth'}: does not exist" in process.stderr
    assert not run_folder(config).exists()
