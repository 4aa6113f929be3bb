"""A run of an older version of the package can still be read and continues to the same weights."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import TRAIN, clean_environment, json_lines, succeed
from safetensors.torch import load_file

from accel_restore import load

OLD = Path(__file__).parents[1] / "fixtures" / "run_before_rooms"
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}  # other processors add in another order


def test_best_weights_of_an_old_run_are_read():
    restorer = load(OLD / "runs/old/best.safetensors")
    stored = load_file(OLD / "runs/old/best.safetensors")
    weights = restorer.model.state_dict()
    assert set(weights) == set(stored) and all(torch.equal(weights[name], stored[name]) for name in stored)


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """Continue the old run, stopped after step 6 of 12, with the current code and the original command."""
    folder = tmp_path_factory.mktemp("old") / "work"
    shutil.copytree(OLD, folder)
    command = [sys.executable, str(TRAIN), "--config", "old.yaml", "--cpu"]
    succeed(subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=300))
    return folder / "runs/old"


def test_an_old_run_continues_to_the_weights_of_an_uninterrupted_one(continued):
    for found, expected in (
        (continued / "checkpoints/step-00000012/model.safetensors", OLD / "final_model.safetensors"),
        (continued / "best.safetensors", OLD / "final_best.safetensors"),
    ):
        torch.testing.assert_close(load_file(found), load_file(expected), **ROUNDING)


def test_the_metrics_of_an_old_run_are_kept(continued):
    before, after = json_lines(OLD / "runs/old/metrics.jsonl"), json_lines(continued / "metrics.jsonl")
    assert after[: len(before)] == before and [line["step"] for line in after if line["event"] == "epoch"] == [4, 8, 12]
