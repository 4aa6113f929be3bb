"""A Slurm cluster of two hosts on this machine, for tests: munged, slurmctld and two slurmd, on their own network."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from hosts import ADDRESSES, DEVICE, TwoHosts
from runs import clean_environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "ip")
GENEROUS = 60.0  # seconds, a limit for a test that hangs

# Slurm checks time limits twice a minute. A requeued job may start when its credentials have expired, by default after
# two minutes. The GPUs are simulated: Slurm counts them, and nothing opens them.
_CONFIGURATION = """\
ClusterName=testing
SlurmctldHost={controller}({address})
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
_NODE = "NodeName={name} NodeAddr={address} CPUs={cpus} Gres=gpu:1\n"


class Cluster:
    """Two nodes with a simulated GPU each. They need root, iproute2 and Debian's slurm-wlm and munge.

    Raises: OSError, subprocess.CalledProcessError or TimeoutError if the cluster cannot be started.
    """

    def __init__(self) -> None:
        self.hosts = TwoHosts()
        self.folder = folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        folder.chmod(0o755)  # munged needs a socket that everybody can reach, and pytest's folders are private
        # The hosts' names cannot be resolved, and gloo would look up its network device by them.
        env = {"SLURM_CONF": str(folder / "slurm.conf"), "GLOO_SOCKET_IFNAME": DEVICE}
        self.environment = {**clean_environment(), **env}
        self.daemons: list[subprocess.Popen] = []
        self._configure()
        try:
            munge = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
            munge |= {"key-file": "munge.key", "seed-file": "munge.seed"}
            self._start(0, "munged", "--foreground", *(f"--{key}={folder / name}" for key, name in munge.items()))
            self._wait(lambda: (folder / "munge.socket").exists(), "credentials")
            self._start(0, "slurmctld", "-D")
            for host in (0, 1):
                self._start(host, "slurmd", "-D")
            self._wait(self._answers, "controller")
            self._wait(lambda: self.run("sinfo", "-h", "-o", "%D %t") == "2 idle\n", "two idle nodes")
        except BaseException:
            self.close()
            raise

    def _configure(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        nodes = "".join(
            _NODE.format(name=name, address=address, cpus=os.cpu_count())
            for name, address in zip(self.hosts.names, ADDRESSES, strict=True)
        )
        configuration = _CONFIGURATION.format(folder=self.folder, controller=self.hosts.names[0], address=ADDRESSES[0])
        (self.folder / "slurm.conf").write_text(configuration + nodes)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")

    def _on(self, host: int) -> list[str]:
        """Return the prefix that runs a command on a host; `ip netns exec` would hide the control groups."""
        name = self.hosts.names[host]
        enter = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--uts"]
        return [*enter, "sh", "-c", f'hostname {name}; exec "$@"', "sh"]

    def _start(self, host: int, *command: str) -> None:
        command = (*self._on(host), *command)
        with (self.folder / "daemons.log").open("a") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _answers(self) -> bool:
        """Return whether the controller answers."""
        ping = [*self._on(0), "scontrol", "ping"]
        return subprocess.run(ping, env=self.environment, capture_output=True).returncode == 0

    def _wait(self, is_so, what: str) -> None:
        deadline = time.monotonic() + GENEROUS
        while not is_so():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self.daemons):
                raise TimeoutError(f"no {what}:\n{(self.folder / 'daemons.log').read_text()}")
            time.sleep(0.2)

    def run(self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run a Slurm command on the first host and return its output."""
        process = subprocess.run(
            [*self._on(0), *command],
            env={**self.environment, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=GENEROUS,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    def submit(self, *arguments: str, **options) -> str:
        """Submit a job by `sbatch` and return its number."""
        return re.fullmatch(r"Submitted batch job (\d+)\n", self.run("sbatch", *arguments, **options))[1]

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "-o", "show", "job", number)))

    def completed(self, number: str) -> str:
        """Return the records of a job's ended runs."""
        return "".join(re.findall(rf"(?m)^JobId={number} .*\n", (self.folder / "completed.log").read_text()))

    def wait_for_end(self, number: str, seconds: float) -> dict[str, str]:
        """Wait until a job has finally ended and return its fields."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING"):
            assert time.monotonic() < deadline, f"still {job['JobState']} after {seconds:.0f} s"
            time.sleep(0.5)
        return job

    def close(self) -> None:
        """End all jobs, then the daemons."""
        try:
            if self._answers():
                self.run("scancel", "--user=root", "--signal=KILL", "--full")
                self.run("scancel", "--user=root")
                self._wait(lambda: not self.run("squeue", "-h").strip(), "end of jobs")
        finally:
            for daemon in reversed(self.daemons):
                daemon.terminate()
            for daemon in reversed(self.daemons):
                try:
                    daemon.wait(GENEROUS)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.hosts.close()


def missing() -> str:
    """Return why no cluster can be started here; empty if one can."""
    if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"Slurm is not installed: {', '.join(lacking)} not found (Debian: slurm-wlm, munge, iproute2)"
    return "" if os.geteuid() == 0 else "the daemons of Slurm are started as root"
