"""Runs of accel_restore in processes of their own."""

import os
import subprocess

from accel_restore.utils.children import python_command, python_environment
from accel_restore.utils.launch import Launch


def run_module(
    module: str, arguments: list[str], processes: int, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a module and wait for it; with several processes, torchrun starts them."""
    command = [*python_command(module), *arguments]
    if processes > 1:
        torchrun = [*python_command("torch.distributed.run"), "--standalone", "--nproc_per_node", str(processes)]
        command = [*torchrun, "--no-python", *command]
    with Launch().environment(settings=True):  # a launch of this process is not the child's
        env = {**os.environ, **python_environment(), "PYTHONIOENCODING": "utf-8", **(env or {})}
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=env)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return accel_restore's own messages on standard error, or the end of it if there are none."""
    messages = [line for line in done.stderr.splitlines() if line.startswith(("accel-restore: ", "  - "))]
    return "\n".join(messages).removeprefix("accel-restore: ") or done.stderr[-2000:]
