"""A run that receives a stop signal at any moment saves, reports it, ends and can continue."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter

import forked
import pytest
from reference import STEPS
from reference import configuration as reference_configuration
from runs import last_weights, run_folder
from watched import GENEROUS, commits, said, same, start_forked, status

from accel_restore.checkpoint.commits import find_commits, read_commit
from accel_restore.utils import signals as preemption
from accel_restore.utils.signals import StopRequest

COPIES_SECONDS = 2.0  # a second signal within this time counts as a copy of the first


def configuration(reference, out, ranks=1):
    """Return the configuration of the reference run with commits only at the ends of epochs."""
    return reference_configuration(reference.photos, out, ranks, checkpoint={"every_steps": None})


def assert_continues(config, reference, ranks=1):
    assert forked.run(config, ranks=ranks, mode="no_curves") == [0] * ranks, forked.printed(config)
    assert status(config)["state"] == "finished"
    assert same(last_weights(config), reference.weights(ranks))


# Phase, its occurrence, and the committed step with one rank and with two (None: the run has not started).
# With two ranks, the answers for a step arrive one step later.
PHASES = {
    "images are decoded": ("decode", 2, None, None),
    "the model is built": ("model", 1, None, None),
    "its folder is prepared": ("folder", 1, None, None),
    "between two micro-batches of step 3": ("micro", 5, 3, 4),
    "in the last step of an epoch": ("micro", 2 * STEPS - 1, STEPS, STEPS),
    "in a validation": ("image", 1, STEPS, STEPS),
    "in a save": ("commit", 1, STEPS, STEPS),  # or a later one: a thread saves while training continues
    "at the end of step 11": ("step", 11, 12, 13),
}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)  # Slurm sends SIGUSR1 to all processes


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", range(len(PHASES)), ids=PHASES)
def test_a_signal_in_any_phase_saves_and_the_run_continues(reference, tmp_path, number, ranks):
    phase, count, *steps = list(PHASES.values())[number]
    config, asked, step = configuration(reference, tmp_path, ranks), SIGNALS[number % 4], steps[ranks - 1]
    training = start_forked(config, f"await={phase}:{count}:{GENEROUS}", ranks=ranks)
    reaching = range(ranks) if phase in ("micro", "step", "image") else [None]  # only one rank decodes and saves
    for rank in reaching:
        training.wait_for(phase, rank=rank, count=count)
    best = run_folder(config) / "best.safetensors"
    former = best.read_bytes() if best.exists() else None
    training.signal(asked)
    assert training.exit_codes() == [143] * ranks, forked.printed(config)

    if phase == "commit":
        assert status(config)["step"] >= step
        step = status(config)["step"]
    where = "before the first step" if step is None else f"after step {step}"
    assert said(config)[-1] == f"accel-restore: stopped by {asked.name} {where}; the same command continues from there"
    assert len(said(config)) == (1 if step is None else 2)  # the other line reports that it is saving
    assert "Traceback" not in forked.printed(config)
    assert (status(config)["state"], status(config)["step"]) == ("preempted", step or 0)
    assert (commits(config) or [0])[-1] == (step or 0)
    if former is not None:
        assert best.read_bytes() == former
        assert status(config)["best"]["epoch"] == 0
    assert_continues(config, reference, ranks)


def test_control_a_run_that_ignores_the_signal_loses_its_steps(reference, tmp_path):
    config = configuration(reference, tmp_path)
    training = start_forked(config, "linger=step:3:1", "deaf")
    training.wait_for("step", "3")
    training.signal(signal.SIGTERM)
    assert training.exit_codes() == [-signal.SIGTERM]
    assert commits(config) == [] and status(config)["state"] == "running"


# A second signal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_signal_ends_the_run_at_once(reference, tmp_path, ranks):
    config = configuration(reference, tmp_path, ranks)
    training = start_forked(config, f"linger=step:11:{GENEROUS}", ranks=ranks)  # a step that does not end
    for rank in range(ranks):
        training.wait_for("step", "11", rank)
    training.signal(signal.SIGTERM)
    training.wait_until_said("SIGTERM: saving after this step; a second signal ends the run without saving")
    time.sleep(1.2 * COPIES_SECONDS)
    assert all(process.is_alive() for process in training.processes)  # control: one signal does not end them
    training.signal(signal.SIGINT)
    assert training.exit_codes() == [143] * ranks
    assert said(config)[-1] == "accel-restore: SIGINT: ended without saving; the last commit is kept"
    assert "Traceback" not in forked.printed(config)
    assert commits(config) == [STEPS]
    assert_continues(config, reference, ranks)


@pytest.mark.parametrize("protected", [True, False], ids=["protected", "control"])
def test_a_copy_of_a_signal_does_not_count_as_a_second_signal(reference, tmp_path, protected):
    config = configuration(reference, tmp_path)
    training = start_forked(config, "linger=step:11:1", *([] if protected else ["every_signal_counts"]))
    training.wait_for("step", "11")
    training.signal(signal.SIGTERM)
    training.wait_until_said("SIGTERM: saving after this step")
    training.signal(signal.SIGINT)
    assert training.exit_codes() == [143]
    assert commits(config) == ([STEPS, 12] if protected else [STEPS])
    assert status(config)["state"] == ("preempted" if protected else "running")
    assert_continues(config, reference)


def test_the_death_of_the_launcher_does_not_count_as_a_second_signal(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    stop, ended = StopRequest(), []
    monkeypatch.setattr(preemption.os, "_exit", ended.append)
    stop.may_save = True
    stop._hear(signal.SIGTERM)
    stop._heard_first -= 10 * COPIES_SECONDS
    monkeypatch.setattr(preemption.os, "getppid", lambda: 1)  # an orphan, to which the kernel sends SIGTERM
    stop._hear(signal.SIGTERM)
    assert ended == []
    stop._hear(signal.SIGTERM)  # control: it ends once
    assert ended == [143]


@pytest.mark.parametrize("may_save", [False, True])
def test_sigterm_from_a_launcher_after_an_error_is_not_a_stop_request(monkeypatch, may_save):
    """When a rank dies, torchrun sends SIGTERM to the others; the run's end is then due to the error."""
    stop, ended = StopRequest(), []
    monkeypatch.setattr(preemption.os, "_exit", ended.append)
    stop.may_save, stop.is_over = may_save, True
    stop._hear(signal.SIGTERM)
    stop._handle(signal.SIGTERM, None)
    stop._leave()
    assert not stop and ended == []
    stop._heard_first -= 10 * COPIES_SECONDS
    stop._hear(signal.SIGTERM)
    assert ended == [1]  # a process that hangs while it ends can still be stopped


