"""How many threads torch computes with on CPUs, and how they wait for each other."""

import os
from contextlib import suppress
from pathlib import Path

from accel_restore.utils.cgroups import num_cores
from accel_restore.utils.launch import launch_or_alone

_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # variables of torchrun and accelerate launch
_SPINS = "3000"  # some tens of microseconds; libgomp's default is 300,000


def spin_briefly() -> None:
    """Let waiting OpenMP threads sleep soon; call it before torch is imported.

    torch's wheels for Linux use libgomp, whose threads spin for milliseconds by default. Next to another busy process,
    a spinning thread can keep the core from the thread that it waits for, and training is several times slower. Without
    any spinning, training on an idle machine is a tenth slower. A user's own setting is kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:  # libgomp would ignore it
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def num_threads(parent: Path | None = None) -> int | None:
    """Return the number of threads with which this process should compute; None: leave it as it is.

    The processes of a machine share its cores equally. A user's own `OMP_NUM_THREADS` is kept. Launchers set it if the
    user has not, to 1 or to the cores of the whole machine; this is ignored. `parent` is the folder in /proc of the
    process that has started this one.
    """
    launch = launch_or_alone()
    if "OMP_NUM_THREADS" in os.environ and not _is_from_launcher(parent or Path(f"/proc/{os.getppid()}")):
        return None
    if launch.world_size > 1 and launch.local_rank is None:  # nor is the number of processes on this machine known
        return None
    own = num_cores()
    whole = max(own, num_cores(pid=os.getppid()))  # mpirun may bind each process to cores of its own
    return max(1, min(own, whole // launch.local_world_size))


def _is_from_launcher(parent: Path) -> bool:
    """Return whether a launcher has set OMP_NUM_THREADS: it was started without it, and without an option for it."""
    with suppress(OSError):
        if any(name in os.environ for name in _LAUNCHERS):
            options = (parent / "cmdline").read_bytes().replace(b"-", b"_")
            is_option = b"\0__num_cpu_threads" in options  # of accelerate launch
            return not is_option and b"OMP_NUM_THREADS=" not in (parent / "environ").read_bytes()
    return False
