"""Commits are complete or absent after a crash of the process or the machine at any operation."""

import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from recording import CRASHES, Recorder, build, contents

from accel_restore.callbacks import checkpointer as saving
from accel_restore.checkpoint import commits
from accel_restore.checkpoint.commits import (
    find_commits,
    put_back,
    read_commit,
    remove_leftovers,
    step_of,
    write_commit,
)
from accel_restore.config.schema import Checkpoint
from accel_restore.errors import UserError
from accel_restore.utils import files
from accel_restore.utils.files import REMOVING, discard, replace_file

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def content(step, version=0):
    return {name: f"{name} of step {step}, version {version}".encode() * 3 for name in FILES}


def saver(folder, keep=2):
    """Return a run's checkpointer without the run."""
    logger = SimpleNamespace(log=SimpleNamespace(folder=folder, sync=lambda: None), console=SimpleNamespace(log=print))
    source = SimpleNamespace(best=None)
    return saving.Checkpointer(
        Checkpoint(keep=keep), None, source, stages=None, logger=logger,
        folder_check=SimpleNamespace(require=lambda: None), replica_check=None, writer=None,
    )  # fmt: skip


def save(recorder, versions, keep=2):
    """Save each (step, version) in turn with its own best weights, as a run does."""
    callback = saver(recorder.root, keep)
    for step, version in versions:
        callback.best, callback.best_is_written = [f"best of {step}, {version}".encode()], False
        callback._write(step, 0, SimpleNamespace(files=partial(content, step, version)), is_good=True)
        assert callback.failure is None
        recorder.acknowledge((step, version))


def losses(recorder, folder):
    """Yield what each possible crash would lose, in words."""
    seen = set()
    for where, acknowledged, disk in recorder.crashes():
        if (key := (max(acknowledged, default=None), contents(disk))) not in seen:
            seen.add(key)
            shutil.rmtree(folder, ignore_errors=True)
            build(disk, folder)
            for loss in lost(folder, acknowledged):
                yield f"{where}: {loss}"


def lost(folder, acknowledged):
    """Yield what was acknowledged and lost, after the next run has cleaned the folder up."""
    newest, version = max(acknowledged, default=(0, 0))
    checkpoints = folder / "checkpoints"
    put_back(checkpoints)  # as the next run does before it looks for commits
    steps = {}
    for commit in find_commits(checkpoints):  # even those that are no longer needed are complete
        try:
            steps[step_of(commit)] = read_commit(commit)
        except UserError as error:
            yield str(error)
    if newest and max(steps, default=0) < newest:
        yield f"step {newest} was acknowledged, the newest is {max(steps, default=None)}"
    elif newest in steps and not any(same(steps[newest], newest, v) for v in (version, version + 1)):
        yield f"step {newest} is not what was acknowledged"
    best = folder / "best.safetensors"
    if acknowledged and not (best.exists() and re.fullmatch(rb"best of \d+, \d", best.read_bytes())):
        yield "best.safetensors is incomplete"
    remove_leftovers(checkpoints)
    files.remove_temporaries(folder)
    if checkpoints.is_dir() and {path.name for path in checkpoints.iterdir()} != {f"step-{s:08d}" for s in steps}:
        yield f"left over: {sorted(path.name for path in checkpoints.iterdir())}"


def same(found, step, version):
    expected = content(step, version)
    return {name: found[name] for name in expected} == expected


