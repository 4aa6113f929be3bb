"""`data.batch_size: auto`: what fits is found by trying, the same on all ranks, and kept by a run that continues."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from accel_restore.config.load import config_from
from accel_restore.distributed.accelerator import create_accelerator
from accel_restore.errors import UserError
from accel_restore.losses import build_loss
from accel_restore.trainer import batch_size
from accel_restore.trainer.bare_loop import BareLoop
from accel_restore.trainer.batch_size import largest_on_cpu, largest_on_gpu, possible_sizes
from accel_restore.utils.memory import LiveBytes

LEAST = {"data": {"train": {"gt": "x"}, "batch_size": "auto", "patch_size": 16}, "model": {"width": 8}}


@pytest.fixture
def accelerator():
    yield create_accelerator(config_from(LEAST), cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_batch_size_is_a_number_or_auto():
    assert config_from(LEAST).data.batch_size == "auto"
    for wrong in ("automatic", 0, -1, 2.5, True, None, [8]):
        with pytest.raises(UserError) as refused:
            config_from(LEAST, [f"data.batch_size={json.dumps(wrong)}"])
        assert f"data.batch_size: must be a number above 0 or auto, not {wrong!r}" in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "samples", "ranks", "sizes"),
    [
        ([], 40, 1, [1, 2, 4, 8, 16, 32]),
        ([], 40, 2, [1, 2, 4, 8, 16]),
        ([], 1, 2, [1]),
        (["train.gradient_accumulation_steps=4"], 40, 2, [1, 2, 4]),
        (["train.steps_per_epoch=10"], 40, 2, [2**power for power in range(24)]),
        (["train.steps_per_epoch=10", "train.global_batch_size=64"], 40, 2, [1, 2, 4, 8, 16, 32]),
        (["train.global_batch_size=24"], 400, 1, [1, 2, 4, 8]),
        (["train.global_batch_size=24"], 400, 3, [1, 2, 4, 8]),
        (["train.global_batch_size=24"], 400, 2, [1, 2, 4]),
        (["data.stages=[{until_epoch: 1, global_batch_size: 4}, {until_epoch: 2, batch_size: 3}]"], 400, 1, [1, 2, 4]),
    ],
)
def test_batch_size_is_bounded_by_epoch_and_global_batch(overrides, samples, ranks, sizes):
    assert possible_sizes(config_from(LEAST, overrides), samples, ranks) == sizes


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.width=32", "optimizer.name=sgd"],
        ["data.patch_size=32", "train.ema_decay=0.9"],
        ["data.patch_size=32", "train.checkpoint_blocks=true"],
        ["data.patch_size=16", "adversarial={discriminator: {name: unet_sn, width: 24}, r1: 1}"],
    ],
)
def test_largest_batch_on_cpu_fits_into_the_counted_memory(overrides, accelerator, monkeypatch, one_thread):
    config, loss = config_from(LEAST, overrides), build_loss({"l1": 1.0})
    counted = {}
    for size in (1, 8, 32):
        with LiveBytes() as live:
            batch_size._trial(config, accelerator, loss, size)(2)
        counted[size] = live.most
    sizes = [2**power for power in range(10)]

    def found(free: float) -> int:
        monkeypatch.setattr(batch_size, "memory_bytes", lambda: 2 * free)
        return largest_on_cpu(config, accelerator, loss, sizes)

    assert found(1.2 * counted[32]) in (16, 32) and found(1.2 * counted[8]) in (4, 8)
    assert found(0.6 * counted[32]) <= 16 and found(0.99 * counted[1]) == 0 and found(1e12) == 64


def test_batch_size_grows_until_the_gpu_is_out_of_memory(accelerator, monkeypatch):
    """The search, with a CPU in place of the GPU; other errors are raised."""
    shares, tried, limits = [], [], {}
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)

    def step(bare, steps):
        tried.append(len(bare.input))
        if tried[-1] > limits["room"]:
            raise error

    monkeypatch.setattr(BareLoop, "__call__", step)
    config, loss, sizes = config_from(LEAST), build_loss({"l1": 1.0}), [1, 2, 4, 8, 16]
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    for limits["room"], expected in ((5, 4), (0, 0), (99, 16)):
        assert largest_on_gpu(config, accelerator, loss, sizes) == expected
    assert tried == [1, 2, 4, 8, 1, 1, 2, 4, 8, 16] and shares == [0.9, 1.0] * 3
    error = RuntimeError("an error of the model")
    limits["room"] = 0
    with pytest.raises(RuntimeError, match="of the model"):
        largest_on_gpu(config, accelerator, loss, sizes)
    assert shares[-1] == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_what_is_found_trains_and_twice_as_much_does_not():
    config = config_from(LEAST, ["data.patch_size=256", "model.width=32"])
    accelerator = create_accelerator(config, cpu=False)
    found = largest_on_gpu(config, accelerator, build_loss({"l1": 1.0}), [2**power for power in range(16)])
    assert found >= 1 and batch_size._fits(config, accelerator, build_loss({"l1": 1.0}), found)
    torch.cuda.set_per_process_memory_fraction(batch_size._SHARE_ON_GPU)
    assert not batch_size._fits(config, accelerator, build_loss({"l1": 1.0}), 2 * found)
    torch.cuda.set_per_process_memory_fraction(1.0)
    AcceleratorState._reset_state(reset_partial_state=True)
