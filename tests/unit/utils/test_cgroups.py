"""What control groups leave to this process: each group up to the root counts, and what it already uses."""

import math
import os
import subprocess

import psutil
import pytest

from accel_restore.utils import cgroups, memory
from accel_restore.utils.cgroups import memory_left, num_cores

GIB = 2**30
ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def machine(tmp_path):
    """Return a function that makes a process's files: its groups, where they are mounted, and the files of groups."""

    def make(groups, mounts, files):
        process = tmp_path / "self"
        process.mkdir()
        (process / "cgroup").write_text("".join(f"{line}\n" for line in groups))
        lines = ["23 1 8:1 / / rw,relatime - ext4 /dev/sda rw"]
        for number, (root, folder, kind, options) in enumerate(mounts):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            lines.append(
                f"{30 + number} 23 0:2 {root} {tmp_path / folder} rw,relatime shared:9 - {kind} none {options}"
            )
        (process / "mountinfo").write_text("".join(f"{line}\n" for line in lines))
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return process

    return make


def v1(folder, limit, used, inactive):
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used,
        f"{folder}/memory.stat": f"cache 1\ninactive_file 1\ntotal_inactive_file {inactive}",
    }


def v2(folder, limit, used, inactive, high="max"):
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.high": high,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 5\nactive_file 7\ninactive_file {inactive}",
    }


SECOND = ["0::/user/job/step"], [("/", "cg", "cgroup2", "rw,nsdelegate")]
MEMORY = {  # groups and mounts, files, bytes that are left
    "what is used is subtracted": (*SECOND, v2("cg/user/job/step", 8 * GIB, 6 * GIB, 0), 2 * GIB),
    "cached files are free": (*SECOND, v2("cg/user/job/step", 8 * GIB, 6 * GIB, 4 * GIB), 6 * GIB),
    "a group above is smaller": (
        *SECOND,
        {**v2("cg/user/job/step", 8 * GIB, GIB, 0), **v2("cg/user/job", 4 * GIB, 2 * GIB, GIB)},
        3 * GIB,
    ),
    "only a group above has a limit": (
        *SECOND,
        {**v2("cg/user/job/step", "max", GIB, 0), **v2("cg/user", 4 * GIB, 3 * GIB, 0)},
        GIB,
    ),
    "the lower limit of two": (*SECOND, v2("cg/user/job/step", 8 * GIB, GIB, 0, high=3 * GIB), 2 * GIB),
    "nothing is left": (*SECOND, v2("cg/user/job/step", GIB, 2 * GIB, 0), 0),
    "no limit": (*SECOND, v2("cg/user/job/step", "max", GIB, 0), math.inf),
    "no files": (*SECOND, {}, math.inf),
    "a container's own group": (["0::/"], [("/", "cg", "cgroup2", "rw")], v2("cg", 8 * GIB, 6 * GIB, GIB), 3 * GIB),
    "a container that is mounted by its outer name": (
        ["0::/docker/abc"],
        [("/docker/abc", "cg", "cgroup2", "rw")],
        v2("cg", 8 * GIB, 6 * GIB, GIB),
        3 * GIB,
    ),
    "a name above the container": (
        ["0::/../other"],
        [("/", "cg", "cgroup2", "rw")],
        v2("cg", 8 * GIB, 6 * GIB, GIB),
        3 * GIB,
    ),
    "version 1": (
        ["5:cpuset,cpu:/x", "4:memory:/slurm/job", "0::/"],
        [("/", "cg/memory", "cgroup", "rw,memory"), ("/", "cg/cpu", "cgroup", "rw,cpuset,cpu")],
        {**v1("cg/memory/slurm/job", 8 * GIB, 5 * GIB, GIB), **v1("cg/memory/slurm", 2**63 - 4096, 9 * GIB, 0)},
        4 * GIB,
    ),
    "version 1 in a container": (
        ["4:memory:/docker/abc"],
        [("/docker/abc", "cg/memory", "cgroup", "rw,memory")],
        v1("cg/memory", 8 * GIB, 5 * GIB, GIB),
        4 * GIB,
    ),
    "version 1, two controllers in one": (
        ["4:pids,memory:/job"],
        [("/", "cg/both", "cgroup", "rw,pids,memory")],
        v1("cg/both/job", 8 * GIB, 5 * GIB, GIB),
        4 * GIB,
    ),
}


@pytest.mark.parametrize(("groups", "mounts", "files", "left"), MEMORY.values(), ids=MEMORY)
def test_memory_is_the_least_that_a_group_still_grants(machine, groups, mounts, files, left):
    assert memory_left(machine(groups, mounts, files)) == left


def test_free_memory_is_at_most_that_of_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "memory_left", lambda: math.inf)
    assert 0 < memory.memory_bytes() <= psutil.virtual_memory().total
    monkeypatch.setattr(memory, "memory_left", lambda: 1000)
    assert memory.memory_bytes() == 1000


def test_a_machine_without_control_groups_has_no_limit(tmp_path):
    assert memory_left(tmp_path) == math.inf and num_cores(tmp_path) == ALL


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to cores")
def test_the_cores_of_another_process_are_those_that_it_is_bound_to():
    with subprocess.Popen(["sleep", "60"]) as other:
        core = min(os.sched_getaffinity(0))
        os.sched_setaffinity(other.pid, {core})
        assert num_cores(pid=other.pid) == 1
        other.kill()
    assert num_cores(pid=other.pid) == num_cores(), "it has ended"


CORES = {  # groups and mounts, files, cores of 64
    "a quota": (*SECOND, {"cg/user/job/step/cpu.max": "300000 100000"}, 3),
    "a part of a core": (*SECOND, {"cg/user/job/step/cpu.max": "50000 100000"}, 1),
    "a quota of a part more": (*SECOND, {"cg/user/job/step/cpu.max": "250000 100000"}, 3),
    "a group above": (*SECOND, {"cg/user/job/step/cpu.max": "max 100000", "cg/user/cpu.max": "200000 100000"}, 2),
    "no quota": (*SECOND, {"cg/user/job/step/cpu.max": "max 100000"}, 64),
    "a quota above the machine": (*SECOND, {"cg/user/job/step/cpu.max": "9900000 100000"}, 64),
    "version 1": (
        ["4:cpu,cpuacct:/job"],
        [("/", "cg/cpu", "cgroup", "rw,cpu,cpuacct")],
        {"cg/cpu/job/cpu.cfs_quota_us": 400000, "cg/cpu/job/cpu.cfs_period_us": 100000},
        4,
    ),
    "version 1 without a quota": (
        ["4:cpu,cpuacct:/job"],
        [("/", "cg/cpu", "cgroup", "rw,cpu,cpuacct")],
        {"cg/cpu/job/cpu.cfs_quota_us": -1, "cg/cpu/job/cpu.cfs_period_us": 100000},
        64,
    ),
}


@pytest.mark.parametrize(("groups", "mounts", "files", "cores"), CORES.values(), ids=CORES)
def test_cores_are_the_least_of_affinity_and_quotas(machine, monkeypatch, groups, mounts, files, cores):
    monkeypatch.setattr(cgroups.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert num_cores(machine(groups, mounts, files)) == cores
