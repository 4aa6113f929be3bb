"""A rank that fails, dies, hangs or is slow is named, and the job ends in time. The run then continues as if nothing
had happened."""

import json
import re
import time
from types import SimpleNamespace

import forked
import pytest
import torch
from reference import configuration as reference_configuration
from runs import DRIVER, last_weights, launch, run_folder, succeed
from watched import same

from accel_restore.callbacks.straggler import StragglerDetector
from accel_restore.distributed import heartbeat as ranks

FAULT_STEP = 6  # in a run of two epochs of eight steps
TIMEOUT = 8.0  # seconds, train.rank_timeout


def configuration(reference, out, rank_timeout=TIMEOUT, every_steps=2, **sections):
    """Return the configuration of the reference run on two ranks; its weights do not depend on timeouts and commits."""
    train = {"rank_timeout": rank_timeout, **sections.pop("train", {})}
    checkpoint = {"every_steps": every_steps}
    return reference_configuration(reference.photos, out, 2, train=train, checkpoint=checkpoint, **sections)


def assert_continues(config, reference):
    """Assert that the run continues, on a busy machine too, and ends with the weights of an uninterrupted run."""
    config = {**config, "train": {**config["train"], "rank_timeout": 10 * TIMEOUT}}
    assert forked.run(config, ranks=2) == [0, 0], forked.printed(config)
    assert same(last_weights(config), reference.weights(2))


def said(config):
    """Return what was printed for the user, without the traceback of the failed rank."""
    return [line for line in forked.printed(config).splitlines() if line.startswith("accel-restore: ")]


FAULTS = {
    "raises": ("raise@1", "rank 1 failed: ValueError: a fault that the test has made"),
    "the main process raises": ("raise@0", "rank 0 failed: ValueError: a fault that the test has made"),
    "is killed": ("kill@1", "rank 1 has died (killed, or out of memory), or the network is cut"),
    "the main process is killed": ("kill@0", "rank 0 has died, or the network to it is cut"),
    "hangs": ("hang@1", "no heartbeat from rank 1"),
    "the main process hangs": ("hang@0", "rank 0, or the network to it, has been unreachable for"),
}


@pytest.mark.parametrize(("mode", "message"), FAULTS.values(), ids=FAULTS)
def test_a_lost_rank_ends_the_job_and_is_named(reference, tmp_path, mode, message):
    fault, rank = mode[:-2], int(mode[-1])
    # A hanging rank is found only by its missing heartbeat, the others at once. With a short timeout on a busy
    # machine, a missing heartbeat may be reported in place of the cause.
    config = configuration(reference, tmp_path, rank_timeout=TIMEOUT if fault == "hang" else 5 * TIMEOUT)
    codes = forked.run(config, ranks=2, mode=f"{mode}:{FAULT_STEP}")
    assert codes[1 - rank] == 1, forked.printed(config)
    assert codes[rank] == (1 if fault == "raise" else -9)  # the other rank kills the one that hangs
    (line,) = said(config)
    assert message in line and f"rank {rank}" in line
    assert line.endswith("the same command continues from the last commit")
    if fault != "raise":
        assert "Traceback" not in forked.printed(config)
    status = json.loads((run_folder(config) / "status.json").read_text())
    assert status["state"] == "failed" and (f"rank {rank}" in status["error"] or "the test has made" in status["error"])

    assert_continues(config, reference)


def test_a_rank_that_makes_no_progress_is_named_with_its_phase(reference, tmp_path):
    config = configuration(reference, tmp_path)
    assert forked.run(config, ranks=2, mode=f"stall@1:{FAULT_STEP}") == [1, -9]
    (line,) = said(config)
    assert "rank 1 has made no progress for" in line and f"logging or saving, after step {FAULT_STEP}" in line
    assert_continues(config, reference)


def test_control_without_the_monitor_the_job_hangs(reference, tmp_path):
    config = configuration(reference, tmp_path, rank_timeout=1800.0)  # torch's default; it limits collectives too
    processes = forked.start(config, ranks=2, mode=f"hang@1:{FAULT_STEP},without=watch")
    deadline = time.monotonic() + 60
    while not (run_folder(config) / "checkpoints" / f"step-{FAULT_STEP:08d}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes[0].join(2 * TIMEOUT)
    assert processes[0].is_alive()
    for process in processes:
        process.kill()
        process.join()


def test_a_slow_rank_is_named_with_its_times(reference, tmp_path):
    data = {"batch_size": 1, "crops_per_image": 4}
    # no commits: on a busy disk they make the main process the slow one
    config = configuration(
        reference, tmp_path, data=data, train={"global_batch_size": None}, every_steps=1000, rank_timeout=60.0
    )
    assert forked.run(config, "train.epochs=2", ranks=2, mode="slow@1:0") == [0, 0]
    (line,) = (line for line in forked.printed(config).splitlines() if "is slow" in line)
    # after three windows of 20 steps, or later if the machine delayed the other rank in one of them
    own = (
        r"step (60|80|100|120): rank 1 is slow, and the others wait for it: its own part of a step takes \d+\.\d{3} s "
    )
    assert re.match(own + r"\(\d+\.\d{3} s waiting for data\), the others' \d+\.\d{3} s \(\d+\.\d{3} s\)$", line)


def test_the_monitor_ends_the_process_even_if_its_report_fails(monkeypatch):
    def say(reason):
        raise BrokenPipeError

    ended = []
    monkeypatch.setattr(ranks.os, "_exit", ended.append)
    watch = ranks.RankMonitor(SimpleNamespace(process_index=1, num_processes=2), 10.0, say)
    watch.is_published.set()
    with pytest.raises(BrokenPipeError):  # control: the error is not caught, so the code after it must be in `finally`
        watch._end(ranks.Verdict((0,), "silent", "no heartbeat from rank 0"))
    assert ended == [1]


def test_only_a_rank_that_stays_slow_is_reported_and_only_once():
    said = []
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    pace = StragglerDetector(alone, SimpleNamespace(observers=[]), None, said.append)

    def compare(windows):  # windows of (own time, waiting time) of a step in seconds, for three ranks
        for step, window in enumerate(windows):
            pace._compare(window, step)

    slow, even = [[0.1, 0.0], [0.2, 0.1], [0.1, 0.0]], [[0.1, 0.0], [0.14, 0.0], [0.1, 0.0]]
    another = [[0.2, 0.0], [0.1, 0.0], [0.1, 0.0]]
    compare([even] * 9 + [slow, slow, even] * 3 + [slow, slow, another] * 3)
    assert said == []
    compare([slow] * 9)
    (line,) = said
    assert line == (
        "step 2: rank 1 is slow, and the others wait for it: its own part of a step takes 0.200 s (0.100 s waiting for "
        "data), the others' 0.100 s (0.000 s)"
    )


@pytest.mark.sweep  # one minute each
@pytest.mark.parametrize("fault", ["kill@1", "raise@0"])
def test_a_job_that_torchrun_restarts_ends_with_the_same_weights(reference, tmp_path, fault):
    config = configuration(reference, tmp_path, rank_timeout=60.0)
    options = ("--max-restarts", "3", "--monitor-interval", "1")
    env = {"RUN_TEST_MODE": f"{fault}:{FAULT_STEP}"}
    succeed(launch(config, ranks=2, script=DRIVER, env=env, launcher_options=options))
    assert same(last_weights(config), reference.weights(2))
    without = launch(config, "--overwrite", ranks=2, script=DRIVER, env=env)
    assert without.returncode != 0  # control: the fault occurred
