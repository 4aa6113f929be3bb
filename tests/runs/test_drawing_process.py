"""The process that draws curves.png and report.html draws one at a time, and once more at the end of a run."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from made_run import made_run

from accel_restore.tracking import drawings
from accel_restore.tracking.drawings import Drawings
from accel_restore.utils.children import python_environment


@pytest.fixture
def folder(tmp_path):
    return made_run(tmp_path / "run")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return a function that makes Python run this code first in each process that is started."""

    def add(code):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    return add


@pytest.fixture
def start(folder, monkeypatch):
    """Return a function that starts a drawing in the process, and what was said."""
    started, said = [], []

    def begin():
        monkeypatch.setattr(drawings, "_SECONDS", 0.0)
        started.append(drawn := Drawings(folder, said.append))
        drawn.update(is_last=False)
        return drawn, said

    yield begin
    for drawn in started:
        drawn._end()


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


def test_a_process_that_died_between_two_drawings_does_not_cost_the_last_one(folder, process):
    drawn, said = process
    answered(drawn)
    (folder / "report.html").unlink()
    drawn.child.kill()
    drawn.child.wait()
    drawn.update(is_last=True)
    drawn.close()
    assert said == [] and (folder / "report.html").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_job_does_not_end_the_process(folder, process, number):
    drawn, said = process
    child = drawn.child
    answered(drawn)
    os.kill(child.pid, number)
    drawn.close()
    assert child.returncode == 0 and said == []


def test_what_others_print_in_the_process_is_no_answer(folder, site, start):
    site("import atexit; print('welcome'); print('[1, 2]', flush=True); atexit.register(print, 'goodbye')")
    drawn, said = start()
    answered(drawn)
    drawn.update(is_last=True)
    drawn.close()
    assert said == [] and (folder / "curves.png").exists()


def test_an_answer_to_the_drawing_before_is_no_answer_to_the_last_one(folder, monkeypatch):
    said = []
    drawn = Drawings(folder, said.append)
    drawn.child = subprocess.Popen(  # answers once and dies
        [sys.executable, "-c", """print('{"failures": [], "seconds": 1.0}')"""],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    drawn.is_drawing = True
    drawn._finish()
    drawn._end()
    assert len(said) == 1 and "report.html: was not drawn at the end" in said[0]


def test_a_process_that_hangs_in_a_file_leaves_no_part_of_it(folder, site, start, monkeypatch):
    site("import os, time; os.fsync = lambda _: time.sleep(1000)")
    monkeypatch.setattr(drawings, "_LAST_SECONDS", 0.1)
    drawn, said = start()
    deadline = time.monotonic() + 60
    while not list(folder.glob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(folder.glob(".*.tmp"))
    drawn.close()
    assert list(folder.glob(".*")) == []
    assert len(said) == 1 and "report.html: was not drawn at the end" in said[0]


def test_the_process_imports_no_module_of_the_working_folder(tmp_path, start, monkeypatch):
    (tmp_path / "html.py").write_text("raise ImportError('a script of the user')")
    monkeypatch.chdir(tmp_path)
    drawn, said = start()
    answered(drawn)
    drawn.close()
    assert said == []


def test_a_child_process_imports_what_this_process_would_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    code = "import sys; print(*sys.path, sep='\\n')"
    env = {**os.environ, **python_environment()}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[: len(set(sys.path))] == list(dict.fromkeys(sys.path))


def test_the_process_needs_no_torch():
    code = "import sys, accel_restore.tracking.drawings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
