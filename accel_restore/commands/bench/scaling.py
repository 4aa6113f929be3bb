"""`bench train --scaling N`: the speed of 1, 2, 4 ... N processes of one machine, and what each adds."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from accel_restore.commands.bench.phases import EXCHANGE
from accel_restore.errors import UserError
from accel_restore.tracking.console import Console
from accel_restore.utils.signals import EXIT_CODE


def show_scaling(options: argparse.Namespace) -> dict[str, Any]:
    """The record of every number of processes by its name, after the table of them; each is started by torchrun.

    Efficiency is the speed over that of one process: on GPUs over as many times that; on CPUs the processes divide the
    same threads among them, so it is over that of one process with all of them.

    Raises: UserError for a number that this machine does not have, and with what a measurement has said.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--scaling: starts its processes itself; run it without a launcher")
    on_cpu = options.cpu or not torch.accelerator.is_available()
    most = _cores() if on_cpu else torch.accelerator.device_count()
    if not 1 <= options.scaling <= most:
        raise UserError(f"--scaling: must be 1 to {most}, the {'cores' if on_cpu else 'devices'} of this machine")
    sizes = sorted({2**power for power in range(options.scaling.bit_length())} | {options.scaling})
    records = {str(size): _measured(options, size, on_cpu) for size in sizes}
    one = records["1"]["samples_per_second"]
    rows = []
    for name, record in records.items():
        size = int(name)
        record["efficiency"] = record["samples_per_second"] / (one if on_cpu else size * one)
        step = sum(record["phases"].values())
        rows.append(
            (
                name,
                f"{record['samples_per_second']:.1f}",
                f"{record['samples_per_second'] / size:.1f}",
                f"{record['efficiency']:.2f}",
                f"{record['phases'][EXCHANGE] / step:.1%}",
                f"{record['ratio']['median']:.3f}",
            )
        )
    console = Console(True)
    console.table(
        f"scaling on {record['device']}",
        rows,
        ("processes", "samples/s", "of each", "efficiency", EXCHANGE, "trainer/bare"),
    )
    if on_cpu:
        console.log(f"the processes share {most} CPU threads; efficiency is relative to one process with all of them")
    return records


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measured(options: argparse.Namespace, size: int, on_cpu: bool) -> dict[str, Any]:
    """The record of `bench train` on so many processes."""
    with tempfile.TemporaryDirectory(prefix="accel-restore-bench-") as folder:
        file = Path(folder) / "record.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size)]
        command += ["-m", "accel_restore.cli", "bench", "train", "--seconds", str(options.seconds), "--json", str(file)]
        command += ["--cpu"] * on_cpu + (["--config", options.config] if options.config else [])
        if options.profile is not None:
            command += ["--profile", str(options.profile / f"{size}-processes")]
        paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if on_cpu:
            env["OMP_NUM_THREADS"] = str(max(1, _cores() // size))
        errors = _run([*command, *options.overrides], env)
        if not file.exists():
            said = [line for line in errors.splitlines() if line.startswith(("accel-restore: ", "  - "))]
            reason = "\n".join(said).removeprefix("accel-restore: ") or errors[-2000:]
            raise UserError(f"bench train with {size} process{'es' * (size > 1)}: {reason}")
        return json.loads(file.read_text())


def _run(command: list[str], env: dict[str, str]) -> str:
    """What a command says on standard error; it is ended with this process, by SIGTERM too."""
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_CODE))
    try:
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
        ) as process:
            try:
                return process.communicate()[1]
            except BaseException:
                process.terminate()
                raise
    finally:
        signal.signal(signal.SIGTERM, former)
