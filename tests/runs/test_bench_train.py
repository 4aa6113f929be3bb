"""`bench train` names the slow phase, its bare loop does the same work as the trainer, and it cleans up."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from runs import make_photos, small_config

from accel_restore import engine
from accel_restore.callbacks import straggler as pace
from accel_restore.callbacks.checkpointer import Checkpointer
from accel_restore.callbacks.metrics_logger import MetricsLogger
from accel_restore.cli import main
from accel_restore.commands.bench import phases as bench_split
from accel_restore.commands.bench import train as bench_train
from accel_restore.commands.bench.phases import (
    BACKWARD,
    BATCH,
    EXCHANGE,
    FORWARD,
    HOOKS,
    OPTIMIZER,
    PHASES,
    WAIT,
    PhaseTimer,
)
from accel_restore.config.load import config_from
from accel_restore.data import loader
from accel_restore.data.train_dataset import CropDataset
from accel_restore.distributed.accelerator import create_accelerator
from accel_restore.optim import ema
from accel_restore.optim.adversary import initial_discriminator
from accel_restore.optim.eager import AdamW
from accel_restore.state import TrainState
from accel_restore.trainer import setup as preparation
from accel_restore.trainer.bare_loop import BareLoop


class Clock:
    """A clock that advances only inside the functions made slow."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def around(self, function: Callable, seconds: float) -> Callable:
        def slow(*arguments, **options):
            self.seconds += seconds
            return function(*arguments, **options)

        return slow


CLOCK = Clock()


