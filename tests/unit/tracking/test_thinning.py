"""Curves of any length in bounded memory: they keep ends and spikes, and depend on the points alone."""

import json

import numpy as np
import pytest

from accel_restore.tracking.report import thinning
from accel_restore.tracking.report.series import Metrics
from accel_restore.tracking.report.thinning import _MOST, Curve, Sample, thin


def test_a_thinned_curve_keeps_ends_and_spikes():
    x, y = np.arange(1, 100_001), np.sin(np.arange(100_000) / 5000)
    y[[12_345, 67_890]], y[50_000] = (50.0, -40.0), np.nan
    thin_x, thin_y = thin(x, y, 1000)
    assert len(thin_x) <= 1000 and (thin_x[0], thin_x[-1]) == (1, 100_000) and thin_x == sorted(set(thin_x))
    assert thin_y[thin_x.index(12_346)] == 50 and thin_y[thin_x.index(67_891)] == -40
    assert 50.0 not in y[:: len(y) // 1000]  # control: taking every n-th value loses them
    assert thin(x[:7], y[:7], 1000)[0] == list(range(1, 8))
    assert thin(x[:2], np.full(2, np.nan), 1000) == ([], [])


def curve_of(y):
    curve = Curve()
    for step, value in enumerate(y, 1):
        curve.add(step, value)
    return curve


@pytest.mark.parametrize("count", [1, _MOST - 1, _MOST, _MOST + 1, 3 * _MOST + 5, 50_000])
def test_a_growing_curve_keeps_ends_and_spikes_in_bounded_memory(count):
    y = np.sin(np.arange(count) / 500)
    spikes = {count // 3: 50.0, 2 * count // 3: -40.0} if count > 1 else {}
    for place, value in spikes.items():
        y[place] = value
    y[count // 2] = np.nan if count > 2 else y[count // 2]
    x, thinned = curve_of(y).points()
    assert len(x) <= _MOST + 4 and (len(x) > _MOST // 2 - 4 or count <= _MOST)
    assert x[0] == 1 and x[-1] == count and (np.diff(x) > 0).all()
    assert np.array_equal(thinned, y[x.astype(int) - 1])  # points of the curve, not means
    assert {place + 1 for place in spikes} <= set(x)
    if count < _MOST:
        assert len(x) == np.isfinite(y).sum()


def test_a_sample_of_a_long_sequence_has_nearly_its_median():
    values, sample = np.random.default_rng(0).normal(size=50_000), Sample()
    for value in values:
        sample.add(value)
    assert len(sample.values) <= _MOST and abs(sample.median() - np.median(values)) < 0.05


def lines(first, last):
    for step in range(first, last):
        for rank in range(2):
            loss = 1 / step + rank * 0.01
            values = {"loss": loss, "terms": {"l1": loss}, "lr": 1 / step, "samples": 4 + rank, "step_s": 0.1}
            yield json.dumps({"event": "train", "epoch": 0, "step": step, "rank": rank, **values})
        yield json.dumps({"event": "epoch", "epoch": step, "step": step, "train_loss": 1.0, "val_loss": 1 / step,
                          "val_psnr": float(step), "is_best": True, "seconds": 1.0})  # fmt: skip


def state(metrics):
    """Return all that is shown of them."""
    curves = {(name, rank): curve for name in metrics.names() for rank, curve in metrics.curves(name).items()}
    curves |= metrics.scores | {"train": metrics.train_loss}
    shown = {key: [part.tolist() for part in curve.points()] for key, curve in curves.items()}
    means = {name: [part.tolist() for part in metrics.mean(name)] for name in metrics.names()}
    same = {name: metrics.is_identical_on_all_ranks(name) for name in metrics.names()}
    medians = [rank.samples["speed"].median() for rank in metrics.ranks.values()]
    return shown, means, same, medians, metrics.best, metrics.seconds.median(), metrics.total_seconds


@pytest.fixture
def few(monkeypatch):
    """Keep fewer points, so that few lines are a long run."""
    monkeypatch.setattr(thinning, "_MOST", 64)
    return 64


def test_what_is_shown_depends_on_the_lines_and_not_on_when_they_were_read(tmp_path, few):
    path, steps = tmp_path / "metrics.jsonl", 9 * few // 2
    path.write_text("".join(line + "\n" for line in lines(1, steps)))
    data, growing = path.read_bytes(), Metrics(tmp_path / "growing.jsonl")
    for end in (100, 250, 1000, len(data) // 3, len(data) // 2 + 17, len(data)):  # within lines and steps
        growing.lines.path.write_bytes(data[:end])
        growing.read()
        state(growing)  # is not changed by being drawn
    once = Metrics(path)
    once.read()
    assert state(once) == state(growing)
    assert once.is_identical_on_all_ranks("lr") and not once.is_identical_on_all_ranks("loss")
    x, y = once.mean("terms/l1")
    assert y[0] == pytest.approx(1 + 0.01 * 5 / 9) and x[-1] == steps - 1


def test_the_memory_of_a_run_stops_growing(tmp_path, few):
    path = tmp_path / "metrics.jsonl"
    metrics, most = Metrics(path), 0
    for part in range(8):
        with path.open("a") as file:
            file.writelines(line + "\n" for line in lines(1 + part * few, 1 + (part + 1) * few))
        metrics.read()
        curves = [*metrics.means.values(), *metrics.scores.values(), metrics.train_loss]
        curves += [curve for rank in metrics.ranks.values() for curve in rank.curves.values()]
        most = max(most, *(len(curve) for curve in curves), len(metrics.seconds.values))
    assert metrics.ranks[0].num_lines == 8 * few and most <= few
