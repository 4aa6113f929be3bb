"""The commands as a user runs them: exit codes, messages, launchers, the files of a run, an installed wheel.

Runs are forked where the command line itself is not tested. Standard output and error are then one stream.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile

import forked
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from runs import ROOT, TRAIN, clean_environment, json_lines, launch, make_photos, run_folder, small_config, succeed

PHOTOS = 12, 3  # training, validation
no_gpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without a GPU")


def test_every_unusable_file_is_named_before_anything_is_written(photos, tmp_path):
    gt, noisy = tmp_path / "gt", tmp_path / "noisy"
    for folder in (gt, noisy):
        make_photos(folder, 8)
    content = (noisy / "photo000.png").read_bytes()
    (noisy / "photo000.png").write_bytes(content[: len(content) // 2])
    (noisy / "photo001.png").write_bytes(b"")
    (gt / "photo002.png").write_text("not an image")
    (noisy / "photo003.png").unlink()
    Image.open(gt / "photo004.png").resize((25, 33)).save(noisy / "photo004.png")
    for folder in (gt, noisy):
        Image.new("RGB", (9, 40)).save(folder / "photo005.png")
    config = small_config(*photos, tmp_path / "runs", data={"train": {"input": str(noisy), "gt": str(gt)}})
    process = launch(config)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    for file, reason in [
        (noisy / "photo000.png", "is damaged"),
        (noisy / "photo001.png", "is empty"),
        (gt / "photo002.png", "is not a readable image"),
        (gt / "photo003.png", "has no partner"),
        (noisy / "photo004.png", "they must be of equal size"),
        (gt / "photo005.png", "data.patch_size; lower it"),
    ]:
        assert any(str(file) in line and reason in line for line in process.stderr.splitlines()), (file, reason)
    assert not run_folder(config).exists()
    assert not list((tmp_path / "runs" / "cache").glob("*.tmp"))


def test_a_wrong_configuration_gives_one_message_and_exit_code_2(photos, tmp_path):
    config = small_config(*photos, tmp_path, optimizer={"lrr": 1}, model={"name": "unett"})
    process = forked.launch(config)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "optimizer.lrr: unknown key; did you mean 'optimizer.lr'?" in process.stderr
    assert "did you mean 'unet'?" in process.stderr
    argument = forked.launch(small_config(*photos, tmp_path, model={"name": "unet", "widht": 8}))
    assert argument.returncode == 2 and "model.widht: unknown key; did you mean 'model.width'?" in argument.stderr
    assert not run_folder(config).exists()


@no_gpu
def test_the_exit_code_is_kept_if_standard_error_is_closed():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(TRAIN), "--config", "none.yaml"]
    assert subprocess.run(command, stderr=writing, env=clean_environment()).returncode == 2
    os.close(writing)


def test_settings_that_need_a_gpu_are_rejected_on_a_cpu(photos, tmp_path):
    config = small_config(*photos, tmp_path)
    half = launch(config, "train.mixed_precision=fp16")
    assert half.returncode == 2 and "fp16 needs a GPU" in half.stderr
    # Two processes without --cpu would each train alone and write the same files.
    command = [sys.executable, str(TRAIN), "--config", str(tmp_path / "small.yaml")]
    launched = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    alone = subprocess.run(command, capture_output=True, text=True, env={**clean_environment(), **launched})
    assert alone.returncode == 2 and "add --cpu" in alone.stderr
    assert not run_folder(config).exists()


def test_a_diverging_run_exits_with_code_3_and_a_message(photos, tmp_path):
    config = small_config(*photos, tmp_path)
    process = forked.launch(config, "optimizer={name: sgd, lr: 1.0e+30}", "data.batch_size=2")
    assert process.returncode == 3 and "training has diverged" in process.stderr and "Traceback" not in process.stderr
    assert json.loads((tmp_path / "small" / "status.json").read_text())["state"] == "diverged"
    assert not (tmp_path / "small" / "best.safetensors").exists()


def test_accelerate_starts_two_processes_and_the_run_leaves_its_files(photos, tmp_path):
    config = small_config(*photos, tmp_path, data={"batch_size": 2}, train={"max_grad_norm": 1.0})
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    process = succeed(
        subprocess.run(
            [*accelerate, "--config_file", ROOT / "launch" / "cpu_2proc.yaml", TRAIN, "--cpu", "--config", file],
            capture_output=True,
            text=True,
            env=clean_environment(),
        )
    )
    assert "4 = 2 per device × 1 accumulated × 2 ranks" in process.stdout
    assert process.stdout.count("finished: best epoch") == 1
    folder = run_folder(config)
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["epoch"], status["step"], status["world_size"]) == ("finished", 2, 6, 2)
    assert {"config.yaml", "metrics.jsonl", "best.safetensors", "checkpoints", "samples", "curves.png"} <= {
        path.name for path in folder.iterdir()
    }
    assert Image.open(folder / "samples" / "epoch-0001.png").width > 60
    assert Image.open(folder / "curves.png").width > 500

    lines = json_lines(folder / "metrics.jsonl")
    steps = [line for line in lines if line["event"] == "train"]
    assert [(line["step"], line["rank"]) for line in steps] == [(s, r) for s in range(1, 7) for r in (0, 1)]
    assert sum(line["samples"] for line in steps) == 2 * 12
    assert all(line["grad_norm"] > 0 and line["wait_s"] >= 0 for line in steps)
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [(line["optimizer_steps"], line["scheduler_steps"]) for line in epochs] == [(3, 1), (3, 1)]
    for epoch in epochs:  # the mean over the samples of all ranks
        mine = [line for line in steps if line["epoch"] == epoch["epoch"]]
        assert epoch["train_loss"] == pytest.approx(sum(line["loss"] * line["samples"] for line in mine) / 12)


def test_an_unreachable_server_neither_stops_nor_blocks_training(photos, tmp_path):
    config = small_config(*photos, tmp_path, train={"epochs": 1}, tracking={"wandb": "auto"})
    nowhere = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    process = succeed(launch(config, env=nowhere, timeout=80))  # W&B alone would retry for 100 seconds
    assert "W&B cannot be reached" in process.stdout and "finished: best epoch 1" in process.stdout
    assert list((run_folder(config) / "wandb").glob("offline-run-*"))
    for file in ("config.yaml", "metrics.jsonl", "status.json"):
        assert "aaaaaaaa" not in (run_folder(config) / file).read_text()


def test_a_user_model_by_import_path_trains_and_loads(photos, tmp_path):
    (tmp_path / "mynets.py").write_text(
        "import torch\nclass Shift(torch.nn.Module):\n"
        "    def __init__(self, *, channels, start=0.0):\n"
        "        super().__init__()\n        self.shift = torch.nn.Parameter(torch.full((channels, 1, 1), start))\n"
        "    def forward(self, input):\n        return input + self.shift\n"
    )
    config = small_config(*photos, tmp_path, model={"name": "mynets:Shift", "start": 0.25})
    del config["model"]["width"]
    succeed(launch(config, env={"PYTHONPATH": str(tmp_path)}))
    code = "import accel_restore, sys; print(accel_restore.load(sys.argv[1]).model.shift.flatten().tolist())"
    loaded = subprocess.run(
        [sys.executable, "-c", code, run_folder(config) / "best.safetensors"],
        capture_output=True,
        text=True,
        env={**clean_environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert loaded.returncode == 0, loaded.stderr
    assert all(0 < abs(value - 0.25) < 0.02 for value in json.loads(loaded.stdout))


def test_out_of_memory_is_reported_with_remedies(photos, tmp_path):
    for fails_in, key in (("training", "data.batch_size"), ("validation", "validation.tile")):
        config = small_config(*photos, tmp_path)
        config["model"] = {"name": "test_entry:Greedy", "fails_in": fails_in}
        process = forked.launch(config, "--overwrite")
        assert process.returncode == 2 and "Traceback" not in process.stdout
        (line,) = (line for line in process.stdout.splitlines() if line.startswith("accel-restore: "))
        assert f"not enough memory for {fails_in}" in line and key in line and "Tried to allocate 9 GiB" in line
        assert key in json.loads((run_folder(config) / "status.json").read_text())["error"]


class Greedy(torch.nn.Conv2d):
    """A model that needs more memory than the GPU has."""

    def __init__(self, *, channels: int = 3, scale: int = 1, fails_in: str = "training"):
        super().__init__(channels, channels, 1)
        self.fails_in = fails_in

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training == (self.fails_in == "training"):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")
        return super().forward(images)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.sweep)])  # each process compiles separately
def test_a_compiled_model_saves_and_resumes_under_its_plain_names(photos, tmp_path, ranks):
    config = small_config(*photos, tmp_path, data={"batch_size": 2}, train={"compile": True, "ema_decay": 0.9})
    config["model"] = {"name": "dncnn", "width": 4, "depth": 3}
    for epochs in (1, 2):  # compiling is slow on a busy machine
        succeed(forked.launch(config, f"train.epochs={epochs}", ranks=ranks, timeout=300))
    names = set(safetensors.torch.load_file(run_folder(config) / "best.safetensors"))
    assert names == {f"body.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_networks_of_adversarial_training_take_the_same_steps(tmp_path):
    """Also with R1, which needs second derivatives, and with a discriminator whose layers are blocks."""
    judge = {"discriminator": {"name": "patch", "width": 2}, "weight": 0.05, "r1": 1.0, "r1_every": 2}
    photos = make_photos(tmp_path / "train", 9, least=30), make_photos(tmp_path / "val", 1, least=30)
    losses = []
    for compiled in (False, True):
        config = small_config(*photos, tmp_path, run={"name": f"compiled-{compiled}"}, train={"epochs": 1})
        config |= {"model": {"name": "dncnn", "width": 4, "depth": 3}, "adversarial": judge}
        config["data"] |= {"batch_size": 2, "patch_size": 24}
        succeed(forked.launch(config, f"train.compile={compiled}", timeout=300))
        lines = json_lines(run_folder(config) / "metrics.jsonl")
        losses.append([(line["loss"], line["d_loss"]) for line in lines if line["event"] == "train"])
    assert len(losses[0]) > 4 and len(set(losses[0])) == len(losses[0])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-3, atol=1e-5)


def test_no_module_shadows_another_when_train_is_run_as_a_script():
    ours = {path.stem for path in (ROOT / "accel_restore").iterdir() if not path.name.startswith("__")}
    # the package's own folder, and what installs tests next to it, are not libraries
    installed = set(importlib.metadata.packages_distributions()) - {"accel_restore"}
    assert not ours & set(sys.stdlib_module_names)
    assert not ours & installed


def test_an_installed_wheel_trains_the_demo_from_any_folder(tmp_path):
    pytest.importorskip("hatchling")
    dist, site, elsewhere = tmp_path / "dist", tmp_path / "site", tmp_path / "elsewhere"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", dist]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {"accel_restore/configs/demo.yaml", "accel_restore/launch/multi_gpu.yaml"} <= set(archive.namelist())
        archive.extractall(site)
    elsewhere.mkdir()
    quick = ["data.crops_per_image=1", "data.cache_dir=cache", "train.epochs=1", "tracking.wandb=disabled"]
    process = subprocess.run(
        [sys.executable, "-m", "accel_restore.train", "--cpu", "model.width=8", *quick],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env={**clean_environment(), "PYTHONPATH": str(site)},
    )
    succeed(process)
    assert (elsewhere / "runs" / "demo" / "best.safetensors").is_file()