@pytest.fixture
def recorder(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    return Recorder(root)


VERSIONS = [(1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (5, 0)]  # step 4 is replaced


def test_commit_writes_in_a_safe_order(recorder):
    with recorder.recording():
        save(recorder, [(1, 0), (2, 0)], keep=1)
    new = "checkpoints/.staging-step-00000002"
    names = [*FILES, "best.safetensors", "COMMIT.json"]
    written = [f"{what} {new}/{name}" for name in names for what in ("create", "fsync")]
    old = f"checkpoints/{REMOVING}{files.short_name(Path('step-00000001'))}"
    operations = recorder.brief()
    operations = operations[operations.index(f"mkdir {new}") :]
    assert operations[: len(written) + 6] == [
        f"mkdir {new}",
        *written,
        f"fsync {new}",
        f"rename {new}",
        "fsync checkpoints",
        "rename checkpoints/step-00000001",
        "fsync checkpoints",
    ]
    removals = operations[len(written) + 6 :]
    assert set(removals) == {f"rmdir {old}", *(f"unlink {old}/{name}" for name in names)}


def test_no_crash_loses_a_commit(recorder, tmp_path):
    with recorder.recording():
        save(recorder, VERSIONS)
    assert list(losses(recorder, tmp_path / "crashed")) == []
    assert len(CRASHES) * (len(recorder.operations) + 1) > 400


def test_no_crash_during_a_removal_leaves_half_a_commit(recorder, tmp_path):
    """A run removes the commits after the one that it continues from."""
    with recorder.recording():
        save(recorder, [(1, 0), (2, 0), (3, 0)], keep=3)
        recorder.operations = [each for each in recorder.operations if each[0] != "acknowledge"]
        recorder.acknowledge((1, 0))
        for commit in find_commits(recorder.root / "checkpoints")[1:]:
            discard(commit)
    assert list(losses(recorder, tmp_path / "crashed")) == []


def test_no_crash_during_the_cleanup_loses_a_commit(recorder, tmp_path):
    """The next run also dies, while it cleans up."""
    with recorder.recording():
        save(recorder, [(1, 0), (2, 0)])
        aside = recorder.root / "checkpoints" / ".replaced-step-00000002"
        (recorder.root / "checkpoints" / "step-00000002").rename(aside)
        (recorder.root / "checkpoints" / ".staging-step-00000003").mkdir()
        put_back(recorder.root / "checkpoints")
        remove_leftovers(recorder.root / "checkpoints")
    assert list(losses(recorder, tmp_path / "crashed")) == []


def forget_files(monkeypatch):
    def write(path, data):
        with path.open("wb") as file:
            for part in [data] if isinstance(data, bytes) else data:
                file.write(part)

    monkeypatch.setattr(commits, "write_durably", write)


def forget_folders(monkeypatch):
    monkeypatch.setattr(commits, "sync_folder", lambda folder: None)


def forget_folders_of_removals(monkeypatch):
    monkeypatch.setattr(files, "sync_folder", lambda folder: None)


def write_in_place(monkeypatch):
    def write(folder, step, epoch, data):
        monkeypatch.setattr(commits, "_put_in_place", lambda staging, final: None)
        monkeypatch.setattr(commits, "_STAGING", "")
        return write_commit(folder, step, epoch, data)

    monkeypatch.setattr(saving, "write_commit", write)


def prune_first(monkeypatch):
    def write(folder, *arguments):
        if commits_there := find_commits(folder)[:-1]:
            discard(commits_there[-1])
        if find_commits(folder):
            discard(find_commits(folder)[-1])
        return write_commit(folder, *arguments)

    monkeypatch.setattr(saving, "write_commit", write)


def remove_what_is_replaced(monkeypatch):
    def put(staging, final):
        if final.exists():
            shutil.rmtree(final)
        staging.rename(final)
        files.sync_folder(final.parent)

    monkeypatch.setattr(commits, "_put_in_place", put)


def leave_aside(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "put_back", lambda folder: None)


def remove_in_place(monkeypatch):
    monkeypatch.setattr(commits, "discard", shutil.rmtree)


def overwrite_best(monkeypatch):
    monkeypatch.setattr(saving, "replace_file", files.write_durably)


@pytest.mark.parametrize(
    "mistake",
    [
        forget_files,
        forget_folders,
        forget_folders_of_removals,
        write_in_place,
        prune_first,
        remove_what_is_replaced,
        leave_aside,
        remove_in_place,
        overwrite_best,
    ],
)
def test_control_each_mistake_loses_something_after_some_crash(recorder, tmp_path, monkeypatch, mistake):
    mistake(monkeypatch)
    with recorder.recording():
        save(recorder, VERSIONS)
    assert next(losses(recorder, tmp_path / "crashed"), None) is not None


def test_commit_that_cannot_be_written_leaves_the_others(tmp_path, monkeypatch):
    """After an error at any write, fsync or rename, the folder is unchanged or holds the new commit."""
    for name in ("write_durably", "sync_folder"):
        for fail_at in range(1, 8):
            folder = tmp_path / f"{name}{fail_at}"
            write_commit(folder, 1, 0, content(1))
            write_commit(folder, 2, 0, content(2))
            calls, real = [], getattr(commits, name)

            def failing(*arguments, calls=calls, real=real, fail_at=fail_at):
                calls.append(arguments)
                if len(calls) == fail_at:
                    raise OSError(28, "No space left on device")
                return real(*arguments)

            monkeypatch.setattr(commits, name, failing)
            try:
                write_commit(folder, 2, 0, content(2, 1))
                failed = False
            except OSError:
                failed = True
            monkeypatch.setattr(commits, name, real)
            assert failed == (len(calls) >= fail_at)
            remove_leftovers(folder)
            assert [path.name for path in find_commits(folder)] == ["step-00000001", "step-00000002"]
            assert same(read_commit(find_commits(folder)[0]), 1, 0)
            newest = read_commit(find_commits(folder)[1])
            assert same(newest, 2, 1) if not failed else same(newest, 2, 0) or same(newest, 2, 1)
            assert len(list(folder.iterdir())) == 2


def test_failed_rename_restores_the_replaced_commit(tmp_path, monkeypatch):
    write_commit(tmp_path, 1, 0, content(1))
    rename = os.rename

    def failing(path, target):
        if ".staging-" in str(path):
            raise OSError(5, "Input/output error")
        rename(path, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        write_commit(tmp_path, 1, 0, content(1, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert same(read_commit(tmp_path / "step-00000001"), 1, 0)


def test_save_succeeds_if_older_commits_cannot_be_removed(recorder, monkeypatch, capsys):
    rename = os.rename

    def failing(path, target):
        if REMOVING in str(target):
            raise OSError(1, "Operation not permitted")
        rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        save(recorder, [(1, 0), (2, 0), (3, 0)], keep=1)
    folder = recorder.root / "checkpoints"
    assert [step_of(commit) for commit in find_commits(folder)] == [1, 2, 3]
    assert capsys.readouterr().out.count("older checkpoints cannot be removed (Operation not permitted)") == 2
    save(recorder, [(4, 0)], keep=1)
    assert [step_of(commit) for commit in find_commits(folder)] == [4]


def test_replace_file_keeps_the_old_file_if_the_new_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    replace_file(path, b"old")

    def failing(descriptor):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="quota"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["best.safetensors"]
