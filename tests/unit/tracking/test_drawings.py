"""curves.png and report.html are drawn from time to time, and at the end of a run; a failure stops nothing."""

import errno

import pytest
from made_run import made_run

from accel_restore.tracking import drawings
from accel_restore.tracking.drawings import Drawer, Drawings


@pytest.fixture
def folder(tmp_path):
    return made_run(tmp_path / "run")


def test_files_that_cannot_be_written_are_reported_and_raise_nothing(folder, monkeypatch):
    (folder / "report.html").mkdir()
    (failure,) = Drawer(folder).draw()
    assert "report.html: cannot be written (Is a directory); accel-restore report can write it later" in failure
    assert (folder / "curves.png").exists() and not list(folder.glob(".*"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drawings, "draw_curves", full)
    assert "curves.png: cannot be written (No space left on device); training continues" in Drawer(folder).draw()[1]


def test_a_short_run_is_drawn_at_its_end_without_another_process(folder, monkeypatch):
    monkeypatch.setattr(drawings, "_start", None)
    drawn = Drawings(folder, print)
    drawn.update(is_last=False)
    assert not (folder / "report.html").exists()
    drawn.update(is_last=True)
    drawn.close()
    assert (folder / "report.html").exists() and (folder / "curves.png").exists()


def test_a_folder_of_another_run_is_not_drawn(folder):
    Drawings(folder, print).close(is_own=False)
    assert not (folder / "report.html").exists()


def test_drawings_take_a_bounded_share_of_the_time(folder, monkeypatch):
    clock, begun = [1000.0], []
    monkeypatch.setattr(drawings.time, "monotonic", lambda: clock[0])
    drawn = Drawings(folder, print)

    def begin():
        begun.append(clock[0])
        drawn.began, drawn.is_drawing = clock[0], True

    monkeypatch.setattr(drawn, "_begin", begin)
    monkeypatch.setattr(drawn, "_look", lambda: (drawn._report({"failures": [], "seconds": 3.0}),
                                                setattr(drawn, "is_drawing", False)))  # fmt: skip
    while clock[0] < 1400:
        drawn.update(is_last=False)
        clock[0] += 1.0
    assert begun == [1060, 1160, 1260, 1360]
