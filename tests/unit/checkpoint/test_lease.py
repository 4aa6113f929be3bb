"""The lock on a run's folder, against processes on this host and on another one."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from accel_restore.checkpoint import run_lock
from accel_restore.checkpoint.run_lock import RunLock, record_preempted
from accel_restore.errors import UserError
from accel_restore.tracking.run_files import write_status

GENEROUS = 90.0  # seconds, a guard against hanging
LEASE = 1.0  # seconds


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    monkeypatch.setattr(run_lock, "_LEASE_SECONDS", LEASE)
    monkeypatch.setattr(run_lock, "_BEAT_SECONDS", 0.05)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Return a folder with the lock file of a process on another host, which does not touch it any more."""
    lock = RunLock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        lock.acquire()
        write_status(tmp_path, "running", step=3)
    content = (tmp_path / "run.lock").read_bytes()
    lock.release()
    (tmp_path / "run.lock").write_bytes(content)
    return tmp_path


def age(folder, seconds):
    os.utime(folder / "run.lock", (time.time() - seconds,) * 2)


def take(folder):
    """Take the lock and release it; return what was logged."""
    logged = []
    lock = RunLock(folder, logged.append)
    lock.acquire()
    lock.release()
    return logged


def test_lock_file_names_process_and_host_and_goes_with_the_run(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    content = (tmp_path / "run.lock").read_text()
    assert f"pid={os.getpid()}\n" in content and f"host={socket.gethostname()}" in content
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_host_that_was_silent_for_long_is_taken_at_once(foreign):
    age(foreign, 60)
    assert take(foreign) == []


def test_lock_of_a_host_that_was_silent_for_a_moment_is_taken_after_the_lease(foreign):
    (logged,) = take(foreign)
    assert "last used on elsewhere; waiting 1 s to see whether it is still in use" in logged


def test_lock_of_a_host_that_recorded_the_end_of_its_run_is_taken_at_once(foreign, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        write_status(foreign, "failed", step=3)
    assert take(foreign) == []


def test_training_on_another_host_is_not_disturbed(foreign):
    ended = threading.Event()

    def live():
        while not ended.wait(0.05):
            os.utime(foreign / "run.lock")

    beating = threading.Thread(target=live)
    beating.start()
    before = {path: path.read_bytes() for path in foreign.iterdir()}
    try:
        with pytest.raises(UserError, match=rf"process {os.getpid()} on elsewhere is training in it"):
            take(foreign)
    finally:
        ended.set()
        beating.join()
    assert {path: path.read_bytes() for path in foreign.iterdir()} == before
    age(foreign, 60)
    assert take(foreign) == []


def test_lock_released_on_another_host_while_this_one_waits_is_taken(foreign):
    timer = threading.Timer(0.3, (foreign / "run.lock").unlink)
    timer.start()
    assert len(take(foreign)) == 1
    timer.join()


@pytest.mark.parametrize("content", [b"", b"\0" * 50], ids=["empty", "zeros"])
def test_lock_file_without_an_owner_is_no_obstacle_once_it_is_old(tmp_path, content):
    """An older version, or a power failure, leaves such a file."""
    (tmp_path / "run.lock").write_bytes(content)
    with pytest.raises(UserError, match="another process is training in it"):
        take(tmp_path)
    age(tmp_path, 60)
    assert take(tmp_path) == []


def test_damaged_status_is_no_obstacle(foreign):
    for text in ("", "{", "[]", "null"):
        (foreign / "status.json").write_text(text)
        take(foreign)


def test_lock_is_touched_until_it_is_released(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.acquire()  # a second call does nothing
    age(tmp_path, 60)
    deadline = time.monotonic() + GENEROUS
    while time.time() - (tmp_path / "run.lock").stat().st_mtime > 30:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"process {os.getpid()} on {socket.gethostname()} is training in it"):
        RunLock(tmp_path).acquire()
    lock.release()
    assert take(tmp_path) == []


HOLD = """
import sys, time
from pathlib import Path
from accel_restore.checkpoint import run_lock
run_lock._LEASE_SECONDS = float(sys.argv[2])  # all that share a lock must agree on it
lock = run_lock.RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def holder(tmp_path):
    """Return another process of this host, which holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(LEASE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_stopped_process_of_this_host_keeps_the_lock_however_long_it_is_silent(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    age(tmp_path, 3600)
    with pytest.raises(UserError, match=f"process {holder.pid} on {socket.gethostname()} is training in it"):
        take(tmp_path)


@pytest.mark.parametrize("reaped", [True, False])
def test_lock_of_a_killed_process_of_this_host_is_taken_at_once(tmp_path, holder, reaped):
    holder.kill()
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert take(tmp_path) == []


def test_preempted_start_does_not_write_into_a_folder_in_use(tmp_path):
    write_status(tmp_path, "running", step=3)
    status = (tmp_path / "status.json").read_bytes()
    lock = RunLock(tmp_path)
    lock.acquire()
    record_preempted(tmp_path)
    assert (tmp_path / "status.json").read_bytes() == status
    lock.release()
    record_preempted(tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "preempted"
    assert not (tmp_path / "run.lock").exists()


def test_run_that_is_still_preparing_is_named_in_place_of_the_former_one(tmp_path):
    first = RunLock(tmp_path)
    first.acquire()
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "pid": 1, "host": "elsewhere"}))
    try:
        with pytest.raises(UserError, match=f"process {os.getpid()} on {socket.gethostname()} is training in it"):
            RunLock(tmp_path).acquire()
    finally:
        first.release()
