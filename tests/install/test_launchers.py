"""Real launchers are stopped or killed: their workers save and end, and no process is left."""

import json
import os
import signal
import subprocess
import sys

import forked
import pytest
import yaml
from reference import configuration as reference_configuration
from runs import DRIVER, ROOT, TRAIN, clean_environment, command_line, last_weights, run_folder, small_config
from watched import GENEROUS, commits, kill_all, processes_of, said, same, start_launcher, status, wait_until_gone

from accel_restore.utils.cgroups import num_cores

PHOTOS = 8, 1  # training, validation
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; a parent's death signal is Linux's")

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
ONE = [*ACCELERATE, "--num_processes", "1", "--cpu"]
TWO = [*ACCELERATE, "--config_file", str(ROOT / "launch" / "cpu_2proc.yaml")]


def torchrun(*options):
    return command_line(2, DRIVER, options)[:-1]


def configuration(reference, out, ranks):
    """Return the configuration of the reference run with commits only at the ends of epochs."""
    return reference_configuration(reference.photos, out, ranks, checkpoint={"every_steps": None})


def to_launcher(training, number):
    training.signal(number)


def to_group(training, number):
    """Signal the launcher and all its children, as Ctrl-C in a terminal and Slurm do."""
    os.killpg(training.processes[0].pid, number)


# Launcher, ranks, signal, its receiver, and the signal that the workers receive.
CASES = {
    "accelerate, one process, TERM": (lambda: ONE, 1, signal.SIGTERM, to_launcher, "SIGTERM"),
    "accelerate, one process, Ctrl-C": (lambda: ONE, 1, signal.SIGINT, to_group, "SIGINT"),
    "accelerate, one process, killed": (lambda: ONE, 1, signal.SIGKILL, to_launcher, "SIGTERM"),
    "accelerate, two processes, TERM": (lambda: TWO, 2, signal.SIGTERM, to_launcher, "SIGTERM"),
    "torchrun, TERM": (torchrun, 2, signal.SIGTERM, to_launcher, "SIGTERM"),
    "torchrun, INT": (torchrun, 2, signal.SIGINT, to_launcher, "SIGINT"),
    "accelerate, one process, HUP": (lambda: ONE, 1, signal.SIGHUP, to_launcher, "SIGTERM"),
    "accelerate, two processes, HUP": (lambda: TWO, 2, signal.SIGHUP, to_launcher, "SIGHUP"),
    "torchrun, HUP": (torchrun, 2, signal.SIGHUP, to_launcher, "SIGHUP"),
    "torchrun, killed": (torchrun, 2, signal.SIGKILL, to_launcher, "SIGTERM"),
    "torchrun, USR1": (
        lambda: torchrun("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"),
        2,
        signal.SIGUSR1,
        to_launcher,
        "SIGUSR1",
    ),
}


# These take seconds each and resemble other cases.
LONG = ("torchrun, INT", "torchrun, TERM", "torchrun, killed", "accelerate, two processes, TERM")


@pytest.mark.parametrize(
    ("command", "ranks", "number", "send", "heard"),
    [pytest.param(*case, id=name, marks=pytest.mark.sweep if name in LONG else ()) for name, case in CASES.items()],
)
def test_a_run_whose_launcher_is_stopped_saves_and_continues(reference, tmp_path, command, ranks, number, send, heard):
    config = configuration(reference, tmp_path, ranks)
    training = start_launcher(command(), config, f"await=step:3:{GENEROUS}", start_new_session=True)
    try:
        for rank in range(ranks):
            training.wait_for("step", "3", rank)
        send(training, number)
        (code,) = training.exit_codes()
        assert code != 0
        wait_until_gone(config)
    finally:
        kill_all(config)
    assert training.codes() == ["143"] * ranks, forked.printed(config)
    step = 3 + ranks  # with two ranks, the answers for step 3 arrive one step later
    assert commits(config) == [step]
    assert status(config)["state"] == "preempted" and status(config)["step"] == step
    stopped = f"stopped by {heard} after step {step}"
    assert f"accel-restore: {stopped}; the same command continues from there" in said(config)
    assert forked.run(config, ranks=ranks, mode="no_curves") == [0] * ranks
    assert same(last_weights(config), reference.weights(ranks))


def test_control_without_the_death_signal_an_orphan_trains_on(reference, tmp_path):
    config = configuration(reference, tmp_path, 1)
    training = start_launcher(ONE, config, f"await=step:3:{GENEROUS}", "no_death_signal")
    try:
        training.wait_for("step", "3")
        (orphan,) = [int(value) for _, phase, value in training.lines() if phase == "main"]
        training.signal(signal.SIGTERM)
        training.exit_codes()
        assert processes_of(config) == [orphan]
        assert commits(config) == [] and said(config) == []
    finally:
        kill_all(config)


@pytest.mark.parametrize(("own", "threads"), [({}, num_cores()), ({"OMP_NUM_THREADS": "1"}, 1)], ids=["none", "one"])
def test_a_launcher_trains_on_as_many_threads_as_the_command(photos, tmp_path, own, threads):
    environment = {name: value for name, value in clean_environment().items() if name != "OMP_NUM_THREADS"}
    for number, command in enumerate(([sys.executable], ["accelerate", "launch"])):
        config = small_config(*photos, tmp_path, run={"name": f"run{number}"})
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        line = [*command, str(TRAIN), "--config", str(file), "--cpu", "--stop-after", "1"]
        subprocess.run(line, env={**environment, **own}, capture_output=True)
        devices = dict(json.loads((run_folder(config) / "plan.json").read_text())["plan"])["devices"]
        assert devices == f"1 × cpu, {threads} thread{'s' * (threads > 1)}"
