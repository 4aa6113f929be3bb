"""Full, read-only or quota-limited disks: the failure is reported, saved files are kept, training continues."""

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import yaml
from runs import json_lines, run_folder, small_config

from accel_restore import load
from accel_restore.checkpoint.commits import find_commits, read_commit
from accel_restore.commands.verify_resume import compare

PHOTOS = 15, 2  # training, validation
GENEROUS = 90.0  # seconds; a guard against hanging
STEPS, PER_EPOCH = 32, 4
QUOTA = 200_000  # bytes per file: less than any weights, more than metrics.jsonl
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="another process's limits are set on Linux only")


def configuration(photos, out, work, name="run"):
    """Return a configuration with a commit after each step; the run is written to `out`, all else to `work`."""
    config = small_config(
        *photos,
        out,
        run={"name": name},
        checkpoint={"every_steps": 1, "keep": 2},
        train={"epochs": STEPS // PER_EPOCH, "ema_decay": 0.9},
        validation={"metrics": ["psnr"]},
    )
    config["data"] |= {"batch_size": 4, "cache_dir": str(work / "cache")}
    return config


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run with enough disk space."""
    out = tmp_path_factory.mktemp("whole")
    config = configuration(photos, out, out)
    assert forked.run(config) == [0]
    return config


@contextlib.contextmanager
def mounted(*arguments):
    """Mount within the context."""
    *options, place = arguments
    done = subprocess.run(["mount", *options, place], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@contextlib.contextmanager
def read_only(folder):
    with mounted("--bind", str(folder), str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield


@contextlib.contextmanager
def full(folder):
    """Leave no free byte on the disk of a folder within the context."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def limited(process):
    """Limit the size of each file of the process within the context."""
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (QUOTA, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


class Held:
    """A training that waits for the test after the given steps."""

    def __init__(self, config, work, *steps, ranks=1, mode=""):
        self.config, self.gate, self.log = config, work / "gate", work / "log"
        self.gate.mkdir(exist_ok=True)
        for step in steps:
            (self.gate / f"hold-{step}").touch()
        self.processes = forked.start(config, ranks=ranks, mode=f"{mode}gate={self.gate}", log=self.log)

    def reach(self, step):
        deadline = time.monotonic() + GENEROUS
        while not (self.gate / f"at-{step}").exists():
            assert time.monotonic() < deadline and self.processes[0].is_alive(), self.log.read_text()
            time.sleep(0.01)

    def go_on(self, step):
        (self.gate / f"hold-{step}").unlink()

    def exit_codes(self):
        for process in self.processes:
            process.join(GENEROUS)
        return [process.exitcode for process in self.processes]

    def said(self):
        """Return what was printed, without spaces because lines break anywhere."""
        return "".join(self.log.read_text().split())


def commits_of(config):
    return [commit.name for commit in find_commits(run_folder(config) / "checkpoints")]


def assert_intact(config, commits):
    """Assert that these commits and the best weights are readable, and that no other files are there."""
    folder = run_folder(config)
    assert commits_of(config) == commits
    for commit in find_commits(folder / "checkpoints"):
        read_commit(commit)
    load(folder / "best.safetensors")
    assert list(folder.rglob(".*")) == []


def assert_complete(whole, config):
    assert [row for row in compare(run_folder(whole), run_folder(config)) if row[1]] == []
    steps = [line["step"] for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert_intact(config, ["step-00000031", "step-00000032"])
    assert json.loads((run_folder(config) / "status.json").read_text())["state"] == "finished"


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)):
        yield place


def test_a_full_disk_skips_saves_only_while_it_is_full(photos, whole, small_disk, tmp_path):
    config = configuration(photos, small_disk, tmp_path)
    training = Held(config, tmp_path, 6, 30)
    training.reach(6)
    before = (run_folder(config) / "metrics.jsonl").read_text()
    with full(small_disk):
        training.go_on(6)
        training.reach(30)
        assert_intact(config, ["step-00000005", "step-00000006"])
        written = (run_folder(config) / "metrics.jsonl").read_text()
        assert written.startswith(before) and written.endswith("\n")  # no partial line
        assert json_lines(run_folder(config) / "metrics.jsonl")[-1]["step"] < 30
    training.go_on(30)
    assert training.exit_codes() == [0], training.log.read_text()
    said = training.said()
    assert "checkpointofstep7(thelastoneisstep-00000006):cannotbewritten(Nospaceleftondevice" in said
    assert "trainingcontinuesandtriesagainlater" in said
    assert "metrics.jsonl:cannotbewritten(Nospaceleftondevice);itslinesarekeptinmemory" in said
    assert_complete(whole, config)


def test_a_disk_that_stays_full_ends_the_run_which_continues_once_there_is_space(photos, whole, small_disk, tmp_path):
    config = configuration(photos, small_disk, tmp_path)
    training = Held(config, tmp_path, 29)
    training.reach(29)
    with full(small_disk):
        training.go_on(29)
        assert training.exit_codes() == [1]
        assert_intact(config, ["step-00000028", "step-00000029"])
        said = training.said()
        assert "thelastcheckpointcannotbewritten(Nospaceleftondevice:" in said and "Traceback" not in said
        assert "freesomespace,andcontinuefromthepreviouscheckpoint" in said
        assert forked.run(config, log=tmp_path / "again") == [2]  # it cannot start either
        said = "".join((tmp_path / "again").read_text().split())
        assert "cannotbewritten(Nospaceleftondevice)" in said and "Traceback" not in said
        assert_intact(config, ["step-00000028", "step-00000029"])
    assert forked.run(config) == [0]
    assert_complete(whole, config)


@linux_only
def test_a_quota_reached_while_writing_a_file_leaves_no_partial_file(photos, whole, tmp_path):
    config = configuration(photos, tmp_path, tmp_path)
    training = Held(config, tmp_path, 3, 10)
    training.reach(3)
    with limited(training.processes[0]):
        training.go_on(3)
        training.reach(10)
        assert commits_of(config) == ["step-00000002", "step-00000003"]  # the first best weights were not saved
        assert list(run_folder(config).rglob(".*")) == [] and not (run_folder(config) / "best.safetensors").exists()
    training.go_on(10)
    assert training.exit_codes() == [0], training.log.read_text()
    said = training.said()
    assert "best.safetensors:cannotbewritten(Filetoolarge" in said
    assert "checkpointofstep4(thelastoneisstep-00000003):cannotbewritten(Filetoolarge" in said
    assert_complete(whole, config)


@linux_only
def test_both_ranks_end_as_failed_when_the_last_save_fails(photos, tmp_path):
    config = configuration(photos, tmp_path, tmp_path)
    config["data"]["batch_size"], config["train"]["epochs"] = 2, 2
    training = Held(config, tmp_path, 6, ranks=2)
    training.reach(6)
    with limited(training.processes[0]):
        training.go_on(6)
        assert training.exit_codes() == [1, 1]
    said = training.said()
    assert said.count("thelastcheckpointcannotbewritten(Filetoolarge") == 1 and "Traceback" not in said
    assert_intact(config, ["step-00000005", "step-00000006"])
    status = json.loads((run_folder(config) / "status.json").read_text())
    assert status["state"] == "failed" and "free some space" in status["error"]
    assert forked.run(config, ranks=2) == [0, 0]


@linux_only
def test_control_without_tolerance_one_failed_save_ends_the_run(photos, tmp_path):
    config = configuration(photos, tmp_path, tmp_path)
    training = Held(config, tmp_path, 3, 10, mode="without=tolerance,")
    training.reach(3)
    with limited(training.processes[0]):
        training.go_on(3)
        assert training.exit_codes() == [1]
    assert not (training.gate / "at-5").exists()


def test_a_run_continues_while_its_checkpoint_folder_is_read_only(photos, whole, tmp_path):
    config = configuration(photos, tmp_path, tmp_path)
    training = Held(config, tmp_path, 6, 14)
    training.reach(6)
    with read_only(run_folder(config) / "checkpoints"):
        training.go_on(6)
        training.reach(14)
        assert_intact(config, ["step-00000005", "step-00000006"])
    training.go_on(14)
    assert training.exit_codes() == [0], training.log.read_text()
    assert "(thelastoneisstep-00000006):cannotbewritten(Read-onlyfilesystem" in training.said()
    assert_complete(whole, config)


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_in_a_read_only_folder_does_not_start(photos, tmp_path, begun):
    place = tmp_path / "place"
    place.mkdir()
    config = configuration(photos, place, tmp_path)
    if begun:
        assert forked.run(config, "--stop-after", "3", log=tmp_path / "first") == [143]
    file = tmp_path / "run.yaml"
    before = snapshot(place)
    with read_only(place):
        process = start_from(file, config, tmp_path / "log")
        process.join(GENEROUS)
        assert process.exitcode == 2, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert snapshot(place) == before
    assert "Read-only file system); set run.dir or run.name" in said and "Traceback" not in said


def start_from(file, config, log):
    """Start a training whose configuration file is outside its run folder."""
    file.write_text(yaml.safe_dump(config))
    (process,) = forked.start_ranks(forked._train, 1, log, ["--config", str(file), "--cpu"], "")
    return process


def snapshot(folder: Path):
    return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_files_are_synced_before_they_are_renamed(tmp_path):
    code = f"""
from pathlib import Path
from accel_restore.checkpoint.commits import prune, write_commit
for step in (1, 2):
    write_commit(Path({str(tmp_path / "run")!r}), step, 0, {{"state.json": b"{{}}"}})
prune(Path({str(tmp_path / "run")!r}), 1)
"""
    log = tmp_path / "strace"
    traced = "--trace=fsync,fdatasync,rename,renameat,renameat2,unlinkat,rmdir"
    command = ["strace", "-f", "-y", traced, "-o", str(log), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines() if str(tmp_path / "run") in line]
    seen = [
        (
            re.match(r"\w+", call)[0].replace("renameat2", "rename").replace("renameat", "rename"),
            re.findall(r"(?:run|step-\d+|\.removing-\w+|state\.json|COMMIT\.json)(?=[\">])", call)[0],
        )
        for call in calls
    ]
    commit = [("fsync", "state.json"), ("fsync", "COMMIT.json"), ("fsync", "step-00000002"),
              ("rename", "step-00000002"), ("fsync", "run"), ("rename", "step-00000001"), ("fsync", "run")]  # fmt: skip
    start = len(seen) - 1 - seen[::-1].index(("fsync", "state.json"))
    assert seen[start : start + len(commit)] == commit
    assert all(what in ("unlinkat", "rmdir") for what, _ in seen[start + len(commit) :])