# Long -----------------------------------------------------------------------------------------------------------------


@pytest.mark.sweep
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_at_a_random_moment_saves_and_the_run_continues(reference, tmp_path, ranks):
    cases, draw, ends = 50, random.Random(ranks), Counter()
    for name in ("first", "timed"):  # the first run may have to wait for imports
        began = time.monotonic()
        assert (
            forked.run(configuration(reference, tmp_path / name, ranks), ranks=ranks, mode="no_curves") == [0] * ranks
        )
    longest = time.monotonic() - began
    for case in range(cases):
        config, asked = configuration(reference, tmp_path / str(case), ranks), draw.choice(SIGNALS)
        training = start_forked(config, ranks=ranks)
        for rank in range(ranks):
            training.wait_for("listens", rank=rank)
        time.sleep(draw.uniform(0, 0.8 * longest))
        training.signal(asked)
        codes = training.exit_codes()
        told = f"case {case}, {asked.name}: {codes}\n{forked.printed(config)}"
        if not run_folder(config).exists():  # the run's folder was not known yet
            assert codes == [143] * ranks, told
            ends["stopped before"] += 1
            assert_continues(config, reference, ranks)
            continue
        finished = status(config)["state"] == "finished"
        # A signal that arrives after a process has restored its handlers may still end it.
        assert all(code == 143 or (finished and code in (0, -asked)) for code in codes), told
        assert "Traceback" not in forked.printed(config), told
        for commit in find_commits(run_folder(config) / "checkpoints"):
            read_commit(commit)
        assert (commits(config) or [0])[-1] == status(config)["step"], told
        ends["finished" if finished else "stopped in training" if commits(config) else "stopped before"] += 1
        assert_continues(config, reference, ranks)
    print(f"{ranks} ranks: {dict(ends)}")


@pytest.mark.parametrize("is_guarded", [True, False], ids=["", "control"])
def test_a_signal_while_the_handlers_are_installed_is_a_request(is_guarded):
    program = f"""
import signal
from accel_restore.utils import signals as preemption
if not {is_guarded}:
    preemption.StopRequest._is_deferred = property(lambda _: False, lambda *_: None)
preemption.die_with_launcher = lambda: signal.raise_signal(signal.SIGTERM)
with preemption.listening() as stop:
    print(stop)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert process.stdout == ("stopped by SIGTERM\n" if is_guarded else ""), process.stderr
    assert ("PreemptedError" in process.stderr) == (not is_guarded)


@pytest.mark.parametrize("is_guarded", [True, False], ids=["", "control"])
def test_an_interruption_swallowed_by_a_destructor_is_raised_again(is_guarded):
    program = f"""
import os, signal, time
from accel_restore.utils import signals as preemption
if not {is_guarded}:
    preemption.StopRequest._raise_again = lambda _: None
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
with preemption.listening():
    Dying()
    time.sleep(2)
    print("went on")
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ("went on" in process.stdout) == (not is_guarded), process.stderr
    assert ("PreemptedError: stopped by SIGTERM before the first step" in process.stderr) == is_guarded
    assert "Exception ignored" not in process.stderr


@pytest.mark.parametrize("is_guarded", [True, False], ids=["", "control"])
def test_python_keeps_running_if_an_interruption_of_the_start_is_caught(is_guarded):
    """In a notebook, Ctrl-C during the start of `fit` must not end Python seconds later."""
    program = f"""
import os, signal, time
from accel_restore.utils import signals as preemption
preemption._START_SECONDS = 0.5
if not {is_guarded}:
    preemption.StopRequest._leave = lambda _: os._exit(143)
    preemption.StopRequest._close = lambda _: None
try:
    with preemption.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
except preemption.PreemptedError:
    time.sleep(1.5)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == (0 if is_guarded else 143)


@pytest.mark.parametrize("is_guarded", [True, False], ids=["", "control"])
def test_an_interruption_is_delayed_until_imports_end(tmp_path, is_guarded):
    """torch's C++ code repeats failed imports, so an exception during one would be lost."""
    program = f"""
import os, signal, sys, time
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from accel_restore import train
from accel_restore.utils import signals as preemption
preemption._START_SECONDS = 0.1
if not {is_guarded}:
    preemption.StopRequest.deferred = lambda _: nullcontext()
class Torch:
    def find_spec(self, name, path, target=None):
        return ModuleSpec(name, self) if name == "accel_restore.trainer.run" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        except BaseException:
            print("imported half")
        module.run_training = lambda config, **given: print("trained")
sys.meta_path.insert(0, Torch())
sys.exit(train.main(["--cpu", "run.dir={tmp_path}"]))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert process.returncode == (143 if is_guarded else 0), process.stderr
    assert process.stdout.split("\n")[:-1] == ([] if is_guarded else ["imported half", "trained"])
    assert ("stopped by SIGINT before the first step" in process.stderr) == is_guarded
