"""A Slurm cluster of two nodes on this machine, for tests: a munged, slurmctld and two slurmd on ports of their own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from runs import clean_environment

NODES = ("node1", "node2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
GENEROUS = 60.0  # seconds, a guard against hanging

# Slurm looks at time limits twice a minute. A job that is queued again may begin when its credentials have expired:
# after two minutes, unless told otherwise. The GPUs are pretended: they count, and nothing opens them.
_CONFIGURATION = """\
ClusterName=testing
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n.spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerParameters=sched_interval=5,bf_interval=5
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.log
PartitionName=all Nodes=ALL Default=YES State=UP
"""
_NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Gres=gpu:1\n"


class Cluster:
    """Two nodes with a pretended GPU each; needs root, and the programs of Debian's slurm-wlm and munge.

    Raises: OSError, TimeoutError where it cannot be started.
    """

    def __init__(self) -> None:
        self.folder = folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        folder.chmod(0o755)  # munged wants its socket where everybody can reach it, which pytest's folders are not
        self.environment = {**clean_environment(), "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen] = []
        self._configure()
        try:
            munge = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
            munge |= {"key-file": "munge.key", "seed-file": "munge.seed"}
            self._start("munged", "--foreground", *(f"--{key}={folder / name}" for key, name in munge.items()))
            self._wait(lambda: (folder / "munge.socket").exists(), "credentials")
            self._start("slurmctld", "-D")
            for name in NODES:
                self._start("slurmd", "-D", "-N", name)
            self._wait(lambda: self.run("sinfo", "-h", "-o", "%D %t").stdout == "2 idle\n", "two idle nodes")
        except BaseException:
            self.close()
            raise

    def _configure(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        ports = _free_ports(1 + len(NODES))
        nodes = "".join(
            _NODE.format(name=name, port=port, cpus=os.cpu_count()) for name, port in zip(NODES, ports[1:], strict=True)
        )
        (self.folder / "slurm.conf").write_text(_CONFIGURATION.format(folder=self.folder, ports=ports) + nodes)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")

    def _start(self, *command: str) -> None:
        with (self.folder / "daemons.log").open("a") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _wait(self, is_so, what: str) -> None:
        deadline = time.monotonic() + GENEROUS
        while not is_so():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self.daemons):
                raise TimeoutError(f"there are no {what}:\n{(self.folder / 'daemons.log').read_text()}")
            time.sleep(0.2)

    def run(self, *command: str, check: bool = False, **options) -> subprocess.CompletedProcess:
        """A command of Slurm that is waited for."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=GENEROUS, check=check, **options
        )

    def submit(self, *arguments: str, env: dict[str, str] | None = None, cwd: Path) -> str:
        """The number of a job that `sbatch` has taken."""
        environment = {**self.environment, **(env or {})}
        process = subprocess.run(["sbatch", *arguments], env=environment, cwd=cwd, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return re.fullmatch(r"Submitted batch job (\d+)\n", process.stdout)[1]

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job, by its names."""
        shown = self.run("scontrol", "-o", "show", "job", number, check=True).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def completed(self, number: str) -> str:
        """The records of the runs of a job that have ended."""
        return "".join(re.findall(rf"(?m)^JobId={number} .*\n", (self.folder / "completed.log").read_text()))

    def wait_for_end(self, number: str, seconds: float) -> dict[str, str]:
        """What is told of a job that has ended, for good."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING"):
            assert time.monotonic() < deadline, f"still {job['JobState']} after {seconds:.0f} s"
            time.sleep(0.5)
        return job

    def close(self) -> None:
        """End all jobs, then the daemons."""
        if len(self.daemons) > 1:
            self.run("scancel", "--user=root", "--signal=KILL", "--full")
            self.run("scancel", "--user=root")
            deadline = time.monotonic() + GENEROUS
            while self.run("squeue", "-h").stdout.strip() and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(GENEROUS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"Slurm is not installed: {', '.join(lacking)} not found (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "the daemons of Slurm are started as root"


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
