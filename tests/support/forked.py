"""Training in real processes, forked from one that has imported everything (`preload`), so that they start in 0.1 s.

For tests that start many processes. Each has its own rank, signals, memory and exit code. Its environment is that of
the first start: later changes in a test's environment have no effect.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import driver
import yaml

from accel_restore import train

os.environ["OMP_NUM_THREADS"] = "1"  # for forked processes, as in `runs.launch`: else sums round differently
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["preload"])


def start(config: dict, *arguments: str, ranks: int = 1, mode: str = "", log: Path | None = None) -> list[BaseProcess]:
    """Start a training; return its running processes, one per rank. They print to `log`."""
    folder = Path(config["run"]["dir"])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{config['run']['name']}.yaml"
    file.write_text(yaml.safe_dump(config))
    log = log or folder / f"{config['run']['name']}.log"
    return start_ranks(_train, ranks, log, ["--config", str(file), "--cpu", *arguments], mode)


def start_ranks(function: Callable[..., int], ranks: int, log: Path, *arguments: Any) -> list[BaseProcess]:
    """Start one process per rank, whose exit code is the return value of `function`. They print to `log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    log.touch()  # so that it can always be read
    for rank in range(ranks):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(start_process(_call, function, env if ranks > 1 else {}, str(log), arguments))
    return processes


def start_process(function: Callable[..., int], *arguments: Any) -> BaseProcess:
    """Start a process whose exit code is the return value of `function`.

    `function` is at the top level of a module. The process prints where the tests do.
    """
    _start_server()
    process = _CONTEXT.Process(target=_run, args=(function, arguments))
    process.start()
    return process


def codes(processes: list[BaseProcess], timeout: float = 120) -> list[int]:
    """Wait for processes and return their exit codes."""
    for process in processes:
        process.join(timeout)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive, f"still running after {timeout} s"
    return [process.exitcode for process in processes]


def run(config: dict, *arguments: str, timeout: float = 120, **options) -> list[int]:
    """Run a training to its end and return its exit codes."""
    return codes(start(config, *arguments, **options), timeout)


def launch(config: dict, *arguments: str, timeout: float = 120, **options) -> subprocess.CompletedProcess:
    """Train like `runs.launch`, but without a launcher; both output streams are one.

    The exit code is that of the first rank ended by a signal, otherwise the first one that is not 0.
    """
    log = Path(config["run"]["dir"]) / f"{config['run']['name']}.launch.log"
    log.unlink(missing_ok=True)
    ended = run(config, *arguments, timeout=timeout, log=log, **options)
    code = min(filter(None, ended), key=lambda code: code > 0, default=0)
    return subprocess.CompletedProcess(arguments, code, stdout=log.read_text(), stderr=log.read_text())


def printed(config: dict) -> str:
    """Return what the last trainings of a configuration have printed."""
    return (Path(config["run"]["dir"]) / f"{config['run']['name']}.log").read_text()


def _start_server() -> None:
    """Start the fork server unless it runs. It finds `preload` only through PYTHONPATH."""
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([former] if former else [])])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if former is not None:
            os.environ["PYTHONPATH"] = former


def _run(function: Callable, arguments: tuple) -> None:
    # Python ignores a preload that cannot be imported. Each process would then import everything itself.
    assert "preload" in sys.modules, "the process to fork from could not import tests/support/preload.py"
    sys.exit(function(*arguments))


def _call(function: Callable[..., int], env: dict, log: str, arguments: tuple) -> int:
    os.environ.update({name: str(value) for name, value in env.items()})
    for name in ("WANDB_API_KEY", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(name, None)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    return function(*arguments)


def _train(arguments: list[str], mode: str) -> int:
    driver.install(mode)
    return train.main(arguments)
