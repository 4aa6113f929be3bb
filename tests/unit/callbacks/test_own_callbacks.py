"""The user's callbacks: what a broken one reports, what a run stores of them, and how they end a run."""

import json
import signal

import pytest
import torch
from runs import epochs_of, last_weights, run_folder, small_config

from accel_restore import Callback, fit
from accel_restore.callbacks.guarded import build_callbacks
from accel_restore.config.load import config_from
from accel_restore.errors import AuditError, CallbackError, UserError

PHOTOS = 8, 2  # training, validation
SEEN = []


class Seen(Callback):
    """Records the calls. `stop_at` ends the run, `fail_in` raises, at that step or epoch."""

    def __init__(self, name: str = "seen", stop_at: str = "", fail_in: str = "", at: int = 1):
        self.name, self.stop_at, self.fail_in, self.at = name, stop_at, fail_in, at

    def _see(self, method, state):
        SEEN.append((self.name, method, state.epoch, state.step))
        if method == self.fail_in and state.step >= self.at:
            raise ValueError("too hot")
        if method == self.stop_at:
            state.stop("it is late")

    def on_step(self, state):
        self._see("on_step", state)

    def on_validation_start(self, state):
        self._see("on_validation_start", state)

    def on_validation_image(self, state, index, input, output, gt):
        self._see("on_validation_image", state)

    def on_validation(self, state):
        self._see("on_validation", state)

    def on_best(self, state):
        self._see("on_best", state)

    def on_epoch(self, state, record):
        self._see("on_epoch", state)

    def on_exit(self, state, error):
        self._see("on_exit", state)
        SEEN.append((self.name, "error", error))


class Counting(Callback):
    """Keeps the losses of all epochs and the number of steps, from the first step of the run."""

    def __init__(self):
        self.seen, self.best = [], float("inf")

    def on_step(self, state):
        self.seen.append(state.step)

    def on_epoch(self, state, record):
        self.best = min(self.best, record.scores.loss)

    def on_exit(self, state, error):
        SEEN.append((self.seen, self.best))

    def state_dict(self):
        return {"seen": self.seen, "best": self.best}

    def load_state_dict(self, state):
        self.seen, self.best = state["seen"], state["best"]


class Meddling(Callback):
    def on_step(self, state):
        with torch.no_grad():
            next(state.model.parameters()).mul_(1.01)


class NotACallback:
    def on_step(self, state):
        pass


class Misnamed(Callback):
    def on_epoch_end(self, state):
        pass


class TooFew(Callback):
    def on_epoch(self, state):
        pass


class HalfAState(Callback):
    def state_dict(self):
        return {}


class NoJson(Callback):
    def __init__(self, value: str = "{3: 4}"):
        self.value = eval(value)

    def state_dict(self):
        return {"counts": self.value}

    def load_state_dict(self, state):
        pass


class Broken(Callback):
    def __init__(self):
        raise OSError("no such sensor")


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


def config_of(photos, out, *callbacks, **sections):
    config = small_config(*photos, out, data={"batch_size": 4}, **{"train": {"epochs": 3}, **sections})
    return {**config, "callbacks": [path(name) for name in callbacks]}


def path(own):
    return {**own, "name": path(own["name"])} if isinstance(own, dict) else f"test_own_callbacks:{own}"


def status_of(config):
    return json.loads((run_folder(config) / "status.json").read_text())


def commits_of(config):
    return sorted(int(commit.name[5:]) for commit in (run_folder(config) / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("Missing", "cannot import .*module 'test_own_callbacks' has no attribute 'Missing'"),
        ("NotACallback", "is not a subclass of accel_restore.Callback"),
        ("SEEN", "is not a subclass of accel_restore.Callback"),
        ({"name": "Seen", "treshold": 3}, ".treshold: unknown key; known keys: name"),
        ("Misnamed", "has a method on_epoch_end, which is never called; the methods are on_step, "),
        ("TooFew", r"cannot be called; define on_epoch\(self, state, record\)"),
        ("HalfAState", "has one of state_dict and load_state_dict; define both"),
        ("NoJson", "cannot be committed: .*the key 3 in 'counts' cannot be stored as JSON"),
        ({"name": "NoJson", "value": "[{1, 2}]"}, "a set in 'counts' cannot be stored as JSON"),
        ({"name": "NoJson", "value": "{'float': 1}"}, "the key 'float'"),
        ("Broken", r"cannot be built: OSError: no such sensor \(test_own_callbacks.py, line"),
    ],
)
def test_a_broken_callback_is_refused_by_its_name_before_anything_is_written(photos, tmp_path, own, message):
    config = config_of(photos, tmp_path / "out", "Seen", own)
    with pytest.raises(UserError, match=f"^callbacks.1.*{message}"):
        fit(config, cpu=True)
    assert not run_folder(config).exists() and SEEN == []


