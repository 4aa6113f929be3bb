"""Tests that need a GPU: precisions, bit-identical resuming, NCCL launchers, device waits, compile, memory."""

import copy
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import (
    DRIVER,
    ROOT,
    clean_environment,
    epochs_of,
    json_lines,
    last_weights,
    make_photos,
    run_folder,
    small_config,
    succeed,
)

import accel_restore
from accel_restore import engine, train
from accel_restore.cli import main
from accel_restore.inference.restorer import Restorer
from accel_restore.models import build_model
from accel_restore.optim.muon import Muon
from accel_restore.registry import MODELS
from accel_restore.state import Callback

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LAUNCH = ROOT / "launch"


def config_of(folder: Path, name: str = "small", **sections: dict) -> dict:
    """Return a configuration of 8 steps in 2 epochs, with all features that keep state on the device."""
    photos, val = folder / "train", folder / "val"
    if not photos.exists():
        make_photos(photos, 29), make_photos(val, 3, seed=1)
    made = small_config(photos, val, folder, **{"model": {"width": 16}, **sections})
    made["run"]["name"] = name
    made["train"] = {"epochs": 2, "max_grad_norm": 1.0, "ema_decay": 0.9, "channels_last": True, **made["train"]}
    return made


def train_here(config: dict, *arguments: str, launcher: tuple = (), mode: str = "") -> subprocess.CompletedProcess:
    """Train on the GPU in a new process, which `launcher` (a module and its options) starts if given."""
    file = Path(config["run"]["dir"]) / f"{config['run']['name']}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, *launcher, str(DRIVER), "--config", str(file), *arguments]
    environment = {**clean_environment(), "RUN_TEST_MODE": mode}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
