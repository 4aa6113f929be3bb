"""Only one training at a time uses a run's folder. A second one is refused; a killed one does not block the folder."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import forked
import pytest
from runs import run_folder, small_config

PHOTOS = 15, 2  # training, validation
GENEROUS = 90.0  # seconds, a limit for a test that hangs


def configuration(photos, out, ranks=1):
    return small_config(*photos, out, data={"batch_size": 4 // ranks}, checkpoint={"every_steps": 1})


@contextlib.contextmanager
def held_after(step, config, ranks=1, mode=""):
    """Yield the processes of a training that waits after a step; kill them at the end."""
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
    """Return the files of a run, except the lock: its heartbeat changes it."""
    files = (path for path in run_folder(config).rglob("*") if path.is_file() and path.name != "run.lock")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_training_is_refused_and_the_first_continues(photos, tmp_path, ranks):
    config = configuration(photos, tmp_path, ranks)
    with held_after(3, config, ranks) as (first, gate):
        before = snapshot(config)
        for arguments in ([], ["--overwrite"])[::ranks]:
            log = tmp_path / f"second{len(arguments)}"
            assert forked.run(config, *arguments, ranks=ranks, log=log) == [2] * ranks
            said = log.read_text()
            assert f"process {first[0].pid} on {socket.gethostname()} is training in it" in said
            assert "wait until it ends or stop it, or choose another run.name" in said and "Traceback" not in said
        assert snapshot(config) == before
        gate.unlink()
        for process in first:
            process.join(GENEROUS)
        assert [process.exitcode for process in first] == [0] * ranks


def test_control_without_the_lock_both_trainings_write(photos, tmp_path):
    config = configuration(photos, tmp_path)
    with held_after(3, config, mode="without=lock,"):
        before = snapshot(config)
        assert forked.run(config, mode="without=lock") == [0]
        assert snapshot(config) != before


def test_a_killed_training_continues_at_once(photos, tmp_path):
    config = configuration(photos, tmp_path)
    with held_after(3, config) as (first, _):
        os.kill(first[0].pid, signal.SIGKILL)
    assert json.loads((run_folder(config) / "status.json").read_text())["state"] == "running"
    assert forked.run(config) == [0]
    said = forked.printed(config)
    assert "continues" in said and "waiting" not in said
