"""Runs of accel_restore in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import accel_restore
from accel_restore.utils.launch import Launch


def run_module(
    module: str, arguments: list[str], processes: int, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` and wait for it; with several processes, torchrun starts them."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), module, *arguments]
    paths = [str(Path(accel_restore.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    text = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
    with Launch().environment(settings=True):  # a launch of this process is not the child's
        env = {**os.environ, **text, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(env or {})}
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=env)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return accel_restore's own messages on standard error, or the end of it if there are none."""
    messages = [line for line in done.stderr.splitlines() if line.startswith(("accel-restore: ", "  - "))]
    return "\n".join(messages).removeprefix("accel-restore: ") or done.stderr[-2000:]
