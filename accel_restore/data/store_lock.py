"""A store that a process reads is not deleted: readers hold a shared lock, which ends with their process."""

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which does not delete a file that is mapped
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # some network file systems


class StoreLock:
    """An open store with a lock on it, held until the object is gone."""

    def __init__(self, path: Path, exclusive: bool = False):
        """Raises: FileNotFoundError; BlockingIOError if another process holds the lock."""
        self._file = os.open(path, os.O_RDWR if exclusive else os.O_RDONLY)
        if fcntl is not None:
            try:
                fcntl.flock(self._file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
        if os.fstat(self._file).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "was just deleted", str(path))

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return os.fstat(self._file).st_size

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)
