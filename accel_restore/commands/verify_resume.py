"""`accel-restore verify-resume`: check that a short run ends in the same state, whether interrupted or not."""

import json
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml

from accel_restore.checkpoint.commits import find_commits, read_commit
from accel_restore.commands._arguments import ConfigurationParser
from accel_restore.commands._children import error_of, run_module
from accel_restore.config.load import load_config
from accel_restore.config.schema import Config
from accel_restore.config.sets import named_sets
from accel_restore.errors import UserError
from accel_restore.tracking.console import Console
from accel_restore.tracking.run_files import read_lines, read_status
from accel_restore.trainer.batch_size import assume_batch_size

_STEPS = 3.5  # per epoch, so that the last step of an epoch is ragged
_FULL_STEPS = 3  # per epoch, with train.steps_per_epoch: the second epoch takes samples of two passes
_IMAGES = 4
_TIMES = ("seconds", "step_s", "wait_s")
_MAY_DIFFER = ("wandb_id", "config")  # keys of state.json: the two runs have different names


def main(arguments: list[str]) -> int:
    """Compare an interrupted run with an uninterrupted one; return exit code 0 if they are equal, else 1.

    Raises: UserError if the configuration is invalid or does not train.
    """
    parser = ConfigurationParser(prog="accel-restore verify-resume", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    options = parser.parse_configuration(arguments)
    if options.processes < 1:
        raise UserError("verify-resume: --processes must be above 0")
    console = Console(True)
    config = assume_batch_size(load_config(options.config, options.overrides), console.log)
    with tempfile.TemporaryDirectory(prefix="accel-restore-verify-") as folder:
        launcher = _Launcher(Path(folder), short(config, options.processes), options.cpu, options.processes)
        console.log("a short uninterrupted run: 2 epochs of a few steps, on the first images")
        launcher.train("whole")
        points = interruptions(launcher.folder / "whole")
        console.log(f"the same run, stopped after step {', '.join(map(str, points))} and continued each time")
        for point in points:
            launcher.train("interrupted", "--stop-after", str(point))
        launcher.train("interrupted")
        rows = compare(launcher.folder / "whole", launcher.folder / "interrupted")
    console.table(
        "the continued run compared with the uninterrupted one",
        [(what, difference or "equal") for what, difference in rows],
        ("what", "result"),
    )
    if any(difference for _, difference in rows):
        console.log(
            "resuming this configuration is not exact: on CUDA set train.deterministic=true; a model of your own must "
            "hold all of its state in parameters and buffers"
        )
        return 1
    plural = "es" * (options.processes > 1)
    console.log(f"resuming is bit-identical with {options.processes} process{plural} on this machine")
    return 0


def short(config: Config, processes: int) -> dict[str, Any]:
    """Return the configuration of two short epochs, otherwise as in `config`."""
    tree = config.model_dump(mode="json")
    train, data = tree["train"], tree["data"]
    global_batch = train["global_batch_size"] or (
        data["batch_size"] * (train["gradient_accumulation_steps"] or 1) * processes
    )
    _limit_images(data, int(_STEPS * global_batch) + 1)
    data["stages"] = [{**stage, "until_epoch": 1} for stage in data["stages"][:1]]  # a change of stages is tested too
    train["epochs"], train["max_steps"] = 2, None
    train["steps_per_epoch"] = train["steps_per_epoch"] and min(train["steps_per_epoch"], _FULL_STEPS)
    tree["validation"]["num_samples"], tree["validation"]["every_epochs"] = 0, 1
    tree["checkpoint"] = {"every_epochs": 1, "every_steps": None, "keep": 2}
    tree["tracking"] = {
        "wandb": "disabled",
        "project": "verify",
        "log_every_steps": 3,
    }  # a line covers steps before and after a commit
    return tree


def _limit_images(data: dict[str, Any], samples: int) -> None:
    """Leave as many images in the section `data` as give about `samples` samples, with at least one crop of each."""
    sets = named_sets(data["train"])
    of_set = -(-samples // len(sets))  # the same of each
    images = 2
    for source in (data, *sets.values()):
        if crops := source.get("crops_per_image"):
            source["crops_per_image"] = min(crops, -(-of_set // _IMAGES))
    for source in sets.values():
        images = max(images, -(-of_set // (source["crops_per_image"] or data["crops_per_image"])))
    data["max_images"] = int(images / (1 - data["val_fraction"])) + 1 if data["val"] is None else images
    data["preview"] = None


class _Launcher:
    """Trains in separate processes, in a temporary folder."""

    def __init__(self, folder: Path, tree: dict[str, Any], cpu: bool, processes: int):
        self.folder = folder
        tree["data"]["cache_dir"] = str(folder / "cache")
        self.tree, self.arguments, self.processes = tree, ["--cpu"] if cpu else [], processes

    def train(self, name: str, *arguments: str) -> None:
        """Train to the end, or as far as the arguments say."""
        file = self.folder / f"{name}.yaml"
        self.tree["run"] = {**self.tree["run"], "name": name, "dir": str(self.folder), "resume": "auto"}
        file.write_text(yaml.safe_dump(self.tree), encoding="utf-8")
        given = ["--config", str(file), *self.arguments, *arguments]
        done = run_module("accel_restore.train", given, self.processes)
        if read_status(self.folder / name).get("state") != ("preempted" if arguments else "finished"):
            raise UserError(f"verify-resume: the short run failed\n{error_of(done)}")


def interruptions(folder: Path) -> list[int]:
    """Return the steps after which to interrupt: the first, in mid-epoch, at the end of an epoch, in the second."""
    epochs = [line for line in read_lines(folder / "metrics.jsonl") if line["event"] == "epoch"]
    per_epoch, last = epochs[0]["optimizer_steps"], epochs[-1]["step"]
    return sorted({1, max(1, per_epoch // 2), per_epoch, min(per_epoch + 1, last - 1)} - {0})


def compare(whole: Path, other: Path) -> list[tuple[str, str]]:
    """Return rows of (file or value, how it differs between the two runs; empty if it does not)."""
    commits = [find_commits(folder / "checkpoints")[-1] for folder in (whole, other)]
    files = [read_commit(commit) for commit in commits]
    rows = [("last step", "" if commits[0].name == commits[1].name else f"{commits[0].name}, {commits[1].name}")]
    tensors = [name for name in sorted(files[0]) if name.endswith(".safetensors")]
    rows += [(name, _tensors_differ(files[0][name], files[1].get(name, b""))) for name in tensors]
    states = [json.loads(those["state.json"]) for those in files]
    changed = [key for key in states[0] if key not in _MAY_DIFFER and states[0][key] != states[1].get(key)]
    rows.append(("counters, best value, sums", ", ".join(changed)))
    bests = [(folder / "best.safetensors") for folder in (whole, other)]
    contents = [best.read_bytes() if best.exists() else b"" for best in bests]
    rows.append(("best.safetensors of the run", _tensors_differ(*contents)))
    lines = [
        [{key: value for key, value in line.items() if key not in _TIMES} for line in read_lines(f / "metrics.jsonl")]
        for f in (whole, other)
    ]
    wrong = sum(a != b for a, b in zip(*lines, strict=False)) + abs(len(lines[0]) - len(lines[1]))
    rows.append(("metrics.jsonl, except times", f"{wrong} lines differ" if wrong else ""))
    return rows


def _tensors_differ(first: bytes, second: bytes) -> str:
    if first == second:
        return ""
    if not first or not second:
        return "missing in one run"
    one, two = (safetensors.torch.load(data) for data in (first, second))
    if one.keys() != two.keys():
        return "other tensors"
    largest = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    return f"differs by up to {largest:.2g}" if largest else "equal values, other metadata"
