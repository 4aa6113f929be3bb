"""A request to stop is answered within the validation of one image, tiled or whole, and the run then continues."""

import json
import os
import signal
import threading
import time

import pytest
import safetensors.torch
import torch
from runs import json_lines, make_photos, small_config

from accel_restore import fit
from accel_restore.callbacks import pictures as callback_pictures
from accel_restore.data import val_dataset
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.metrics import psnr_ssim
from accel_restore.models.unet import UNet
from accel_restore.tracking.console import Console
from accel_restore.utils.stoppable import stoppable

KINDS = {"whole": {}, "tiled": {"tile": 80}, "self_ensemble": {"self_ensemble": True}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return make_photos(root / "train", 8), make_photos(root / "val", 1, seed=1, least=150, most=151)


def heard():
    return signal.getsignal(signal.SIGTERM).__self__


def stopping(function, seen):
    """Return a function that counts its calls in a validation in `seen`, and asks to stop in the first."""

    def counting(*given, **named):
        in_validation = not torch.is_grad_enabled() or threading.current_thread() is not threading.main_thread()
        if in_validation and heard().may_save:
            seen.append(None)
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                while heard().signal is None:
                    time.sleep(0.001)
        return function(*given, **named)

    return counting


def train(photos, out, name, *, stop=None, **sections):
    """Train; with `stop`, (owner, attribute) of a function, until its first call in a validation. Return its calls."""
    config = small_config(*photos, out, run={"name": name}, **sections)
    seen = []
    if stop is None:
        fit(config, cpu=True)
        return 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(*stop, stopping(getattr(*stop), seen))
        fit(config, cpu=True)
    return len(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_within_an_image_saves_and_continues_bit_identically(photos, tmp_path, one_thread, kind):
    sections = {"validation": {"metrics": ["psnr"], **KINDS[kind]}}
    train(photos, tmp_path, "whole", **sections)
    count = train(photos, tmp_path, "stopped", stop=(UNet, "forward"), **sections)
    assert count == 1, "nothing is computed after the request"
    folder = tmp_path / "stopped"
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    assert not [line for line in json_lines(folder / "metrics.jsonl") if line["event"] == "epoch"]
    train(photos, tmp_path, "stopped", **sections)
    for name in ("model", "optimizer"):
        ours, theirs = (
            safetensors.torch.load_file(sorted((run / "checkpoints").iterdir())[-1] / f"{name}.safetensors")
            for run in (folder, tmp_path / "whole")
        )
        assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_stop_while_an_image_is_scored_is_answered_before_its_next_block(photos, tmp_path):
    sections = {"validation": {"metrics": ["ssim"]}}
    assert train(photos, tmp_path, "stopped", stop=(psnr_ssim, "ssim_factors"), **sections) == 1, "of four blocks"
    assert json.loads((tmp_path / "stopped" / "status.json").read_text())["state"] == "preempted"


def test_a_stop_while_an_image_is_read_is_answered_before_its_next_operation(photos, tmp_path, monkeypatch):
    degrade, seeds = DegradationPipeline.__call__, []
    monkeypatch.setattr(DegradationPipeline, "__call__", lambda *given: seeds.append(given[2][0]) or degrade(*given))
    assert train(photos, tmp_path, "stopped", stop=(val_dataset, "to_float")) == 1
    assert json.loads((tmp_path / "stopped" / "status.json").read_text())["state"] == "preempted"
    assert seeds and val_dataset.seed_of("photo000") not in seeds
    train(photos, tmp_path, "other")
    assert val_dataset.seed_of("photo000") in seeds  # the control


def test_a_stop_while_previews_are_restored_leaves_the_rest(photos, tmp_path):
    sections = {"data": {"preview": str(photos[0])}}
    assert train(photos, tmp_path, "stopped", stop=(callback_pictures, "preview_row"), **sections) == 1, "of eight"
    status = json.loads((tmp_path / "stopped" / "status.json").read_text())
    assert status["state"] == "preempted" and status["epoch"] == 1 and status["best"]["epoch"] == 0


def test_stoppable_leaves_the_block_at_the_next_operation():
    done, asked = [], []
    with stoppable(lambda: bool(asked)):
        for step in range(5):
            torch.ones(1) + step
            done.append(step)
            if step == 2:
                asked.append(True)
    assert done == [0, 1, 2]
    torch.ones(1)  # the control: outside, nothing is asked


def test_log_and_bar_say_how_far_a_validation_is(monkeypatch, capsys):
    console = Console(True)
    console.start(2, 10, 0)
    console.validating(3, 20)
    assert "validating" not in capsys.readouterr().out, "at most one line in 30 s"
    console.last_line -= 31
    console.validating(4, 20)
    assert capsys.readouterr().out == "validating 4/20\n"

    monkeypatch.setattr(console, "shows_bars", True)
    console.start(2, 10, 0)
    console.update(0, 5, 0.1, 1e-3, 10.0)
    values = console.progress.tasks[0].fields["values"]
    console.validating(3, 20)
    assert console.progress.tasks[0].fields["values"] == "validating 3/20"
    console.validated()
    assert console.progress.tasks[0].fields["values"] == values and values.startswith("loss 0.1")
    console.stop()
