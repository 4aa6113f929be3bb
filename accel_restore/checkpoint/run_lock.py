"""One training at a time in a run's folder, on one host or several; what a dead process leaves does not count."""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from accel_restore.config.schema import Config
from accel_restore.errors import UserError
from accel_restore.tracking.run_files import read_status, write_status

_FILE = "run.lock"
_REACHED = ("epoch", "step", "best")
_BEAT_SECONDS = 10.0
_SILENT_SECONDS = 60.0  # a host that has not touched the file for so long does not train any more


def run_folder(config: Config) -> Path:
    """The folder that a run is written to."""
    return Path(config.run.dir).expanduser() / config.run.name


class RunLock:
    """The lock on a run's folder: the kernel's, which ends with the process, and for other hosts a sign of life.

    Another host may not see the kernel's lock (that depends on the file system), so the file is touched every ten
    seconds.
    """

    def __init__(self, folder: Path, log: Callable[[str], None] = print):
        self.folder, self.log = folder, log
        self.lock = FileLock(folder / _FILE)
        self.ended = threading.Event()
        self.beating: threading.Thread | None = None

    @property
    def is_held(self) -> bool:
        return self.beating is not None

    def acquire_existing(self) -> bool:
        """Take the lock where the folder holds a run already, and say so; else nothing is written yet."""
        if exists := (self.folder / "status.json").exists():
            self.acquire()
        return exists

    def acquire(self) -> None:
        """Take the lock; may be called again. The folder must exist.

        Raises: UserError where another process trains in the folder.
        """
        if self.is_held:
            return
        last_beat = _beat(self.folder)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            self._refuse()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}); set run.dir or run.name") from error
        except NotImplementedError:  # a file system without locks: the signs of life must do
            pass
        owner = read_status(self.folder)
        if owner.get("state") == "running" and owner.get("host") not in (None, socket.gethostname()):
            try:
                self._wait_for_sign(owner["host"], last_beat)
            except BaseException:
                self.lock.release()
                raise
        self.beating = threading.Thread(target=self._beat_on, name="accel-restore-lock", daemon=True)
        self.beating.start()

    def release(self) -> None:
        """Give the lock back; it stays a file, as removing it would let two processes hold it."""
        if self.beating is not None:
            self.ended.set()
            self.beating.join()
            self.beating = None
        self.lock.release()

    def _refuse(self) -> None:
        owner = read_status(self.folder)
        # While a run is prepared, the folder still tells of the former one.
        is_told = owner.get("state") == "running" and "pid" in owner and _may_live(owner)
        who = f"process {owner['pid']} on {owner['host']}" if is_told else "another process"
        raise UserError(
            f"{self.folder}: {who} is training in it; wait until that ends or stop it, or choose another run.name"
        )

    def _wait_for_sign(self, host: str, last_beat: float | None) -> None:
        """Refuse where the other host still touches the file; return where it has been silent for long enough."""
        if last_beat is None:
            return
        silent = _file_time(self.folder) - last_beat
        if silent < _SILENT_SECONDS:
            seconds = _SILENT_SECONDS - max(0.0, silent)
            self.log(f"{self.folder}: was last used on {host}; waiting {seconds:.0f} s to see whether it still is")
            began, first = time.monotonic(), _beat(self.folder)
            while time.monotonic() - began < seconds:
                time.sleep(min(1.0, seconds / 5))
                if _beat(self.folder) != first:
                    self._refuse()

    def _beat_on(self) -> None:
        while True:
            with suppress(OSError):  # a full or unplugged disk is reported where something is to be written
                os.utime(self.folder / _FILE)
            if self.ended.wait(_BEAT_SECONDS):
                return


def _may_live(owner: dict[str, Any]) -> bool:
    """Whether the process that wrote status.json may still be there: of one on another host nothing is known."""
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


def _beat(folder: Path) -> float | None:
    try:
        with (folder / _FILE).open("rb") as file:  # opened, so that a network file system asks its server
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _file_time(folder: Path) -> float:
    """The present time by the clock that dates the folder's files."""
    probe = folder / f".{_FILE}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def record_preempted(folder: Path) -> None:
    """Write down that a run was stopped before its first step, unless the folder is another's or in use."""
    former = read_status(folder)
    others = folder.exists() and any(not path.name.startswith((".", _FILE)) for path in folder.iterdir())
    if former.get("state") == "finished" or (not former and others):
        return
    lock = FileLock(folder / _FILE)
    with suppress(OSError, NotImplementedError):
        folder.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            ranks = int(os.environ.get("WORLD_SIZE", 1))
            reached = {"epoch": 0, "step": 0, "best": None, **{k: former[k] for k in _REACHED if k in former}}
            write_status(folder, "preempted", **reached, world_size=ranks)
