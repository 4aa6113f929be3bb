"""Work that one rank of each machine does for the others, which only read what it has written."""

import socket
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock

from accel_restore.distributed.collective import on_all_ranks
from accel_restore.errors import UserError

T = TypeVar("T")


def once_per_machine(
    accelerator: Accelerator, work: Callable[[], T], write: Callable[[T, Path], None], read: Callable[[Path], T]
) -> T:
    """Return the result of `work`, which one rank of each machine does; the others `read` what it writes to a file.

    They wait for a lock of the file system, not for a message, so `work` may take longer than messages may. All ranks
    raise the UserError of one.
    """
    own = _file_system()
    places = gather_object([own])
    first, is_shared = places.index(own), places.count(own) > 1
    leads = accelerator.process_index == first
    with ExitStack() as stack:
        lock = _new_lock(stack) if leads and is_shared else None
        path = gather_object([None if lock is None else lock.lock_file])[first]

        def result() -> T | None:
            if path is None:  # alone on this machine, or without temporary files
                return work()
            file = Path(path).with_name("result")
            if not leads:
                with FileLock(path):
                    return read(file) if file.exists() else None  # None: the other rank raises the reason
            try:
                found = work()
                _write(write, found, file)
            finally:
                assert lock is not None
                lock.release()
            return found

        return on_all_ranks(accelerator, result)  # all ranks have read the file when it ends


def _new_lock(stack: ExitStack) -> FileLock | None:
    """Return a lock that this process holds, in a new temporary folder, which `stack` removes; None without room."""
    with suppress(OSError):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="accel-restore-", ignore_cleanup_errors=True))
        lock = FileLock(Path(folder) / "lock")
        lock.acquire()
        return lock
    return None


def _write(write: Callable[[T, Path], None], found: T, file: Path) -> None:
    try:
        write(found, file)
    except OSError as error:
        raise UserError(
            f"{file.parent}: cannot pass the list of images to the other ranks ({error.strerror or error}); set TMPDIR "
            "to a folder with more room"
        ) from error


def _file_system() -> str:
    """Identify the files that a process sees: equal for processes of a machine, unless one is in a container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().hex() + str(Path("/proc/self/ns/mnt").readlink())
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"
