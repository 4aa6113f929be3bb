"""What the control groups of Linux (containers, Slurm, Kubernetes) leave to this process: memory and cores.

A group's limit holds for all processes in it and in the groups below it, so each group from this process's up to the
root counts. Both versions of control groups are read, wherever they are mounted.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROCESS = Path("/proc/self")


def memory_left(process: Path = _PROCESS) -> float:
    """Return the bytes that the control groups still grant, the least of all; inf without a limit.

    Cached files that were not read lately count as free: the kernel drops them first.
    """
    left = math.inf
    for group in _groups(process, "memory"):
        limits = [_number(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        used = max(_number(group / name, 0) for name in ("memory.current", "memory.usage_in_bytes"))
        stat = dict(line.split() for line in _lines(group / "memory.stat") if line.count(" ") == 1)
        cached = stat.get("total_inactive_file", stat.get("inactive_file", "0"))  # of the group and all below it
        left = min(left, min(limits) - used + int(cached))
    return max(0, left)


def num_cores(process: Path = _PROCESS, pid: int = 0) -> int:
    """Return the number of cores that this process may use; in a container or under Slurm these are not all.

    With `pid`, the cores are those of another process, and the limits still those of this process's groups.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        try:
            cores = len(os.sched_getaffinity(pid))
        except OSError:  # the other process has ended, or is not to be asked
            cores = len(os.sched_getaffinity(0))
    for group in _groups(process, "cpu"):
        quota, period = [*"".join(_lines(group / "cpu.max")).split(), "", ""][:2]
        pairs = [(quota, period), (_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))]
        for quota, period in pairs:
            if quota.isdecimal() and period.isdecimal() and int(period):  # else no limit
                cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def _groups(process: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups for a controller, and those of the groups above them."""
    mounts = [line.split() for line in _lines(process / "mountinfo")]
    for line in _lines(process / "cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in mounts:
            kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
            if kind == ("cgroup" if controllers else "cgroup2") and (not controllers or controller in options):
                yield from _chain(Path(mount[4]), Path(mount[3]), Path(name))


def _chain(mounted: Path, root: Path, name: Path) -> Iterator[Path]:
    """Yield the folder of a group and of those above it, where the group `root` is mounted at `mounted`.

    In a container the mount may begin at the container's own group, and `name` may be its name outside the container.
    """
    below = name.relative_to(root) if name.is_relative_to(root) else Path()
    folder = mounted / below
    if ".." in below.parts or not folder.is_dir():
        folder = mounted
    yield folder
    while folder != mounted:
        folder = folder.parent
        yield folder


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _text(file: Path) -> str:
    return "".join(_lines(file)).strip()


def _number(file: Path, default: float = math.inf) -> float:
    text = _text(file)
    return int(text) if text.isdecimal() else default
