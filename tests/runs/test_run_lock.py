"""One training at a time in a folder: a second is refused; what a dead one has left is no obstacle."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import forked
import pytest
from runs import run_folder, small_config

from accel_restore.checkpoint import run_lock
from accel_restore.checkpoint.run_lock import RunLock, record_preempted
from accel_restore.errors import UserError
from accel_restore.tracking.run_files import write_status

PHOTOS = 15, 2  # training, validation
GENEROUS = 90.0  # seconds, a guard against hanging


def configuration(photos, out, ranks=1):
    return small_config(*photos, out, data={"batch_size": 4 // ranks}, checkpoint={"every_steps": 1})


@contextlib.contextmanager
def held_after(step, config, ranks=1, mode=""):
    """The processes of a training that waits after a step; killed in the end, if need be."""
    gate = Path(config["run"]["dir"]) / "gate"
    gate.mkdir(parents=True)
    (gate / f"hold-{step}").touch()
    log = gate / "log"
    processes = forked.start(config, ranks=ranks, mode=f"{mode}gate={gate}", log=log)
    try:
        deadline = time.monotonic() + GENEROUS
        while not (gate / f"at-{step}").exists():
            assert time.monotonic() < deadline and all(p.is_alive() for p in processes), log.read_text()
            time.sleep(0.01)
        yield processes, gate / f"hold-{step}"
    finally:
        for process in processes:
            process.kill()
            process.join(GENEROUS)


def snapshot(config):
    """The files of a run but for the lock, which is touched as a sign of life."""
    files = (path for path in run_folder(config).rglob("*") if path.is_file() and path.name != "run.lock")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_training_is_refused_and_the_first_goes_on(photos, tmp_path, ranks):
    config = configuration(photos, tmp_path, ranks)
    with held_after(3, config, ranks) as (first, gate):
        before = snapshot(config)
        for arguments in ([], ["--overwrite"])[::ranks]:
            log = tmp_path / f"second{len(arguments)}"
            assert forked.run(config, *arguments, ranks=ranks, log=log) == [2] * ranks
            said = log.read_text()
            assert f"process {first[0].pid} on {socket.gethostname()} is training in it" in said
            assert "wait until that ends or stop it, or choose another run.name" in said and "Traceback" not in said
        assert snapshot(config) == before
        gate.unlink()
        for process in first:
            process.join(GENEROUS)
        assert [process.exitcode for process in first] == [0] * ranks


def test_control_without_the_lock_both_write(photos, tmp_path):
    config = configuration(photos, tmp_path)
    with held_after(3, config, mode="without=lock,"):
        before = snapshot(config)
        assert forked.run(config, mode="without=lock") == [0]
        assert snapshot(config) != before


def test_a_killed_training_is_continued_at_once(photos, tmp_path):
    config = configuration(photos, tmp_path)
    with held_after(3, config) as (first, _):
        os.kill(first[0].pid, signal.SIGKILL)
    assert json.loads((run_folder(config) / "status.json").read_text())["state"] == "running"
    assert forked.run(config) == [0]
    said = forked.printed(config)
    assert "continues" in said and "waiting" not in said


# Signs of life of another host ----------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder that another host has left as one in which it trains."""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        write_status(tmp_path, "running", step=3)
    (tmp_path / "run.lock").touch()
    monkeypatch.setattr(run_lock, "_SILENT_SECONDS", 1.0)
    monkeypatch.setattr(run_lock, "_BEAT_SECONDS", 0.05)
    return tmp_path


def age(folder, seconds):
    os.utime(folder / "run.lock", (time.time() - seconds,) * 2)


def take(folder, said):
    lock = RunLock(folder, said.append)
    lock.acquire()
    lock.release()


def test_the_lock_of_another_host_that_has_long_been_silent_is_taken_at_once(foreign):
    age(foreign, 60)
    said = []
    take(foreign, said)
    assert said == []


def test_the_lock_of_another_host_that_was_silent_for_a_moment_is_taken_after_a_while(foreign):
    said = []
    take(foreign, said)
    assert len(said) == 1 and "was last used on elsewhere; waiting 1 s to see whether it still is" in said[0]


def test_a_training_on_another_host_is_not_disturbed(foreign):
    ended = threading.Event()

    def live():
        while not ended.wait(0.05):
            os.utime(foreign / "run.lock")

    beating = threading.Thread(target=live)
    beating.start()
    status = (foreign / "status.json").read_bytes()
    said = []
    try:
        with pytest.raises(UserError, match=rf"process {os.getpid()} on elsewhere is training in it"):
            take(foreign, said)
    finally:
        ended.set()
        beating.join()
    assert (foreign / "status.json").read_bytes() == status
    age(foreign, 60)
    take(foreign, said)  # the refusal has given the kernel's lock back
    assert len(said) == 1


@pytest.mark.parametrize("state", ["finished", "preempted", "failed", "diverged"])
def test_a_run_that_has_ended_on_another_host_is_free(foreign, state):
    status = json.loads((foreign / "status.json").read_text())
    (foreign / "status.json").write_text(json.dumps({**status, "state": state}))
    said = []
    take(foreign, said)
    assert said == []


def test_a_damaged_status_is_no_obstacle(foreign):
    for text in ("", "{", "[]", "null"):
        (foreign / "status.json").write_text(text)
        take(foreign, [])


def test_the_lock_beats_until_it_is_released(foreign):
    age(foreign, 60)
    lock = RunLock(foreign, print)
    lock.acquire()
    lock.acquire()  # may be called again
    age(foreign, 60)
    deadline = time.monotonic() + GENEROUS
    while time.time() - (foreign / "run.lock").stat().st_mtime > 30:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(UserError, match="is training in it"):
        RunLock(foreign, print).acquire()
    lock.release()
    age(foreign, 60)
    time.sleep(0.2)
    assert time.time() - (foreign / "run.lock").stat().st_mtime > 30
    take(foreign, [])


def test_a_stopped_start_does_not_write_into_a_folder_in_use(tmp_path):
    write_status(tmp_path, "running", step=3)
    status = (tmp_path / "status.json").read_bytes()
    lock = RunLock(tmp_path, print)
    lock.acquire()
    record_preempted(tmp_path)
    assert (tmp_path / "status.json").read_bytes() == status
    lock.release()
    record_preempted(tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "preempted"


def test_a_run_that_is_still_preparing_is_not_taken_for_the_former_one(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    try:
        here, dead = socket.gethostname(), subprocess.Popen(["true"])
        dead.wait()
        for state, pid, host, who in (
            ("preempted", os.getpid(), here, "another process"),
            ("running", dead.pid, here, "another process"),
            ("running", os.getpid(), here, f"process {os.getpid()} on {here}"),
            ("running", dead.pid, "there", f"process {dead.pid} on there"),
        ):
            (tmp_path / "status.json").write_text(json.dumps({"state": state, "pid": pid, "host": host}))
            with pytest.raises(UserError, match=f": {who} is training in it"):
                second.acquire()
    finally:
        first.release()
