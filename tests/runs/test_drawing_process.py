"""The process that draws curves.png and report.html draws one at a time, and once more at the end of a run."""

import shutil
import subprocess
import sys
import time

import pytest
from made_run import made_run

from accel_restore.tracking import drawings
from accel_restore.tracking.drawings import Drawings


@pytest.fixture
def folder(tmp_path):
    return made_run(tmp_path / "run")


@pytest.fixture
def process(folder, monkeypatch):
    """A drawing in the process, which has begun."""
    said = []
    monkeypatch.setattr(drawings, "_SECONDS", 0.0)
    drawn = Drawings(folder, said.append)
    drawn.update(is_last=False)
    assert drawn.is_drawing
    yield drawn, said
    drawn._end()


def answered(drawn):
    """Wait for the process."""
    deadline = time.monotonic() + 60
    while drawn.is_drawing and time.monotonic() < deadline:
        drawn._look()
        time.sleep(0.01)
    assert not drawn.is_drawing


def test_the_process_draws_what_is_new_and_once_more_at_the_end(folder, process):
    drawn, said = process
    child = drawn.child
    drawn.update(is_last=False)  # goes on
    answered(drawn)
    (folder / "report.html").unlink()
    (folder / "curves.png").unlink()
    drawn.due = 0.0
    drawn.update(is_last=False)
    assert drawn.child is child
    drawn.update(is_last=True)
    drawn.close()
    assert child.returncode == 0 and said == []
    assert (folder / "report.html").exists() and (folder / "curves.png").exists()


def test_a_process_that_dies_is_reported_and_started_again(folder, process):
    drawn, said = process
    drawn.child.kill()
    answered(drawn)
    assert len(said) == 1 and "report.html: cannot be drawn (the process that draws ended with -9)" in said[0]
    drawn.update(is_last=False)
    drawn.close()
    assert len(said) == 1 and (folder / "curves.png").exists()


def test_failures_in_the_process_are_reported(folder, process):
    drawn, said = process
    answered(drawn)
    shutil.rmtree(folder)
    drawn.close()
    assert any("report.html: cannot be written (UserError: " in failure for failure in said)


def test_the_process_needs_no_torch():
    code = "import sys, accel_restore.tracking.drawings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
