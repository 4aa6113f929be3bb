"""A disk that is full where a run cannot do without a file: one sentence, and the exit code of a disk."""

import errno
import os

import pytest
from runs import run_folder, small_config

from accel_restore import fit
from accel_restore.callbacks import audit
from accel_restore.errors import RunAbortedError
from accel_restore.tracking import run_files
from accel_restore.tracking.run_files import read_status
from accel_restore.trainer import run as session

PHOTOS = 8, 2  # training, validation


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def metrics(monkeypatch):
    """The lines before the commit do not fit on the disk a second time."""
    replace = run_files.replace_file
    is_lines = lambda path: path.name == "metrics.jsonl"  # noqa: E731
    monkeypatch.setattr(run_files, "replace_file", lambda path, data: (full if is_lines(path) else replace)(path, data))


def status_at_the_end(monkeypatch):
    monkeypatch.setattr(session, "report_result", full)  # the line after it


def audit_table(monkeypatch):
    monkeypatch.setattr(audit, "replace_file", full)


@pytest.mark.parametrize("where", [metrics, status_at_the_end, audit_table])
def test_a_full_disk_is_reported_in_a_sentence_and_the_run_continues_once_there_is_space(
    photos, tmp_path, monkeypatch, one_thread, where
):
    config = small_config(*photos, tmp_path, train={"epochs": 1})
    with monkeypatch.context() as patched:
        where(patched)
        with pytest.raises(RunAbortedError) as raised:
            fit(config, cpu=True, audit=where is audit_table)
    text = "a file of the run cannot be written (No space left on device); free some space, and the same command "
    assert str(raised.value) == f"{text}continues from the last commit" and raised.value.is_reporter
    status = read_status(run_folder(config))
    assert status["state"] == "failed" and status["error"] == str(raised.value)
    if where is not audit_table:
        fit(config, cpu=True)
        assert read_status(run_folder(config))["state"] == "finished"


def test_other_errors_keep_their_traceback(photos, tmp_path, monkeypatch, one_thread):
    def broken(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(session, "report_result", broken)
    with pytest.raises(OSError, match="Invalid argument"):
        fit(small_config(*photos, tmp_path, train={"epochs": 1}), cpu=True)
