"""A running training, forked or under a real launcher, that reports its phases to a test and accepts signals."""

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import forked
import torch
import yaml
from runs import DRIVER, clean_environment, run_folder

GENEROUS = 90.0  # seconds, a limit for a test that hangs


@dataclass
class Training:
    """A training whose processes report their phases through a file."""

    config: dict
    told: Path
    processes: list  # from `forked`, or one Popen

    def wait_for(self, phase: str, value: str = "", rank: int | None = 0, count: int = 1) -> str:
        """Wait until a rank (None: any) reaches a phase, with `value` if given, `count` times; return the reported
        value."""
        deadline = time.monotonic() + GENEROUS
        while time.monotonic() < deadline:
            lines = [line for line in self.lines() if rank is None or line[0] == str(rank)]
            reached = [found for _, what, found in lines if what == phase and value in ("", found)]
            if len(reached) >= count:
                return reached[count - 1]
            time.sleep(0.01)
        raise AssertionError(
            f"{phase} {value} was not reached:\n{self.told.read_text()}\n{forked.printed(self.config)}"
        )

    def wait_until_said(self, text: str) -> None:
        deadline = time.monotonic() + GENEROUS
        while text not in forked.printed(self.config):
            assert time.monotonic() < deadline, f"never said {text!r}:\n{forked.printed(self.config)}"
            time.sleep(0.01)

    def lines(self) -> list[tuple[str, ...]]:
        """Return the (rank, phase, value) lines reported so far."""
        text = self.told.read_text() if self.told.exists() else ""
        return [tuple(line.split(" ")) for line in text.splitlines() if line.count(" ") == 2]

    def codes(self) -> list[str]:
        """Return the exit codes of a launcher's workers."""
        return [value for _, phase, value in self.lines() if phase == "exit"]

    def signal(self, number: int) -> None:
        """Signal all ranks, as a launcher does, or the launcher."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def exit_codes(self) -> list[int]:
        """Wait for all processes and return their exit codes."""
        codes = []
        for process in self.processes:
            if isinstance(process, subprocess.Popen):
                codes.append(process.wait(GENEROUS))
            else:
                process.join(GENEROUS)
                codes.append(process.exitcode)
        return codes


def start_forked(config, *modes, ranks=1, **options):
    told = Path(config["run"]["dir"]) / "told"
    told.unlink(missing_ok=True)
    return Training(
        config,
        told,
        forked.start(config, ranks=ranks, mode=",".join(["no_curves", f"phases={told}", *modes]), **options),
    )


def start_launcher(command, config, *modes, script=DRIVER, env=None, **options):
    """Start a training under the launcher of the command line; it prints where `forked.printed` looks."""
    folder = Path(config["run"]["dir"])
    folder.mkdir(parents=True, exist_ok=True)
    file, told = folder / f"{config['run']['name']}.yaml", folder / "told"
    file.write_text(yaml.safe_dump(config))
    told.unlink(missing_ok=True)
    with file.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(
            [*command, str(script), "--config", str(file), "--cpu"],
            stdout=log,
            stderr=log,
            env={**clean_environment(), "RUN_TEST_MODE": ",".join([f"phases={told}", *modes]), **(env or {})},
            preexec_fn=_default_signals,  # SIGINT is ignored if tests run in background, SIGHUP under nohup
            **options,
        )
    return Training(config, told, [process])


def _default_signals():
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def processes_of(config):
    """Return the processes, launchers included, with this configuration on their command line."""
    found, file = [], f"{config['run']['dir']}/{config['run']['name']}.yaml".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if file in (folder / "cmdline").read_bytes() and not is_zombie:
                found.append(int(folder.name))
    return found


def wait_until_gone(config):
    deadline = time.monotonic() + GENEROUS
    while processes_of(config):
        assert time.monotonic() < deadline, f"left over: {processes_of(config)}\n{forked.printed(config)}"
        time.sleep(0.05)


def kill_all(config):
    for pid in processes_of(config):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(config)


def said(config):
    """Return the messages printed for the user."""
    return [line for line in forked.printed(config).splitlines() if line.startswith("accel-restore: ")]


def status(config):
    return json.loads((run_folder(config) / "status.json").read_text())


def commits(config):
    """Return the steps of the complete commits."""
    return sorted(int(path.parent.name[5:]) for path in run_folder(config).glob("checkpoints/step-*/COMMIT.json"))


def same(first, second):
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