class Slow(torch.nn.Module):
    """A user's model whose forward takes 4 seconds and whose backward takes 8."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        CLOCK.seconds += 4
        return _SlowBackward.apply(self.layer(images))


class _SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, images):
        return images.clone()

    @staticmethod
    def backward(context, gradient):
        CLOCK.seconds += 8
        return gradient


FEW = {"_PAIRS": (2, 2), "_FIRST_STEPS": 1, "_QUEUED": 1}
SLEEP = 0.4  # seconds; tiny steps take a few milliseconds, more on a busy machine


@pytest.fixture(autouse=True)
def quick(monkeypatch, one_thread):
    for name, value in FEW.items():
        monkeypatch.setattr(bench_train, name, value)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny(tmp_path: Path, **sections: dict) -> dict:
    """Return a configuration of two steps per epoch, each of 2 x 2 samples."""
    photos = make_photos(tmp_path / "photos", 8)
    return small_config(
        photos, photos, tmp_path / "out",
        data={"batch_size": 2, "num_threads": 0, **sections.pop("data", {})},
        train={"gradient_accumulation_steps": 2, "ema_decay": 0.9, "max_grad_norm": 1.0, **sections.pop("train", {})},
        **sections,
    )  # fmt: skip


def saved(tmp_path: Path, config: dict) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def test_time_is_attributed_to_the_phase_that_spends_it(tmp_path, monkeypatch):
    for module in (bench_split, loader, pace):
        monkeypatch.setattr(module, "time", CLOCK)
    slow = [
        (CropDataset, "__getitems__", 1),
        (loader, "finish_groups", 2),
        (AdamW, "zero_grad", 16),
        (AdamW, "step", 32),
        (ema.Ema, "update", 64),
        (engine, "gradient_norm", 128),
        (TrainState, "count", 256),
        (MetricsLogger, "on_step", 512),
        (Checkpointer, "on_step", 1024),
    ]
    for where, name, seconds in slow:
        monkeypatch.setattr(where, name, CLOCK.around(getattr(where, name), seconds))
    config = tiny(tmp_path, model={"name": "test_bench_train:Slow"})
    del config["model"]["width"]
    config = config_from(config)
    with bench_train._started(config, create_accelerator(config, cpu=True)) as (run, callbacks):
        trainer = bench_train.Trainer(run, callbacks)
        split = PhaseTimer(run.state, run.loader, run.accelerator)
        with split.observing():
            trainer(4, split)  # crosses the end of an epoch
        before = dict(split.seconds)
        trainer(1)  # no longer observed
        trainer.close()
    assert split.per_step() == {
        WAIT: 2 * 1, BATCH: 2 * 2, FORWARD: 2 * 4, BACKWARD: 2 * 8, EXCHANGE: 0,
        OPTIMIZER: 16 + 32 + 64 + 128, HOOKS: 2 * 256 + 512 + 1024,
    }  # fmt: skip
    assert list(split.callbacks_per_step().items())[:2] == [("Checkpointer", 1024), ("MetricsLogger", 512)]
    assert dict(split.seconds) == before


@pytest.mark.parametrize("adversarial", [None, {"discriminator": {"name": "unet_sn", "width": 4}, "weight": 0.5}])
def test_bare_loop_trains_like_the_trainer(tmp_path, adversarial):
    config = config_from({**tiny(tmp_path), "adversarial": adversarial})
    accelerator = create_accelerator(config, cpu=True)
    with bench_train._started(config, accelerator) as (run, _):
        batch = next(run.loader.again(0, 0))
        bare = BareLoop(run.config, accelerator, run.loss_fn, batch, accumulation=2)
        started = [parameter.clone() for parameter in bare.module.parameters()]
        bare(3)
        batch["weight"] = torch.full((2,), 1 / 4)
        steps = ([{**batch, "is_last": False}, {**batch, "is_last": True}] for _ in range(3))
        engine.train_epoch(run.state, steps, run.loss_fn, accelerator, (), run.config.train.max_grad_norm)
        pairs = [(run.state.model, bare.module), (run.state.ema.module, bare.ema.module)]
        if adversarial is not None:
            pairs.append((run.state.adversary.module, bare.judge.module))
            first = next(initial_discriminator(config).parameters())
            assert (first - next(bare.judge.module.parameters())).abs().max() > 1e-5
    for ours, theirs in pairs:
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    assert any((own - first).abs().max() > 1e-3 for own, first in zip(bare.module.parameters(), started, strict=True))


def test_slow_data_is_the_bottleneck_and_no_temporary_file_is_left(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path, data={"num_threads": 1}, train={"gradient_accumulation_steps": 1})
    record = tmp_path / "bench.json"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # torch makes it when it is imported
    given = ["bench", "train", "--cpu", "--config", saved(tmp_path, config), "--seconds", "0.01"]
    assert main([*given, "--json", str(record), "--profile", str(tmp_path / "trace")]) == 0
    control, out = json.loads(record.read_text()), capsys.readouterr().out
    # Which phase is the longest of tiny steps depends on the load of the machine.
    assert control["bottleneck"] != WAIT and f"bottleneck: {control['bottleneck']}" in out and "trainer/bare" in out
    if control["bottleneck"] in (FORWARD, BACKWARD):
        assert "try train.mixed_precision=bf16, train.compile=true" in out
    assert list(control["phases"]) == list(PHASES) and all(phase in out for phase in PHASES)
    assert control["ratio"]["pairs"] == 2 and control["ratio"]["median"] > 0 and control["cpu_ratio"] > 0
    (only,) = control["ranks"]
    assert only["samples_per_second"] == pytest.approx(control["samples_per_second"]) and only["peak_memory"] > 1e6
    events = json.loads((tmp_path / "trace" / "rank0.json").read_text())["traceEvents"]
    assert sum(event.get("name", "").startswith("Optimizer.step") for event in events) == bench_train._PROFILED_STEPS

    read = CropDataset.__getitems__
    monkeypatch.setattr(CropDataset, "__getitems__", lambda *given: (time.sleep(SLEEP), read(*given))[1])
    assert main([*given, "--json", str(record)]) == 0
    slow, out = json.loads(record.read_text()), capsys.readouterr().out
    assert slow["bottleneck"] == WAIT
    assert "raise data.num_threads (1)" in out and "epochs are short (4 steps)" in out
    assert not list((tmp_path / "temporary").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cache"]


def _bench(arguments: list[str], slow: str) -> int:
    """Run one rank of `bench train` in its own process, with one part made slow."""
    vars(bench_train).update(FEW)
    setup = preparation.setup_model_and_optimizer

    def slow_exchange(_, bucket):
        time.sleep(SLEEP * bucket.is_last())  # after the last gradient; earlier, the backward would hide the delay
        done = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
        return done.then(lambda future: future.value()[0])

    def changed(*given):
        state = setup(*given)
        if slow == "exchange":
            state.model.register_comm_hook(None, slow_exchange)
        elif os.environ["RANK"] == "1":
            state.model.module.register_forward_pre_hook(lambda *_: time.sleep(SLEEP))
        return state

    preparation.setup_model_and_optimizer = changed
    return main(arguments)


@pytest.mark.parametrize(("slow", "phase"), [("exchange", EXCHANGE), ("forward of rank 1", FORWARD)])
def test_the_bottleneck_of_two_ranks_is_found(slow, phase, tmp_path):
    record, log = tmp_path / "bench.json", tmp_path / "log"
    config = saved(tmp_path, tiny(tmp_path, train={"gradient_accumulation_steps": 1}))
    given = ["bench", "train", "--cpu", "--config", config, "--seconds", "0.01", "--json", str(record)]
    ended = forked.codes(forked.start_ranks(_bench, 2, log, given, slow))
    assert ended == [0, 0], log.read_text()[-3000:]
    figures, out = json.loads(record.read_text()), log.read_text()
    assert figures["bottleneck"] == phase and len(figures["ranks"]) == 2
    assert figures["samples_per_second"] == pytest.approx(
        sum(rank["samples_per_second"] for rank in figures["ranks"]), rel=0.5
    )
    assert out.count("bottleneck: ") == 1
    if slow != "exchange":
        assert (
            "rank 1 is slow" in out and figures["ranks"][0]["phases"][EXCHANGE] > SLEEP / 2
        )  # the wait is not the bottleneck


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_slow_forward_on_a_gpu_counts_as_forward(tmp_path, monkeypatch):
    config, record = saved(tmp_path, tiny(tmp_path)), tmp_path / "bench.json"
    given = ["bench", "train", "--config", config, "--seconds", "0.5", "--json", str(record)]
    assert main(given) == 0
    control = json.loads(record.read_text())
    assert control["device"] == "cuda" and control["ranks"][0]["peak_memory"] > 1e5
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda *a: (torch.cuda._sleep(10**8), forward(*a))[1])
    assert main(given) == 0
    assert json.loads(record.read_text())["bottleneck"] == FORWARD


def test_non_finite_losses_end_the_measurement_with_one_error(tmp_path, capsys):
    config = saved(tmp_path, tiny(tmp_path, train={"max_skipped_steps": 2}))
    nan = ["--seconds", "0.5", "loss={mse: 1.0e+300}"]
    assert main(["bench", "train", "--cpu", "--config", config, *nan]) == 2
    err = capsys.readouterr().err
    assert "accel-restore: epoch" in err and "training has diverged" in err


def test_stopped_measurement_leaves_no_temporary_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    seen = []

    def stop(*_):
        seen.extend((tmp_path / "temporary").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLogger, "on_step", stop)
    config = saved(tmp_path, tiny(tmp_path))
    assert main(["bench", "train", "--cpu", "--config", config, "--seconds", "1"]) == 143
    assert "accel-restore: stopped by SIGTERM" in capsys.readouterr().err
    assert seen and not list((tmp_path / "temporary").iterdir())


def test_invalid_options_are_rejected(tmp_path, monkeypatch, capsys):
    config, file = saved(tmp_path, tiny(tmp_path)), tmp_path / "file"
    file.write_text("")
    missing = saved(tmp_path / "photos", tiny(tmp_path / "more", data={"train": {"gt": str(tmp_path / "none")}}))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for arguments, words in (
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--json", str(tmp_path / "no" / "x.json")], "no does not exist"),
        (["--profile", str(file)], f"--profile: cannot create {file}"),
        (["--scaling", "0"], "--scaling: must be 1 to"),
        (["--scaling", "100000"], "--scaling: must be 1 to"),
        (["data.batch=3"], "data.batch: unknown key"),
        (["--config", missing], "data.train.gt"),
    ):
        assert main(["bench", "train", "--cpu", "--config", config, *arguments]) == 2, arguments
        assert words in capsys.readouterr().err
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.sweep
def test_scaling_runs_one_measurement_per_number_of_processes(tmp_path, capsys):
    record = tmp_path / "scaling.json"
    config = saved(tmp_path, tiny(tmp_path))
    given = ["bench", "train", "--cpu", "--config", config, "--seconds", "0.01", "--json", str(record)]
    assert main([*given, "--scaling", "2"]) == 0
    assert [json.loads(record.read_text())[n]["processes"] for n in "12"] == [1, 2]
    assert main([*given, "--scaling", "2", "data.patch_size=4096"]) == 2
    assert "bench train with 1 process: the data cannot be used" in capsys.readouterr().err
