"""A request to stop is answered within the validation of one image, tiled or whole, and the run then continues."""

import json
import os
import signal

import pytest
import safetensors.torch
import torch
from runs import json_lines, make_photos, small_config

from accel_restore import fit
from accel_restore.models.unet import UNet
from accel_restore.tracking.console import Console
from accel_restore.utils.stoppable import stoppable

KINDS = {"whole": {}, "tiled": {"tile": 80}, "self_ensemble": {"self_ensemble": True}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return make_photos(root / "train", 8), make_photos(root / "val", 1, seed=1, least=150, most=151)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_within_an_image_saves_and_continues_bit_identically(photos, tmp_path, monkeypatch, one_thread, kind):
    forward, seen = UNet.forward, []

    def counting(model, images):
        if not torch.is_grad_enabled():
            seen.append(images.shape)
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                while signal.getsignal(signal.SIGTERM).__self__.signal is None:
                    pass
        return forward(model, images)

    def train(name):
        config = small_config(*photos, tmp_path, run={"name": name}, validation={"metrics": ["psnr"], **KINDS[kind]})
        return fit(config, cpu=True)

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", counting)
        with pytest.raises(SystemExit):
            train("stopped")
    assert len(seen) == 1, "nothing is computed after the request"
    folder = tmp_path / "stopped"
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    assert not [line for line in json_lines(folder / "metrics.jsonl") if line["event"] == "epoch"]
    train("stopped")
    for name in ("model", "optimizer"):
        ours, theirs = (
            safetensors.torch.load_file(sorted((run / "checkpoints").iterdir())[-1] / f"{name}.safetensors")
            for run in (folder, whole)
        )
        assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


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