def test_a_name_without_a_module_is_refused_when_the_configuration_is_read(photos, tmp_path):
    with pytest.raises(UserError, match=r"callbacks.0.name: 'Alarm' is not an import path"):
        config_from({**small_config(*photos, tmp_path), "callbacks": ["Alarm"]})


def test_methods_are_called_in_order_with_arguments_from_the_configuration(photos, tmp_path):
    config = config_of(photos, tmp_path, train={"epochs": 1})
    config["callbacks"] = [path("Seen"), {"name": path("Seen"), "at": 5}]
    fit(config, cpu=True)
    methods = [seen[1] for seen in SEEN]
    epoch = ["on_step"] * 2 + ["on_validation_start"] + ["on_validation_image"] * 2
    expected = [*epoch, "on_validation", "on_best", "on_epoch"]
    assert methods[::2][: len(expected)] == expected and methods[-4:] == ["on_exit", "error"] * 2
    assert [seen[2] for seen in SEEN if seen[1] == "error"] == [None, None]
    assert [one.callback.at for one in build_callbacks(config_from(config).callbacks)] == [1, 5]


def test_best_weights_are_there_in_on_best_and_a_commit_after_each_step(photos, tmp_path, monkeypatch):
    found = []

    def look(self, method, state):
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        found.append(
            (method, state.step, "best.safetensors" in files, f"checkpoints/step-{state.step:08d}/COMMIT.json" in files)
        )

    monkeypatch.setattr(Seen, "_see", look)
    config = config_of(photos, tmp_path, "Seen", train={"epochs": 1}, checkpoint={"every_steps": 1})
    folder = run_folder(config)
    fit(config, cpu=True)
    assert ("on_best", 2, True, False) in found, "the epoch is not committed yet"
    assert ("on_step", 1, False, False) in found, "a commit is made after the callbacks"
    assert commits_of(config) == [1, 2]


@pytest.mark.parametrize("method", ["on_step", "on_validation_start", "on_validation_image", "on_validation", "on_best",
                                    "on_epoch"])  # fmt: skip
def test_a_callback_that_raises_ends_the_run_and_its_step_is_committed(photos, tmp_path, method):
    own = {"name": "Seen", "fail_in": method, "at": 2}
    config = config_of(photos, tmp_path, own, {"name": "Seen", "name_of": 0}, checkpoint={"every_steps": 1})
    config["callbacks"] = [path(own), path("Seen")]
    with pytest.raises(CallbackError) as caught:
        fit(config, cpu=True)
    text = str(caught.value)
    assert text.startswith(
        f"rank 0: the callback 'test_own_callbacks:Seen' failed in {method}, after step 2: ValueError"
    )
    assert "too hot (test_own_callbacks.py, line" in text and "the same command continues" in text
    status = status_of(config)
    assert status["state"] == "failed" and status["error"] in text
    assert commits_of(config)[-1] == 2
    exits = [seen for seen in SEEN if seen[1] == "error"]
    assert len(exits) == 2 and all(isinstance(error, CallbackError) for _, _, error in exits)
    config["callbacks"] = []
    fit(config, cpu=True)
    assert status_of(config)["state"] == "finished", "it continues without the callback"


def test_a_callback_that_exits_python_has_failed(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Seen, "_see", lambda *_: exit(3))
    with pytest.raises(CallbackError, match="on_step, after step 1: SystemExit: 3"):
        fit(config_of(photos, tmp_path, "Seen"), cpu=True)


def test_on_exit_of_all_callbacks_runs_and_its_error_does_not_mask_the_first(photos, tmp_path, capsys):
    own = [{"name": "Seen", "fail_in": "on_exit"}, {"name": "Seen", "fail_in": "on_step"}, {"name": "Seen"}]
    config = config_of(photos, tmp_path, *own)
    with pytest.raises(CallbackError, match="failed in on_step"):
        fit(config, cpu=True)
    assert sum(seen[1] == "on_exit" for seen in SEEN) == 3
    assert "failed in on_exit" in capsys.readouterr().err
    assert "on_step" in status_of(config)["error"]


def test_an_error_in_on_exit_alone_fails_the_run_after_its_last_commit(photos, tmp_path):
    config = config_of(photos, tmp_path, {"name": "Seen", "fail_in": "on_exit"}, "Seen")
    with pytest.raises(CallbackError, match="failed in on_exit"):
        fit(config, cpu=True)
    assert status_of(config)["state"] == "failed" and commits_of(config)[-1] == 6
    assert sum(seen[1] == "on_exit" for seen in SEEN) == 2


