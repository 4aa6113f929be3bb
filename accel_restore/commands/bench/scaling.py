"""`bench train --scaling N`: the speed of 1, 2, 4 ... N processes on this machine, and what each adds."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from accel_restore.commands._children import error_of, run_module
from accel_restore.commands.bench.phases import EXCHANGE
from accel_restore.errors import UserError
from accel_restore.tracking.console import Console
from accel_restore.utils.cgroups import num_cores
from accel_restore.utils.launch import launch_or_alone


def show_scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Measure each number of processes, print a table, and return the records by number of processes.

    Efficiency is the speed divided by that of one process, and on GPUs also by the number of processes. On CPUs, the
    processes share the threads that one process has alone.

    Raises: UserError if the machine has fewer cores or devices, or a measurement fails.
    """
    if launch_or_alone().world_size > 1:
        raise UserError("--scaling: it starts its own processes; run it without a launcher")
    on_cpu = options.cpu or not torch.accelerator.is_available()
    most = num_cores() if on_cpu else torch.accelerator.device_count()
    if not 1 <= options.scaling <= most:
        raise UserError(f"--scaling: must be 1 to {most}, the {'cores' if on_cpu else 'devices'} of this machine")
    sizes = sorted({2**power for power in range(options.scaling.bit_length())} | {options.scaling})
    records = {str(size): _measured(options, size, on_cpu) for size in sizes}
    rows = []
    for name, record in records.items():
        size, speed = int(name), record["samples_per_second"]
        record["efficiency"] = speed / records["1"]["samples_per_second"] / (1 if on_cpu else size)
        share = record["phases"][EXCHANGE] / sum(record["phases"].values())
        rows.append(
            (
                name,
                f"{speed:.1f}",
                f"{speed / size:.1f}",
                f"{record['efficiency']:.2f}",
                f"{share:.1%}",
                f"{record['ratio']['median']:.3f}",
            )
        )
    console = Console(True)
    columns = ("processes", "samples/s", "per process", "efficiency", EXCHANGE, "trainer/bare")
    console.table(f"scaling on {records['1']['device']}", rows, columns)
    if on_cpu:
        console.log(f"the processes share {most} CPU threads; efficiency is relative to one process with all of them")
    return records


def _measured(options: argparse.Namespace, size: int, on_cpu: bool) -> dict[str, Any]:
    """Return the record of `bench train` on `size` processes."""
    with tempfile.TemporaryDirectory(prefix="accel-restore-bench-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "record.json"
        arguments = ["bench", "train", "--seconds", str(options.seconds), "--json", str(file)]
        arguments += ["--cpu"] * on_cpu + (["--config", options.config] if options.config else [])
        if options.profile is not None:
            arguments += ["--profile", str(options.profile / f"{size}-processes")]
        env = {"TMPDIR": folder}  # whatever ends the processes, nothing of theirs is left
        if on_cpu:
            env["OMP_NUM_THREADS"] = str(max(1, num_cores() // size))
        done = run_module("accel_restore.cli", [*arguments, *options.overrides], size, env)
        if not file.exists():
            raise UserError(f"bench train with {size} process{'es' * (size > 1)}: {error_of(done)}")
        return json.loads(file.read_bytes())
