"""A run whose folder is moved, removed or replaced ends, and writes nothing into the folder that is there now."""

import json
import os
import shutil
import signal

import pytest
from runs import json_lines, small_config

from accel_restore import fit
from accel_restore.callbacks import checkpointer as saving
from accel_restore.callbacks.checkpointer import Checkpointer
from accel_restore.checkpoint.commits import find_commits, read_commit
from accel_restore.checkpoint.run_lock import RunLock
from accel_restore.errors import RunAbortedError
from accel_restore.state import Callback
from accel_restore.tracking.run_files import write_status
from accel_restore.trainer import run as session

PHOTOS = 16, 2  # training, validation
STEPS = 8  # in four epochs


@pytest.fixture
def train(photos, tmp_path, monkeypatch, one_thread):
    """Return a function that trains with a commit after each step and calls `action(folder)` after step 3.

    The commit of step 2 is complete then.
    """

    class Tampering(Callback):
        def __init__(self, action, checkpointer):
            self.action, self.checkpointer = action, checkpointer

        def on_step(self, state):
            if state.step == 3:
                self.checkpointer.wait()
                self.action(tmp_path / "runs" / "small")

    make_callbacks = session.make_callbacks

    def run(action, audit=False, **sections):
        def with_tampering(*given):
            callbacks = make_callbacks(*given)
            (checkpointer,) = (callback for callback in callbacks if isinstance(callback, Checkpointer))
            return [Tampering(action, checkpointer), *callbacks]

        monkeypatch.setattr(session, "make_callbacks", with_tampering)
        config = small_config(*photos, tmp_path / "runs", **{"checkpoint": {"every_steps": 1}, **sections})
        config["train"]["epochs"] = STEPS // 2
        config["data"]["cache_dir"] = str(tmp_path / "cache")
        return fit(config, cpu=True, audit=audit)

    return run


def files(folder):
    """Return the content of each file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def renamed(folder):
    folder.rename(folder.with_name("elsewhere"))


def removed(folder):
    shutil.rmtree(folder)


def copied(folder):
    folder.rename(folder.with_name("elsewhere"))
    shutil.copytree(folder.with_name("elsewhere"), folder, copy_function=shutil.copy2)


def linked_elsewhere(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.with_name("other").mkdir()
    folder.symlink_to("other")


def unlocked(folder):
    (folder / "run.lock").unlink()


def parent_removed(folder):
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("every_steps", [1, None])
@pytest.mark.parametrize("action", [renamed, removed, copied, linked_elsewhere, unlocked, parent_removed])
def test_a_run_without_its_folder_fails_and_writes_nothing(train, tmp_path, action, every_steps, capsys):
    left = {}

    def act(folder):
        action(folder)
        left.update(files(folder) if folder.exists() else {})

    with pytest.raises(RunAbortedError, match=r"small: is no longer the folder of this run: (a copy|it or its)"):
        train(act, audit=action is removed, checkpoint={"every_steps": every_steps})
    folder = tmp_path / "runs" / "small"
    now = files(folder) if folder.exists() else {}
    if action is unlocked:  # the open file is still that of the folder
        left.pop("metrics.jsonl"), now.pop("metrics.jsonl"), left.pop("memory.jsonl"), now.pop("memory.jsonl")
    assert now == left
    assert folder.exists() == (action not in (renamed, removed, parent_removed))
    assert "finished" not in capsys.readouterr().out
    if action is renamed:  # put back, it continues
        folder.with_name("elsewhere").rename(folder)
        train(lambda _: None, checkpoint={"every_steps": every_steps})
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("is_checked", [True, False], ids=["", "control"])
def test_a_commit_that_is_waiting_is_not_written_into_another_folder(train, tmp_path, monkeypatch, is_checked):
    keep = saving.best_file

    def moves_the_folder(*given):  # before the first best weights; the commit of their epoch waits
        folder = tmp_path / "runs" / "small"
        if not folder.with_name("elsewhere").exists():
            renamed(folder)
            folder.mkdir()
            (folder / "run.lock").touch()
        return keep(*given)

    monkeypatch.setattr(saving, "best_file", moves_the_folder)
    if not is_checked:
        monkeypatch.setattr(saving.FolderCheck, "require", lambda _: None)
    with pytest.raises(RunAbortedError, match="is no longer the folder of this run"):
        train(lambda _: None, checkpoint={"every_steps": None})
    found = files(tmp_path / "runs" / "small")
    assert any(name.startswith(("best", "checkpoints")) for name in found) != is_checked


def test_a_run_without_its_folder_writes_nothing_when_it_is_stopped(train, tmp_path):
    def act(folder):
        folder.rename(folder.with_name("elsewhere"))
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunAbortedError, match="small: is no longer the folder of this run"):
        train(act, checkpoint={"every_steps": None})
    assert not (tmp_path / "runs" / "small").exists()


def test_another_run_in_the_same_place_is_left_alone(train, tmp_path):
    other, left = [], {}

    def act(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        other.append(RunLock(folder))
        other[0].acquire()
        write_status(folder, "running", step=1)
        left.update(files(folder))

    with pytest.raises(RunAbortedError, match="small: is no longer the folder of this run: another run has replaced"):
        train(act)
    assert files(tmp_path / "runs" / "small") == left
    other[0].release()


def test_a_run_continues_in_a_folder_that_a_link_replaces(train, tmp_path):
    def act(folder):
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to("elsewhere")

    folder = train(act)
    assert folder.is_symlink() and json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert not (folder / "run.lock").exists()


def test_files_that_vanish_while_a_run_trains_are_written_again(train, tmp_path, capsys):
    def act(folder):
        shutil.rmtree(folder / "checkpoints")
        (folder / "metrics.jsonl").unlink()
        (folder / "aside").write_text("saved by an editor\n")
        (folder / "aside").replace(folder / "memory.jsonl")
        (folder / "best.safetensors").unlink()

    folder = train(act)
    lines = json_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["event"] == "train"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in json_lines(folder / "memory.jsonl")]
    newest = find_commits(folder / "checkpoints")[-1]
    assert read_commit(newest)["best.safetensors"] == (folder / "best.safetensors").read_bytes()
    printed = capsys.readouterr().out
    assert "metrics.jsonl: was removed or replaced by someone else; it is written again" in printed
    assert "step-00000002: was removed by someone else; the commit of step 3 replaces it" in printed
