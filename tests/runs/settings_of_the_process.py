"""Tests that `test_process_settings` runs in a process of their own, because other tests leave settings behind."""

import ctypes
import faulthandler
import gc
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import datasets
import huggingface_hub
import matplotlib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image, ImageFile
from runs import make_photos, small_config

from accel_restore import fit, load
from accel_restore.errors import UserError
from accel_restore.state import Callback
from accel_restore.trainer import run as session


class _Memory(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t) for name in ("arena", "free", "fast", "mapped", "mapped_bytes", "a", "b", "c", "d", "e")
    )


def is_mapped():
    """Return whether malloc maps a large block by itself, as it does unless it is set to keep freed memory."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallinfo2"):
        return None
    libc.mallinfo2.restype, libc.malloc.restype = _Memory, ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    before = libc.mallinfo2().mapped
    block = libc.malloc(2**26)
    after = libc.mallinfo2().mapped
    libc.free(block)
    return after > before


def threads_of_new_threads():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def settings():
    """Return the settings of the process that a training could change."""
    backends, python = torch.backends, logging.Logger.manager.loggerDict
    loggers = {name: logger for name, logger in python.items() if isinstance(logger, logging.Logger)}
    states = (PartialState, AcceleratorState, GradientState)
    wandb = sys.modules.get("wandb.sdk.wandb_setup")
    return {
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "path": (list(sys.path), list(sys.argv)),
        "random": random.getstate(),
        "numpy": (str(np.random.get_state()), np.geterr(), np.get_printoptions()),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            backends.cudnn.deterministic,
        ),
        "benchmark": backends.cudnn.benchmark,
        "precision": (
            torch.get_float32_matmul_precision(),
            [
                str(getattr(part, "fp32_precision", ""))
                for part in (backends.cuda.matmul, backends.cudnn, backends.mkldnn)
            ],
            torch.is_autocast_enabled("cpu"),
        ),
        "threads": (torch.get_num_threads(), threads_of_new_threads()),
        "dtype": (torch.get_default_dtype(), torch.get_default_device()),
        "recompile": torch._dynamo.config.recompile_limit,
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "processes": (multiprocessing.get_start_method(allow_none=True), torch.multiprocessing.get_sharing_strategy()),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK),
        "datasets": (
            datasets.utils.are_progress_bars_disabled(),
            datasets.is_caching_enabled(),
            datasets.utils.logging.get_verbosity(),
            huggingface_hub.utils.logging.get_verbosity(),
        ),
        "accelerate": [dict(owner._shared_state) for owner in states],
        "matplotlib": {key: value for key, value in dict.items(matplotlib.rcParams) if key != "backend"},
        "backend": matplotlib.get_backend(auto_select=False),
        "wandb": wandb and wandb.singleton().settings.silent,
        "malloc": is_mapped(),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.exit, faulthandler.is_enabled()),
        "running": sorted(thread.name for thread in threading.enumerate()),
        "logging": (
            logging.root.level,
            list(logging.root.handlers),
            logging.raiseExceptions,
            logging.root.manager.disable,
        ),
        "loggers": {
            name: (log.level, list(log.handlers), log.propagate, log.disabled) for name, log in loggers.items()
        },
        "output": (sys.stdout, sys.stdout.errors, sys.stderr),
    }


def changes(before, after):
    """Return the names of the settings that differ; loggers of libraries that were imported in between do not count."""
    after = {**after, "loggers": {name: after["loggers"][name] for name in before["loggers"]}}
    return {key for key in before if before[key] != after[key]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return make_photos(root / "train", 8), make_photos(root / "val", 1, seed=1)


@pytest.fixture(scope="module")
def weights(photos, tmp_path_factory):
    """Return the weights of a first training, which has imported what is imported late."""
    return fit(small_config(*photos, tmp_path_factory.mktemp("first")), cpu=True) / "best.safetensors"


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        ("success", None),
        ("callback", ValueError),
        ("configuration", UserError),
        ("data", UserError),
        ("signal", SystemExit),
    ],
)
def test_settings_of_the_process_are_restored(photos, weights, tmp_path, monkeypatch, ending, error):
    seen = []

    class Looking(Callback):
        def on_step(self, state):
            seen.append(settings())
            if ending == "callback":
                raise ValueError("a fault that the test has made")
            if ending == "signal":
                signal.raise_signal(signal.SIGTERM)

    make_callbacks = session.make_callbacks
    monkeypatch.setattr(session, "make_callbacks", lambda *given: [*make_callbacks(*given), Looking()])
    config = small_config(*photos, tmp_path, train={"deterministic": True, "epochs": 1})
    if ending == "configuration":
        config["model"]["width"] = -1
    if ending == "data":
        config["data"]["patch_size"] = 4096
    before = settings()
    with pytest.raises(error) if error is not None else nullcontext():
        fit(config, cpu=True)
    assert changes(before, settings()) == set()
    if seen:
        expected = {"deterministic", "torch", "warnings", "signals", "hooks", "environment", "accelerate"}
        assert expected <= changes(before, seen[-1]), "the control: training changes them"
        assert not {"pillow", "malloc", "dtype", "precision", "logging", "loggers"} & changes(before, seen[-1])
    assert bool(seen) == (ending in ("success", "callback", "signal"))


def test_load_and_the_restorer_change_no_setting(weights, tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(weights.read_bytes()[:-1])
    image = Image.new("RGB", (20, 20))
    before = settings()
    restorer = load(weights)
    for given in (image, np.asarray(image), torch.rand(3, 8, 8, generator=torch.Generator())):
        restorer(given, self_ensemble=True, precision="bf16")
    for path in (tmp_path / "missing", tmp_path / "damaged.safetensors"):
        with pytest.raises(UserError):
            load(path)
    with pytest.raises(ValueError, match="NaN"):
        restorer(np.full((8, 8, 3), np.nan, np.float32))
    assert changes(before, settings()) == set()


def test_accelerators_of_the_caller_keep_their_own_precision(photos, weights, tmp_path):
    assert not AcceleratorState._shared_state, "fit has left nothing"
    try:
        mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
        fit(small_config(*photos, tmp_path, train={"mixed_precision": "no", "epochs": 1}), cpu=True)
        assert (mine.mixed_precision, mine.gradient_accumulation_steps) == ("bf16", 3)
        assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
