"""`fit` leaves the process as it was, takes Python's values, and does not run twice at once."""

import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import wandb
from runs import small_config
from wandb.errors import term
from wandb.sdk import wandb_setup

import accel_restore
from accel_restore import fit, load, train
from accel_restore.config.load import config_from
from accel_restore.distributed import accelerator as distributed
from accel_restore.errors import UserError
from accel_restore.state import Callback
from accel_restore.tracking.wandb_client import restored_output
from accel_restore.trainer import run as session

PHOTOS = 8, 1  # training, validation


def test_tifffile_is_quiet_while_a_file_is_read_and_as_before_afterwards(tmp_path):
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), description="text", software="", metadata=None)
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["ImageDescription"].offset
    content = bytearray(path.read_bytes())
    content[tag + 4 : tag + 12] = struct.pack("<II", 100, 10**6)  # count and offset: behind the file's end
    path.write_bytes(content)
    ours = "from accel_restore.data.decode import read_header; read_header(Path(sys.argv[1]))"
    theirs = "import tifffile; tifffile.TiffFile(sys.argv[1]).pages[0].tags"
    texts = []
    for program in (ours, f"{ours}; {theirs}"):
        command = [sys.executable, "-c", f"import sys; from pathlib import Path; {program}", str(path)]
        texts.append(subprocess.run(command, check=True, capture_output=True, text=True).stderr)
    assert texts[0] == "" and "invalid value offset" in texts[1]


def test_wandb_prints_after_fit_as_before_it():
    settings = wandb_setup.singleton().settings
    silent = settings.silent
    with restored_output():
        settings.silent = True
        wandb.termsetup(settings, SimpleNamespace())
    assert wandb_setup.singleton().settings.silent == term._silent == silent
    assert term._logger is None


@pytest.mark.parametrize("arguments", [["--cpu"], []])
def test_the_command_tunes_malloc_and_threads(monkeypatch, arguments):
    seen = []
    monkeypatch.setattr(distributed, "tune_cpu", seen.append)
    monkeypatch.setattr(session, "run_training", lambda *given, **named: None)
    assert train.main(arguments) == 0
    assert seen == [bool(arguments)]


def test_a_second_fit_in_the_process_is_refused(photos, tmp_path, monkeypatch):
    refused = []

    def again():
        try:
            fit(small_config(*photos, tmp_path / "second"), cpu=True)
        except UserError as error:
            refused.append(str(error))

    class Nested(Callback):
        def on_step(self, state):
            if state.step == 1:
                again()
                thread = threading.Thread(target=again)
                thread.start()
                thread.join()

    make_callbacks = session.make_callbacks
    monkeypatch.setattr(session, "make_callbacks", lambda *given: [*make_callbacks(*given), Nested()])
    fit(small_config(*photos, tmp_path), cpu=True)
    assert len(refused) == 2 and all("another training is running in this process" in text for text in refused)
    assert not (tmp_path / "second").exists()
    monkeypatch.undo()
    again()  # the control: afterwards it trains
    assert (tmp_path / "second" / "small" / "best.safetensors").exists() and len(refused) == 2


def test_fit_in_another_thread_trains(photos, tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(fit(small_config(*photos, tmp_path), cpu=True)))
    thread.start()
    thread.join()
    restorer = load(done[0] / "best.safetensors")
    assert repr(restorer) == "Restorer(unet, 266,160 weights, channels=3, scale=1, device='cpu')"


def test_paths_tuples_and_numpy_values_are_taken_as_yaml_would_give_them():
    tree = {
        "run": {"dir": Path("runs"), "seed": np.int64(3)},
        "data": {"train": {"gt": (Path("a"), Path("b"))}, "val_fraction": np.float64(0.25), "patch_size": np.uint8(16)},
        "optimizer": {"name": np.str_("adamw"), "betas": np.array([0.5, 0.75])},
        "train": {"deterministic": np.bool_(True)},
    }
    config = config_from(tree)
    assert (config.run.dir, config.run.seed, config.data.train.gt) == ("runs", 3, ["a", "b"])
    assert (config.data.val_fraction, config.data.patch_size, config.train.deterministic) == (0.25, 16, True)
    assert list(config.optimizer.betas) == [0.5, 0.75]


def test_fit_and_load_are_listed():
    assert {"fit", "load"} <= set(dir(accel_restore))
