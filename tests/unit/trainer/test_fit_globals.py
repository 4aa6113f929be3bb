"""`fit` leaves the process as it was, takes Python's values, and does not run twice at once."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from runs import make_photos, small_config

import accel_restore
from accel_restore import fit, load
from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.state import Callback
from accel_restore.trainer import run as session


def settings():
    """Return the settings of the process that a training could change."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    return {
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "benchmark": torch.backends.cudnn.benchmark,
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "recompile": torch._dynamo.config.recompile_limit,
        "grad": torch.is_grad_enabled(),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in signals],
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "logging": (logging.root.level, list(logging.root.handlers), logging.raiseExceptions),
        "output": (sys.stdout, sys.stdout.errors, sys.stderr),
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return make_photos(root / "train", 8), make_photos(root / "val", 1, seed=1)


@pytest.mark.parametrize("fails", [False, True])
def test_settings_of_the_process_are_restored(photos, tmp_path, monkeypatch, fails):
    seen = []

    class Looking(Callback):
        def on_step(self, state):
            Image.MAX_IMAGE_PIXELS = 2**40
            seen.append(settings())
            if fails:
                raise ValueError("a fault that the test has made")

    make_callbacks = session.make_callbacks
    monkeypatch.setattr(session, "make_callbacks", lambda *given: [*make_callbacks(*given), Looking()])
    fit(small_config(*photos, tmp_path / "first"), cpu=True) if not fails else None  # imports what is lazy
    before = settings()
    train = {"deterministic": True, "epochs": 1}
    try:
        fit(small_config(*photos, tmp_path, train=train), cpu=True)
    except ValueError:
        assert fails
    after = settings()
    assert {key for key in before if before[key] != after[key]} == set()
    changed = {key for key in before if before[key] != seen[-1][key]}
    assert {"deterministic", "torch", "pillow", "signals"} <= changed, "the control: training changes them"


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
