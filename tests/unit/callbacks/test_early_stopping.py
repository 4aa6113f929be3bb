"""Early stopping ends a run in the same epoch, however often the run is interrupted."""

import json
import signal

import pytest
from runs import epochs_of, json_lines, last_weights, run_folder, small_config

import accel_restore
from accel_restore import fit
from accel_restore.callbacks.early_stopping import EarlyStopping

PHOTOS = 8, 2  # training, validation


def config_of(photos, out, **sections):
    return small_config(*photos, out, data={"batch_size": 4}, **{"train": {"epochs": 3}, **sections})


def status_of(config):
    return json.loads((run_folder(config) / "status.json").read_text())


def test_early_stopping_ends_the_run_as_finished_and_more_patience_continues_it(photos, tmp_path, capsys, one_thread):
    def config(name, patience):
        own = config_of(photos, tmp_path, run={"name": name}, optimizer={"lr": 1e-12})  # weights do not change
        own["train"] = {"epochs": 12, "early_stopping": {"patience": patience}}
        return {**own, "validation": {"metrics": ["psnr"], "every_epochs": 2}, "scheduler": {"name": "constant"}}

    short, long = config("short", 2), config("long", 3)
    fit(long, cpu=True)
    assert (status_of(long)["state"], status_of(long)["epoch"]) == ("finished", 8)
    fit(short, cpu=True)
    status = status_of(short)
    reason = "early stopping: val_loss has not improved for 2 validations (best in epoch 2)"
    assert (status["state"], status["epoch"], status["stopped"]) == ("finished", 6, reason)
    assert reason in capsys.readouterr().out
    fit(short, cpu=True)
    assert f"the run is finished (6 epochs; {reason}; changing" in capsys.readouterr().out
    fit(config("short", 3), cpu=True)
    assert status_of(short)["epoch"] == 8
    ours, theirs = last_weights(short), last_weights(long)
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
    assert [{**line, "seconds": 0} for line in epochs_of(short)] == [{**line, "seconds": 0} for line in epochs_of(long)]


def test_an_interrupted_run_stops_early_in_the_same_epoch(photos, tmp_path, monkeypatch):
    config = config_of(photos, tmp_path, optimizer={"lr": 1e-12}, scheduler={"name": "constant"})
    config["train"] = {"epochs": 12, "early_stopping": {"patience": 3}}
    original = EarlyStopping.on_epoch

    def interrupted(self, state, record):
        original(self, state, record)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(EarlyStopping, "on_epoch", interrupted)
    for _ in range(3):
        with pytest.raises(SystemExit):
            fit(config, cpu=True)
    fit(config, cpu=True)
    assert status_of(config)["epoch"] == 4 and len(epochs_of(config)) == 4


def test_early_stopping_counts_a_validation_that_is_nan(photos, tmp_path, monkeypatch):
    validate = accel_restore.engine.validate

    def spoilt(*given):
        scores = validate(*given)
        return accel_restore.state.Scores(float("nan"), scores.metrics, scores.input_metrics, scores.terms)

    monkeypatch.setattr(accel_restore.engine, "validate", spoilt)
    config = config_of(photos, tmp_path, train={"epochs": 5, "early_stopping": {"patience": 2}})
    fit(config, cpu=True)
    assert status_of(config)["stopped"].endswith("for 2 validations (it was always NaN or inf)")
    assert json_lines(run_folder(config) / "metrics.jsonl")[-1]["epoch"] == 1


def test_a_run_that_improves_is_not_stopped(photos, tmp_path):
    config = config_of(photos, tmp_path, train={"epochs": 3, "early_stopping": {"patience": 1}})
    config["validation"] = {"metrics": ["psnr"], "monitor": "loss"}
    fit(config, cpu=True)
    assert status_of(config)["epoch"] == 3 and "stopped" not in status_of(config)
