"""A thread writes commits while training continues: they hold the state of their step, and failures are reported."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from recording import Recorder
from runs import small_config

from accel_restore.callbacks import checkpointer as saving
from accel_restore.callbacks.metrics_logger import RunLog
from accel_restore.checkpoint.commits import find_commits, read_commit, step_of
from accel_restore.checkpoint.host_copy import HostCopy
from accel_restore.config.load import config_from
from accel_restore.config.schema import Checkpoint
from accel_restore.distributed.accelerator import restored_states
from accel_restore.engine import setup_model_and_optimizer
from accel_restore.errors import RunAbortedError
from accel_restore.utils import files

GENEROUS = 60.0  # seconds; a guard against hanging
CONFIG = {"train": {"epochs": 2, "ema_decay": 0.9}, "model": {"name": "dncnn", "depth": 3, "width": 8}}
FACTS = {"epochs": 2, "global_batches": [8], "precision": "no", "wandb_id": None, "data": {}}


class Training:
    """A run reduced to its optimizer, its lines and its checkpointer."""

    def __init__(self, folder, **sections):
        config = config_from({**small_config(folder, folder, folder, **sections), **CONFIG})
        self.state = setup_model_and_optimizer(config, Accelerator(cpu=True, step_scheduler_with_optimizer=False), 2)
        self.said, self.writer = [], ThreadPoolExecutor(1)
        console = SimpleNamespace(log=self.said.append)
        log = RunLog(folder, self.state, True, console)
        nothing = SimpleNamespace(check=lambda *_: None, require=lambda: None)
        logger = SimpleNamespace(log=log, console=console, window_sums=torch.zeros_like(self.state.epoch_sums))
        facts = {**FACTS, "config": config.model_dump(mode="json")}
        self.checkpointer = saving.Checkpointer(
            Checkpoint(every_steps=1, keep=9), Accelerator(cpu=True),
            saving.CommitSource(lambda: facts, lambda _: {}, None),
            stages=SimpleNamespace(epoch=lambda _: SimpleNamespace(num_steps=100)),
            logger=logger, folder_check=nothing, replica_check=nothing, writer=self.writer,
        )  # fmt: skip

    def step(self):
        """Change weights, moments and averages in place, as training does, and write a line."""
        for parameter in self.state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.state.optimizer.step()
        self.state.ema.update(self.state.model)
        self.state.step, self.state.epoch_step = self.state.step + 1, self.state.epoch_step + 1
        self.checkpointer.logger.log.write({"event": "other", "step": self.state.step})

    def now(self):
        """Return the weights, averages and moments as they are now."""
        state = self.state
        named = state.model.named_parameters()
        moments = {f"{name}|exp_avg": state.optimizer.optimizer.state[p]["exp_avg"] for name, p in named}
        found = {"model": state.model.state_dict(), "ema": state.ema.module.state_dict(), "optimizer": moments}
        return {file: {name: t.detach().clone() for name, t in found[file].items()} for file in found}


@pytest.fixture
def training(tmp_path):
    with restored_states():
        yield (made := Training(tmp_path))
    made.writer.shutdown()
    made.checkpointer.logger.log.close()


class Held:
    """Holds the thread in front of what it writes."""

    def __init__(self, monkeypatch):
        self.go, self.write, self.begun = threading.Event(), saving.write_commit, threading.Event()
        monkeypatch.setattr(saving, "write_commit", self)

    def __call__(self, *arguments):
        self.begun.set()
        assert self.go.wait(GENEROUS)
        return self.write(*arguments)


def is_torn(folder, before):
    """Whether the one commit holds another state than the one before."""
    (commit,) = find_commits(folder / "checkpoints")
    stored = read_commit(commit)
    for file, tensors in before.items():
        found = safetensors.torch.load(stored[f"{file}.safetensors"])
        if not all(found[name].equal(tensor) for name, tensor in tensors.items()):
            return True
    return False


@pytest.mark.parametrize("is_copied", [True, False], ids=["copied", "control: no copy"])
def test_a_commit_holds_the_state_of_its_step_while_training_continues(training, tmp_path, monkeypatch, is_copied):
    if not is_copied:
        monkeypatch.setattr(HostCopy, "copy", lambda _, name, tensor: tensor)
    held = Held(monkeypatch)
    training.step()
    before = training.now()
    training.checkpointer.commit(training.state)
    assert held.begun.wait(GENEROUS)
    training.step()
    held.go.set()
    training.checkpointer.wait()
    assert is_torn(tmp_path, before) != is_copied


@pytest.mark.parametrize("is_copied", [True, False], ids=["copied", "control: no copy"])
def test_best_weights_are_those_of_their_validation(training, tmp_path, monkeypatch, is_copied):
    if not is_copied:
        monkeypatch.setattr(HostCopy, "copy", lambda _, name, tensor: tensor)
    begin, made = threading.Event(), saving.best_file
    monkeypatch.setattr(saving, "best_file", lambda *given: begin.wait(GENEROUS) and made(*given))
    training.step()
    best = training.now()["ema"]
    training.checkpointer.on_best(training.state)
    training.checkpointer.commit(training.state)  # does not wait for the best weights, but holds them
    training.step()
    begin.set()
    training.checkpointer.wait()
    path = tmp_path / "best.safetensors"
    found = safetensors.torch.load_file(path)
    assert all(found[name].equal(tensor) for name, tensor in best.items()) == is_copied
    assert read_commit(training.checkpointer.written)["best.safetensors"] == path.read_bytes()


def test_one_commit_at_a_time_is_written_and_copied_into_the_same_memory(training, monkeypatch):
    events, write, copy = [], saving.write_commit, saving.collect

    def written(folder, step, *others):
        path = write(folder, step, *others)
        events.append(("written", step))
        return path

    def copied(state, *others):
        events.append(("copied", state.step))
        return copy(state, *others)

    monkeypatch.setattr(saving, "write_commit", written)
    monkeypatch.setattr(saving, "collect", copied)
    held = set()
    for _ in range(4):
        training.step()
        training.checkpointer.commit(training.state)
        held.add(frozenset(buffer.data_ptr() for buffer in training.checkpointer.state_copy._buffers.values()))
    training.checkpointer.wait()
    assert events == [(what, step) for step in range(1, 5) for what in ("copied", "written")]
    assert len(held) == 1


def test_lines_are_synced_before_their_commit_appears(training, tmp_path, monkeypatch):
    training.step()
    recorder = Recorder(tmp_path)
    with recorder.recording():
        training.checkpointer.commit(training.state)
        training.checkpointer.wait()
    operations = recorder.brief()
    renamed = "rename checkpoints/.staging-step-00000001"
    assert operations.index("fsync metrics.jsonl") < operations.index(renamed)
    monkeypatch.setattr(RunLog, "sync", lambda _: None)
    control = Recorder(tmp_path)
    training.step()
    with control.recording():
        training.checkpointer.commit(training.state)
        training.checkpointer.wait()
    assert "fsync metrics.jsonl" not in control.brief()


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_failed_commit_is_reported_and_training_continues(training, tmp_path, monkeypatch):
    training.step()
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full_disk)
        training.checkpointer.commit(training.state)
        training.checkpointer.wait()
    assert training.said == [
        "checkpoint of step 1 (the last one is none): cannot be written (No space left on device); training continues "
        "and tries again later"
    ]
    training.step()
    training.checkpointer.on_step(training.state)
    training.checkpointer.on_exit(training.state, None)
    assert [step_of(commit) for commit in find_commits(tmp_path / "checkpoints")] == [2]


def test_the_last_commit_must_succeed(training, monkeypatch):
    training.step()
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full_disk)
        with pytest.raises(RunAbortedError, match="the last checkpoint cannot be written"):
            training.checkpointer.on_exit(training.state, None)


def test_the_end_of_a_run_waits_for_a_failed_commit_and_tries_it_again(training, tmp_path, monkeypatch):
    calls, write = [], saving.write_commit

    def fails_once(*arguments):
        calls.append(arguments)
        return write(*arguments) if len(calls) > 1 else full_disk()

    monkeypatch.setattr(saving, "write_commit", fails_once)
    training.step()
    training.checkpointer.commit(training.state)
    training.checkpointer.on_exit(training.state, None)
    assert [step_of(commit) for commit in find_commits(tmp_path / "checkpoints")] == [1]


def test_another_error_of_the_thread_ends_the_run_at_the_next_commit(training, monkeypatch):
    monkeypatch.setattr(saving, "write_commit", lambda *_: 1 / 0)
    training.step()
    training.checkpointer.commit(training.state)
    training.step()
    with pytest.raises(ZeroDivisionError):
        training.checkpointer.commit(training.state)
    training.checkpointer.on_exit(training.state, ZeroDivisionError())  # the first error counts


def test_after_an_error_the_commit_that_was_begun_is_finished(training, tmp_path, monkeypatch):
    held = Held(monkeypatch)
    training.step()
    training.checkpointer.commit(training.state)
    assert held.begun.wait(GENEROUS)
    threading.Timer(0.05, held.go.set).start()
    training.checkpointer.on_exit(training.state, ValueError("of a callback"))
    assert [step_of(commit) for commit in find_commits(tmp_path / "checkpoints")] == [1]


def test_after_an_error_with_the_best_weights_no_commit_holds_others_in_their_place(training, tmp_path, monkeypatch):
    training.step()
    training.checkpointer.on_best(training.state)
    training.checkpointer.commit(training.state)
    training.step()
    training.checkpointer.wait()
    monkeypatch.setattr(saving, "best_file", lambda *_: 1 / 0)
    training.checkpointer.on_best(training.state)
    training.checkpointer.commit(training.state)
    with pytest.raises(ZeroDivisionError):
        training.checkpointer.commit_job.result()
    assert [step_of(commit) for commit in find_commits(tmp_path / "checkpoints")] == [1]