@pytest.mark.parametrize(("method", "epochs"), [("on_step", 1), ("on_validation", 1), ("on_best", 1), ("on_epoch", 1)])
def test_a_callback_stops_the_run_at_the_end_of_the_epoch(photos, tmp_path, capsys, method, epochs):
    config = config_of(photos, tmp_path, {"name": "Seen", "stop_at": method})
    folder = fit(config, cpu=True)
    status = status_of(config)
    assert (status["state"], status["epoch"], status["stopped"]) == ("finished", epochs, "it is late")
    assert len(epochs_of(config)) == epochs and commits_of(config)[-1] == 2 * epochs
    assert (folder / "curves.png").exists() and (folder / "report.html").exists()
    assert list((folder / "samples").glob("*.png"))
    assert "it is late; the run ends after epoch 1" in capsys.readouterr().out
    fit(config, cpu=True)
    assert "the run is finished (1 epoch; it is late; changing train.early_stopping or callbacks continues it)" in (
        capsys.readouterr().out
    )
    config["callbacks"] = []
    fit(config, cpu=True)
    status = status_of(config)
    assert (status["epoch"], status.get("stopped")) == (3, None) and len(epochs_of(config)) == 3


def test_a_stop_asked_for_within_an_epoch_survives_an_interruption(photos, tmp_path, monkeypatch):
    config = config_of(photos, tmp_path, {"name": "Seen", "stop_at": "on_step"})
    see = Seen._see

    def interrupted(self, method, state):
        see(self, method, state)
        if state.step == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Seen, "_see", interrupted)
    with pytest.raises(SystemExit):
        fit(config, cpu=True)
    assert commits_of(config) == [1]
    config["callbacks"] = [path("Counting")]  # which never stops
    fit(config, cpu=True)
    assert status_of(config)["epoch"] == 1


def test_a_run_with_a_callback_that_counts_continues_bit_identically(photos, tmp_path, monkeypatch, one_thread):
    whole = config_of(photos, tmp_path, "Counting", {"name": "Counting"}, run={"name": "whole"})
    fit(whole, cpu=True)
    expected = SEEN[:]
    assert [seen for seen, _ in expected] == [[1, 2, 3, 4, 5, 6]] * 2
    parts = config_of(photos, tmp_path, "Counting", "Counting", run={"name": "parts"}, checkpoint={"every_steps": 1})
    original = Counting.on_step

    def interrupted(self, state):
        original(self, state)
        if state.step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Counting, "on_step", interrupted)
    with pytest.raises(SystemExit):
        fit(parts, cpu=True)
    monkeypatch.undo()
    SEEN.clear()
    fit(parts, cpu=True)
    assert expected == SEEN
    ours, theirs = last_weights(parts), last_weights(whole)
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
    commit = sorted((run_folder(parts) / "checkpoints").glob("step-*"))[-1]
    stored = json.loads((commit / "state.json").read_text())["callbacks"]
    assert [own["seen"] for own in stored["test_own_callbacks:Counting"]] == [[1, 2, 3, 4, 5, 6]] * 2


def test_a_state_that_cannot_be_loaded_is_refused_with_its_name(photos, tmp_path, monkeypatch):
    config = config_of(photos, tmp_path, "Counting")
    fit(config, "train.epochs=1", "scheduler.name=constant", cpu=True)
    monkeypatch.setattr(Counting, "load_state_dict", lambda self, state: state["lost"])
    with pytest.raises(UserError, match=r"'test_own_callbacks:Counting' cannot load its state .*KeyError: 'lost'"):
        fit(config, "scheduler.name=constant", cpu=True)


def test_a_state_that_is_no_json_later_ends_the_run_with_the_name(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "on_step", lambda self, state: self.seen.append({1}))
    config = config_of(photos, tmp_path, "Counting")
    with pytest.raises(
        CallbackError, match=r"'test_own_callbacks:Counting' failed in state_dict, after step 2: .*a set"
    ):
        fit(config, cpu=True)
    assert status_of(config)["state"] == "failed"


def test_a_callback_that_changes_weights_is_found_by_the_audit(photos, tmp_path):
    with pytest.raises(AuditError, match=r"weights changed before zero_grad, outside optimizer.step"):
        fit(config_of(photos, tmp_path, "Meddling", train={"epochs": 1}), cpu=True, audit=True)


def test_a_method_given_to_an_object_is_called(photos, tmp_path):
    callback, best = Callback(), []
    callback.on_best = lambda state: best.append((tmp_path / "small" / "best.safetensors").exists())
    fit(small_config(*photos, tmp_path, train={"epochs": 1}), callbacks=[callback], cpu=True)
    assert best == [True]
