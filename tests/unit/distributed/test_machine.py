"""What one rank of a machine writes for the others is in a temporary folder, which costs no run."""

import errno
import os
from contextlib import ExitStack

from accel_restore.distributed import machine


def test_a_temporary_folder_that_cannot_be_removed_ends_no_run(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.tempfile, "tempdir", str(tmp_path))

    def refuse(*_, **__):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with ExitStack() as stack:
        lock = machine._new_lock(stack)
        assert lock is not None and lock.is_locked
        lock.release()
        monkeypatch.setattr(os, "rmdir", refuse)
    assert list(tmp_path.iterdir()), "the folder could not be removed"
