"""Runs with `data.batch_size: auto`: all ranks use the same size, and a continued run keeps it."""

import json
import os

import yaml
from accelerate.state import AcceleratorState
from forked import codes, launch, start_ranks
from runs import make_photos, run_folder, small_config, succeed

from accel_restore.train import main
from accel_restore.trainer import batch_size


def automatic(tmp_path, **train) -> dict:
    photos = make_photos(tmp_path / "photos", 12)
    return small_config(photos, photos, tmp_path / "out", data={"batch_size": "auto"}, train={"epochs": 1, **train})


def _with_memory_for(config_file: str, sizes: dict[str, int]) -> int:
    """Run one rank of training, where each rank has memory for the given number of pairs."""
    batch_size.largest_on_cpu = lambda config, accelerator, loss_fn, possible: max(
        size for size in possible if size <= sizes[os.environ["RANK"]]
    )
    return main(["--config", config_file, "--cpu"])


def test_a_run_continued_on_another_world_size_keeps_its_global_batch_size(tmp_path):
    config = automatic(tmp_path)
    printed = succeed(launch(config)).stdout
    resolved = yaml.safe_load((run_folder(config) / "config.yaml").read_text())
    assert resolved["data"]["batch_size"] == 8  # of 12 samples per epoch
    assert "data.batch_size: auto is 8, the largest from 1 to 8 that fits" in printed
    plan = dict(json.loads((run_folder(config) / "plan.json").read_text())["plan"])
    assert plan["global batch"].startswith("8 = 8 per device")
    printed = succeed(launch(config, "train.epochs=2", ranks=2)).stdout
    assert "data.batch_size: auto is 8, as in step-" in printed
    plan = dict(json.loads((run_folder(config) / "plan.json").read_text())["plan"])
    assert plan["global batch"].startswith("8 = 4 per device × 1 accumulated × 2 ranks")


def test_all_ranks_use_the_size_that_fits_the_smallest_memory(tmp_path):
    config = automatic(tmp_path)
    file, log = tmp_path / "config.yaml", tmp_path / "log"
    file.write_text(yaml.safe_dump(config))
    assert codes(start_ranks(_with_memory_for, 2, log, str(file), {"0": 4, "1": 2})) == [0, 0], log.read_text()
    resolved = yaml.safe_load((run_folder(config) / "config.yaml").read_text())
    assert resolved["data"]["batch_size"] == 2 and log.read_text().count("auto is 2, the largest") == 1


def test_if_no_size_fits_an_error_is_reported_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    config = automatic(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(batch_size, "memory_bytes", lambda: 1000)
    assert main(["--config", str(file), "--cpu"]) == 2
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "data.batch_size: not even one pair of data.patch_size 16 fits" in capsys.readouterr().err
    assert not run_folder(config).exists()