FSDP2 = ("-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "fsdp2.yaml"), "--num_processes", "1")


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_each_precision_learns_like_the_cpu(tmp_path, precision):
    given = {"train": {"mixed_precision": precision, "epochs": 6}, "optimizer": {"name": "muon", "lr": 0.003}}
    config = config_of(tmp_path, **given)
    succeed(train_here(config))
    control = config_of(tmp_path, "control", optimizer=given["optimizer"], train={"epochs": 6})
    succeed(train_here(control, "--cpu"))
    plan = json.loads((run_folder(config) / "plan.json").read_text())
    assert "cuda" in json.dumps(plan).lower()
    last, other = epochs_of(config)[-1], epochs_of(control)[-1]
    assert last["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)
    assert last["val_psnr"] == pytest.approx(other["val_psnr"], abs=0.3)
    assert not [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "skip"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_step_with_a_non_finite_loss_is_skipped(tmp_path, optimizer):
    config = config_of(tmp_path, optimizer={"name": optimizer}, data={"batch_size": 4})
    config["train"]["max_grad_norm"] = None
    succeed(train_here(config, mode="nan@0:3"))
    skips = [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "skip"]
    assert [line["step"] for line in skips] == [3] and skips[0]["of"][0]["files"]
    for file in ("model.safetensors", "ema.safetensors"):
        assert all(tensor.isfinite().all() for tensor in last_weights(config, file).values())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_stopped_run_continues_bit_identically(tmp_path, precision, name):
    given = {
        "train": {"deterministic": True, "mixed_precision": precision},
        "optimizer": {"name": name},
        "data": {"batch_size": 4},
    }
    whole, parts = config_of(tmp_path, "whole", **given), config_of(tmp_path, "parts", **given)
    succeed(train_here(whole))
    assert train_here(parts, "--stop-after", "5").returncode == 143
    succeed(train_here(parts))
    for file in ("model.safetensors", "ema.safetensors"):
        one, other = last_weights(whole, file), last_weights(parts, file)
        assert all(torch.equal(one[key], other[key]) for key in one)
    ours, theirs = (json_lines(run_folder(each) / "metrics.jsonl") for each in (whole, parts))
    losses = [[line["loss"] for line in lines if line["event"] == "train"] for lines in (ours, theirs)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("launcher", [TORCHRUN, FSDP2], ids=["nccl", "fsdp2"])
def test_training_under_a_launcher_gives_the_same_scores(tmp_path, launcher):
    given = {"train": {"channels_last": False, "mixed_precision": "bf16"}}
    config, control = config_of(tmp_path, **given), config_of(tmp_path, "control", **given)
    process = succeed(train_here(config, launcher=launcher, mode="backend"))
    assert re.search("joined by .*nccl", process.stdout) and ("FSDP2" in process.stdout) == (launcher is FSDP2)
    succeed(train_here(control))
    for one, other in zip(epochs_of(config), epochs_of(control), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
        assert one["val_psnr"] == pytest.approx(other["val_psnr"], abs=0.1)


def test_a_run_started_sharded_continues_unsharded(tmp_path):
    config = config_of(tmp_path, train={"channels_last": False}, data={"batch_size": 4})
    assert train_here(config, "--stop-after", "5", launcher=FSDP2).returncode != 0
    assert json.loads((run_folder(config) / "status.json").read_text())["state"] == "preempted"
    process = succeed(train_here(config))
    assert "step-00000005" in process.stdout + process.stderr


@pytest.mark.parametrize(("every", "due"), [(4, {4, 8, 12, 16}), (20, set())])
def test_a_step_waits_for_the_gpu_once(tmp_path, monkeypatch, every, due):
    """torch counts the waits: one to check that the gradient is finite, one more if a log line is due."""
    config = config_of(tmp_path, tracking={"log_every_steps": every}, data={"batch_size": 4})
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    waits, before_step, original = {}, [], engine.train_epoch

    class Note(Callback):
        """Runs last, and records the waits of the step."""

        def on_step(self, state):
            waits[state.step] = [f"{Path(each.filename).name}:{each.lineno}" for each in caught]
            caught.clear()

    def noted(state, steps, loss_fn, accelerator, callbacks=(), max_grad_norm=None):
        caught.clear()
        step = state.optimizer.step
        state.optimizer.step = lambda: (before_step.extend(caught), step())
        torch.cuda.set_sync_debug_mode("warn")
        try:
            return original(state, steps, loss_fn, accelerator, [*callbacks, Note()], max_grad_norm)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            state.optimizer.step = step

    monkeypatch.setattr(engine, "train_epoch", noted)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation.*")
        assert train.main(["--config", str(file)]) == 0
    assert not [each for each in before_step if "engine.py" in each.filename]
    waits.pop(1)  # the first step includes one-time setup
    assert len(waits) == 15 and all(len(those) == (2 if step in due else 1) for step, those in waits.items()), waits


def test_the_fused_optimizer_takes_the_steps_of_adamw(tmp_path):
    """The engine's optimizer on the GPU takes the same steps as plain AdamW on the CPU."""
    config = accel_restore.config.schema.Config.model_validate({"data": {"train": {"gt": "x"}}})
    models = [build_model("unet", {"width": 8}, 3, 1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].cuda()
    optimizers = [
        engine.get_optimizer(m, config.optimizer, fused=on) for m, on in zip(models, (False, True), strict=True)
    ]
    assert all(group["fused"] for group in optimizers[1].param_groups)
    for seed in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            random = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter.device)
            optimizer.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-5, atol=1e-6)


def test_muon_takes_the_same_steps_as_on_the_cpu():
    weights = torch.randn(3, 32, 24, 3, 3, generator=torch.Generator().manual_seed(0))
    both = [[torch.nn.Parameter(w.clone().to(device)) for w in weights] for device in ("cpu", "cuda")]
    for parameters in both:
        optimizer = Muon(parameters, 0.01)
        for update in range(3):
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.grad = weight.roll(update, 0).sin().to(parameter.device)
            optimizer.step()
    for one, other, start in zip(*both, weights, strict=True):
        assert (one.detach() - other.detach().cpu()).norm() < 0.02 * (one.detach() - start).norm()


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("unet", True),
        ("nafnet", True),
        ("unet", "max-autotune-no-cudagraphs"),
        ("unet", "reduce-overhead"),
        ("dncnn", "reduce-overhead"),  # has no blocks, so the whole model is compiled
    ],
)
def test_compiled_blocks_train_to_the_same_loss(tmp_path, name, setting):
    given = {"model": {"name": name, "width": 8}, "train": {"epochs": 1}}
    made = [config_of(tmp_path, f"compile-{on}", **given) for on in (setting, False)]
    for config, on in zip(made, (setting, False), strict=True):
        config["train"]["compile"] = on
        succeed(train_here(config))
    one, other = (epochs_of(config)[-1] for config in made)
    assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
    assert one["val_psnr"] == pytest.approx(other["val_psnr"], abs=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_restores_like_float32(name):
    torch.manual_seed(0)
    model = build_model(name, {}, 3, 1).eval()
    images = torch.rand(1, 3, 96, 80)
    described = {"model": {"name": name}, "data": {"channels": 3}}
    plain = Restorer(model, described, torch.device("cpu"))
    on_gpu = Restorer(copy.deepcopy(model).cuda(), described, torch.device("cuda"))
    expected = plain(images)
    change = (expected - images).norm()
    assert (on_gpu(images).cpu() - expected).norm() < 5e-3 * max(change, 1)  # convolutions may use TF32
    for precision in ("bf16", "fp16"):
        assert (on_gpu(images, precision=precision).cpu() - expected).norm() < 2e-2 * max(change, 1)


def test_tiles_get_smaller_if_gpu_memory_is_too_small(tmp_path):
    config = config_of(tmp_path)
    succeed(train_here(config))
    best = run_folder(config) / "best.safetensors"
    image = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)
    restorer = accel_restore.load(best, device="cuda")
    expected = np.asarray(restorer(image, tile=256), float)
    room = (torch.cuda.memory_reserved() + 60e6) / torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):  # control
            restorer.model(torch.rand(1, 3, 1024, 1024, device="cuda"))
        output = np.asarray(restorer(image, tile=None), float)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.abs(output - expected).mean() < 0.5


def test_restore_and_evaluate_use_the_gpu_by_default(tmp_path):
    config = config_of(tmp_path)
    succeed(train_here(config))
    best, val = str(run_folder(config) / "best.safetensors"), config["data"]["val"]["gt"]
    scores, taken = {}, {}
    for name, given in (("cpu", ["--cpu"]), ("gpu", [])):
        file = tmp_path / f"{name}.json"
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        assert main(["evaluate", best, "--run", str(run_folder(config)), "--json", str(file), *given]) == 0
        taken[name] = torch.cuda.max_memory_allocated() - before
        scores[name] = json.loads(file.read_text())["mean"]["psnr"]
    assert scores["gpu"] == pytest.approx(scores["cpu"], abs=0.02) and taken["cpu"] == 0 < taken["gpu"]
    assert main(["restore", best, val, "-o", str(tmp_path / "restored")]) == 0
    assert len(list((tmp_path / "restored").iterdir())) == len(list(Path(val).iterdir()))
