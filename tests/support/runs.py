"""Shared helpers: small photographs, trainings in their own processes, and the files of a run."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import yaml
from photographs import photograph
from PIL import Image

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "accel_restore" / "train.py"
DRIVER = ROOT / "tests" / "support" / "driver.py"


def make_photos(folder: Path, count: int, seed: int = 0, least: int = 20, most: int = 40) -> Path:
    """Create a folder of `count` small crops, of different sizes, from the photographs of scikit-image."""
    sources = [photograph("astronaut"), photograph("coffee"), photograph("chelsea")]
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        photo = sources[index % len(sources)]
        height, width = random.integers(least, most, 2)
        top, left = (int(random.integers(0, size - most)) for size in photo.shape[:2])
        Image.fromarray(photo[top : top + height, left : left + width]).save(folder / f"photo{index:03d}.png")
    return folder


def small_config(photos: Path, val: Path, out: Path, **sections: dict) -> dict:
    """Return a configuration that trains in seconds: 3 epochs of crops of 16 pixels, tiny UNet, no network access."""
    config = {
        "run": {"name": "small", "dir": str(out), "seed": 7},
        "data": {
            "train": {"gt": str(photos)},
            "val": {"gt": str(val)},
            "patch_size": 16,
            "batch_size": 8,
            "degradation": [{"name": "gaussian_noise", "sigma": [5, 50]}],
            "cache_dir": str(out / "cache"),
        },
        "model": {"name": "unet", "width": 8},
        "train": {"epochs": 2},
        "validation": {"metrics": ["psnr"]},
        "tracking": {"wandb": "disabled", "log_every_steps": 1},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return config


def launch(
    config: dict,
    *arguments: str,
    ranks: int = 1,
    script: Path = TRAIN,
    env: dict | None = None,
    timeout: int = 300,
    launcher_options: Sequence[str] = (),
) -> subprocess.CompletedProcess:
    """Train in `ranks` real processes under torchrun and return the finished launcher."""
    file = Path(config["run"]["dir"]) / f"{config['run']['name']}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config))
    command = command_line(ranks, script, launcher_options)
    return subprocess.run(
        [*command, "--config", str(file), "--cpu", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**clean_environment(), **(env or {})},
    )


def command_line(ranks: int, script: Path, options: Sequence[str] = ()) -> list[str]:
    if ranks == 1:
        return [sys.executable, str(script)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--master_addr", "127.0.0.1"]
    torchrun += ["--master_port", str(free_port())]
    return [*torchrun, *options, "--nproc_per_node", str(ranks), str(script)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment() -> dict[str, str]:
    """Return the environment without a launcher's or an account's variables; one thread is fastest for tiny tensors."""
    unwanted = ("WANDB_", "ACCELERATE_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**kept, "OMP_NUM_THREADS": "1"}


def succeed(process: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """Return the process if it has succeeded; otherwise fail the test with its output."""
    assert process.returncode == 0, f"exit {process.returncode}\n{process.stdout[-3000:]}\n{process.stderr[-6000:]}"
    return process


def run_folder(config: dict) -> Path:
    return Path(config["run"]["dir"]) / config["run"]["name"]


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def epochs_of(config: dict) -> list[dict]:
    return [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "epoch"]


def audit_events(config: dict) -> list[list[dict]]:
    """Return the audit's events of each rank."""
    files = sorted((run_folder(config) / "audit").glob("rank*.jsonl"))
    return [json_lines(file) for file in files]


def samples_per_step(config: dict) -> dict[tuple[int, int], list[int]]:
    """Return (epoch, step) → the sorted sample ids of all ranks and micro-batches."""
    steps: dict[tuple[int, int], list[int]] = {}
    for events in audit_events(config):
        for event in events:
            if event["op"] == "backward":
                steps.setdefault((event["epoch"], event["step"]), []).extend(event["samples"])
    return {step: sorted(ids) for step, ids in steps.items()}


def last_weights(config: dict, file: str = "model.safetensors") -> dict:
    newest = sorted((run_folder(config) / "checkpoints").glob("step-*"))[-1]
    return safetensors.torch.load_file(newest / file)
