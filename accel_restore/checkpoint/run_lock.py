"""The lock on a run's folder: one training at a time, on one host or several. A dead process does not block it."""

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil
from filelock import OwnerRecord, SoftFileLease, Timeout

from accel_restore.config.schema import Config
from accel_restore.errors import UserError
from accel_restore.tracking.run_files import read_status, write_status
from accel_restore.utils.launch import launch_or_alone

_FILE = "run.lock"
_REACHED = ("epoch", "step", "best")
_BEAT_SECONDS = 10.0  # between two touches of the lock file by its holder
_LEASE_SECONDS = 60.0  # a process on another host that has not touched the file for this long is taken for dead
_ATTEMPT_SECONDS = 0.2  # filelock removes the file of a dead process in one attempt and locks in the next

_held: set[str | None] = set()  # tokens of the locks that this process holds


def run_folder(config: Config) -> Path:
    """Return the folder of the run."""
    return Path(config.run.dir).expanduser() / config.run.name


class RunLock:
    """The lock file names its process and host. It is a lease: its holder touches it every ten seconds.

    A holder on this host is alive as long as its process exists. A holder on another host is alive as long as it
    touches the file.
    """

    def __init__(self, folder: Path, log: Callable[[str], None] = print):
        self.folder, self.log = folder, log
        self.lock = self._lease(_FILE)
        self._inode: tuple[int, int] | None = None  # of the held lock file

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self.lock.is_locked

    def acquire_existing(self) -> bool:
        """Take the lock if the folder holds a run, and return whether it does. Otherwise write nothing."""
        if exists := (self.folder / "status.json").exists():
            self.acquire()
        return exists

    def acquire(self) -> None:
        """Take the lock; a second call does nothing. The folder must exist.

        Raises: UserError if another process trains in the folder.
        """
        if self.is_held:
            return
        try:
            if not self.try_acquire():
                self._wait_for_lease()
            self._inode = self._found_inode()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}); set run.dir or run.name") from error

    def find_loss(self) -> str | None:
        """Return why the folder is no longer this run's: its lock file is missing, or is another one. Otherwise None.

        The lock file stays open while it is held, so its inode is not used again.
        """
        if self._inode is None or self._holds():
            return None
        time.sleep(_ATTEMPT_SECONDS)  # a process that wrongly takes the lock for abandoned moves it for a moment
        if self._holds():
            return None
        what = f"it or its {_FILE} was moved or removed"
        if (owner := self.lock.owner) is not None:
            what = f"{'a copy' if owner.token == self.lock.token else 'another run'} has replaced it"
        return (
            f"{self.folder}: is no longer the folder of this run: {what}; nothing more is written. To continue from "
            "the last commit, put the folder back and run the same command again"
        )

    def _holds(self) -> bool:
        """Return whether the folder has the lock file that this object holds, or does not answer."""
        try:
            return self._found_inode() == self._inode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # whatever is written there fails too, and is tried again
            return True

    def _found_inode(self) -> tuple[int, int]:
        with Path(self.lock.lock_file).open("rb") as file:  # opened, so that a network file system asks its server
            found = os.fstat(file.fileno())
        return found.st_dev, found.st_ino

    def try_acquire(self) -> bool:
        """Take the lock without waiting for another process, and return whether that succeeded."""
        if self._is_abandoned():
            self.lock.force_break()
        with suppress(Timeout):
            self.lock.acquire(timeout=_ATTEMPT_SECONDS)
            _held.add(self.lock.token)
        return self.is_held

    def release(self) -> None:
        """Remove the lock file."""
        _held.discard(self.lock.token)
        with suppress(OSError):  # the disk is gone
            self.lock.release()

    def _lease(self, name: str) -> SoftFileLease:
        # Not bound to a thread: whichever ends the run may release it.
        path, beat = self.folder / name, min(_BEAT_SECONDS, _LEASE_SECONDS / 3)
        return SoftFileLease(path, lease_duration=_LEASE_SECONDS, heartbeat_interval=beat, thread_local=False)

    def _here(self) -> tuple[str, float]:
        """Return this host as lock files name it, and the time by the clock that dates the folder's files."""
        with self._lease(f".{_FILE}.{uuid.uuid4().int}.tmp") as probe:
            assert probe.owner is not None  # written by the line above
            return probe.owner.hostname, Path(probe.lock_file).stat().st_mtime

    def _is_abandoned(self) -> bool:
        """Return whether the lock file is left over in a way that the lease itself cannot see at once.

        A holder on another host has been silent for long, or has recorded the end of its run. Or the file is empty: an
        older version, or a power failure before its content was on the disk, leaves an empty file. A zombie on this
        host no longer holds the lock. Neither does an earlier run of this process whose folder was moved away and back.
        """
        beat = self._last_beat()
        if beat is None:
            return False
        owner, (here, now) = self.lock.owner, self._here()
        if owner is not None and owner.hostname == here:
            if owner.pid == os.getpid():
                return owner.token not in _held
            with suppress(psutil.Error):
                return psutil.Process(owner.pid).status() == psutil.STATUS_ZOMBIE
            return False
        return now - beat > _LEASE_SECONDS or (owner is not None and self._has_ended(owner))

    def _has_ended(self, owner: OwnerRecord) -> bool:
        """Return whether the process that holds the lock has written into status.json how its run ended."""
        status = read_status(self.folder)
        is_owner = (status.get("pid"), status.get("host")) == (owner.pid, _host(owner.hostname))
        return is_owner and status.get("state") not in (None, "running")

    def _wait_for_lease(self) -> None:
        """Wait until the lease of a process on another host has run out; refuse as soon as it is renewed."""
        owner = self.lock.owner
        if owner is None or owner.hostname == self._here()[0]:
            self._refuse()
        self.log(
            f"{self.folder}: last used on {_host(owner.hostname)}; waiting {_LEASE_SECONDS:.0f} s to see whether it is "
            "still in use"
        )
        first = self._last_beat()
        try:
            self.lock.acquire(
                timeout=2 * _LEASE_SECONDS,
                poll_interval=min(1.0, _LEASE_SECONDS / 10),
                cancel_check=lambda: self._last_beat() not in (first, None),
            )
        except Timeout:
            self._refuse()
        _held.add(self.lock.token)

    def _last_beat(self) -> float | None:
        with suppress(OSError), Path(self.lock.lock_file).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime  # opened, so that a network file system asks its server
        return None

    def _refuse(self) -> NoReturn:
        owner = self.lock.owner
        who = f"process {owner.pid} on {_host(owner.hostname)}" if owner else "another process"
        raise UserError(
            f"{self.folder}: {who} is training in it; wait until it ends or stop it, or choose another run.name"
        )


def _host(recorded: str) -> str:
    """Return the name of a host without the PID namespace that filelock appends inside containers."""
    return recorded.partition("?")[0] or recorded


def record_preempted(folder: Path) -> None:
    """Record that a run was stopped before its first step, unless the folder is in use or holds something else."""
    former = read_status(folder)
    others = folder.exists() and any(not path.name.startswith((".", _FILE)) for path in folder.iterdir())
    if former.get("state") == "finished" or (not former and others):
        return
    lock = RunLock(folder)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if lock.try_acquire():
            ranks = launch_or_alone().world_size
            reached = {"epoch": 0, "step": 0, "best": None, **{k: former[k] for k in _REACHED if k in former}}
            write_status(folder, "preempted", **reached, world_size=ranks)
    lock.release()
