"""What `bench train` concludes from its measurements."""

import re
from types import SimpleNamespace

import pytest
import torch

from accel_restore.commands.bench import scaling as bench_scaling
from accel_restore.commands.bench.phases import BACKWARD, BATCH, EXCHANGE, FORWARD, HOOKS, OPTIMIZER, PHASES, WAIT
from accel_restore.commands.bench.report import reported, show
from accel_restore.config.load import config_from
from accel_restore.tracking.console import Console


def rank_record(**changed: float) -> dict:
    """Return the record of a rank: 1 ms in each phase that is not given."""
    config = config_from({"data": {"train": {"gt": "x"}}}).model_dump(mode="json")
    one = {"trainer_seconds": 2.0, "trainer_cpu_seconds": 1.0, "bare_seconds": 1.0, "bare_cpu_seconds": 0.9}
    return {
        "config": config, "device": "cpu", "precision": "no", "fits_in_memory": False, "steps_per_epoch": 7,
        "accumulation": 1, "batch_size": 8, "peak_memory": 1, "hooks": {"MetricsLogger": 0.001}, "observed_steps": 5,
        "phases": {phase: changed.get(phase, 0.001) for phase in PHASES},
        "rounds": [{**one, "steps": 4, "micro_batches": 4, "bare_micro_batches": 4, "samples": 30} for _ in range(3)],
    }  # fmt: skip


REMEDIES = {
    WAIT: "data.num_threads",
    BATCH: "data.degradation",
    FORWARD: "train.mixed_precision=bf16",
    BACKWARD: "train.compile=true",
    EXCHANGE: "data.batch_size",
    OPTIMIZER: "train.gradient_accumulation_steps",
    HOOKS: "raise tracking.log_every_steps (10)",
}


@pytest.mark.parametrize("phase", PHASES)
def test_longest_phase_is_the_bottleneck_and_advice_names_a_key(phase):
    record = reported([rank_record(**{phase: 0.05})])
    assert record["bottleneck"] == phase and record["bottleneck_share"] == pytest.approx(50 / 56)
    assert len(record["advice"]) == 1 and REMEDIES[phase] in record["advice"][0]
    assert record["ratio"]["median"] == 0.5 and record["cpu_ratio"] == pytest.approx(0.9)
    assert record["samples_per_second"] == 15 and record["bare_samples_per_second"] == 32


def test_printed_figures_agree_and_name_their_statistic(capsys):
    record = rank_record(**{FORWARD: 0.05})  # 56 ms, observed while the machine was idle
    for one, seconds in zip(record["rounds"], (2.0, 1.6, 8.0), strict=True):
        one |= {"trainer_seconds": seconds}
    other = {**record, "phases": {**record["phases"], EXCHANGE: 0.002}}
    for ranks in ([record], [record, other]):
        show(reported(ranks), Console(True))
        out = capsys.readouterr().out
        units = "samples/s", r"samples \(", "ms "
        speed, each, step = (float(re.search(rf"([\d.]+) {unit}", out)[1]) for unit in units)
        assert (step, each, speed) == (500, 7.5 * len(ranks), 15 * len(ranks))
        rows = {line.split("│")[1].strip(): line.split("│")[2:] for line in out.splitlines() if line.count("│") > 2}
        milliseconds = {name: float(columns[0]) for name, columns in rows.items()}
        assert milliseconds.pop("step") == step == pytest.approx(sum(milliseconds.values()), abs=0.1)
        assert "median of 3 rounds, 12 steps" in out and "mean of 5 further steps" in out


def test_waiting_for_a_slow_rank_does_not_count_as_exchange():
    fast, slow = rank_record(**{EXCHANGE: 0.05}), rank_record(**{OPTIMIZER: 0.05})
    record = reported([fast, slow])
    assert record["bottleneck"] == OPTIMIZER and "rank 1 is slow" in record["advice"][-1]
    assert reported([fast, fast])["bottleneck"] == EXCHANGE
    assert not any("is slow" in line for line in reported([fast, fast])["advice"])


def test_scaling_is_relative_to_one_process(monkeypatch, capsys):
    monkeypatch.setattr(bench_scaling, "num_cores", lambda: 3)
    speeds = {1: 10.0, 2: 15.0, 3: 20.0}
    asked = []

    def measured(options, size, on_cpu):
        asked.append(size)
        return {**reported([rank_record()] * size), "samples_per_second": speeds[size]}

    monkeypatch.setattr(bench_scaling, "_measured", measured)
    options = SimpleNamespace(cpu=True, scaling=3)
    records = bench_scaling.show_scaling(options)
    assert asked == [1, 2, 3] and [records[str(n)]["efficiency"] for n in asked] == [1, 1.5, 2]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    records = bench_scaling.show_scaling(SimpleNamespace(cpu=False, scaling=2))
    assert [records[n]["efficiency"] for n in "12"] == [1, 0.75]
    assert "efficiency" in capsys.readouterr().out
