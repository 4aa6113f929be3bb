"""JSON-lines files: one damaged line costs nothing else, is reported with its number, and is kept."""

import errno
import json
import os

import pytest

from accel_restore.commands import report
from accel_restore.tracking import run_files
from accel_restore.tracking.curves import draw_curves
from accel_restore.tracking.report.series import Metrics
from accel_restore.tracking.run_files import JsonlTail, JsonlWriter, has_form, read_lines


def line(step: int) -> dict:
    return {"event": "train", "epoch": 0, "step": step, "rank": 0, "loss": 0.5, "lr": 1e-3, "samples": 4}


EPOCH = {"event": "epoch", "epoch": 0, "step": 6, "train_loss": 0.5, "val_loss": None, "is_best": False}
LINES = [line(1), line(2), line(3), {"event": "skip", "epoch": 0, "step": 3, "in_row": 1, "of": []}, line(4), EPOCH]
TEXTS = [json.dumps(entry).encode() for entry in LINES]


def damaged(third: bytes) -> bytes:
    """Return the file with another third line."""
    return b"".join(text + b"\n" for text in (*TEXTS[:2], third, *TEXTS[3:]))


DAMAGES = {
    "other bytes": b"\xff\x00\x81{", "a cut": TEXTS[2][:40], "a hole": bytes(80), "a number": b"17", "null": b"null",
    "a list": b"[1, 2]", "a text": b'"step"', "no step": b'{"event": "train", "epoch": 0}',
    "a key with a flipped bit": TEXTS[2].replace(b'"loss"', b'"lo{s"'), "a value of another type":
    TEXTS[2].replace(b'"step": 3', b'"step": "3"'), "a true in place of a number": TEXTS[2].replace(b"3,", b"true,"),
    "a deep nest": b"[" * 100_000, "an epoch that lacks its best": b'{"event":"epoch","epoch":0,"step":3}',
    "no event": b'{"evemt": "train", "step": 3}', "an operation without an epoch": b'{"op": "backward", "step": 3}',
    "an unknown event without a step": b'{"event": "later"}',
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_costs_no_other_line_and_is_kept(damage, tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(damaged(damage))
    tail = JsonlTail(path, has_form)
    assert list(tail) == LINES[:2] + LINES[3:] == read_lines(path)
    assert tail.damaged == [(3, damage + b"\n")]
    writer = JsonlWriter(path, lambda line: line["step"] <= 3, said.append)
    writer.write(line(9))
    writer.close()
    assert read_lines(path) == [*LINES[:2], LINES[3], line(9)]
    assert said == [f"{path}: line 3 is damaged; kept in metrics.damaged.jsonl"]
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == damage + b"\n"
    JsonlWriter(path, lambda line: True, said.append).close()
    assert len(said) == 1, "a damaged line is reported once"


def test_damaged_lines_of_several_continuations_are_all_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for damage in (b"first\n", b"second\n"):
        path.write_bytes(TEXTS[0] + b"\n" + damage)
        JsonlWriter(path, lambda line: True, print).close()
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == b"first\nsecond\n"


def test_a_file_that_cannot_be_opened_again_costs_no_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, lambda line: True, print)
    writer.write(line(1))
    path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(type(path), "open", too_many)
        patched.setattr(run_files, "replace_file", lambda path, parts: os.close(os.open(path, os.O_CREAT)))
        with pytest.raises(OSError, match="Too many open files"):
            writer.restore()
    assert writer.write(line(2)) is None
    assert writer.restore()
    writer.close()
    assert read_lines(path) == [line(1), line(2)]


def too_many(*_, **__):
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("between", [b"", b"\x0b", b"J", bytes(50), b'{"event": "tr', b'{"eve'])
def test_lines_that_lost_the_break_between_them_are_both_read(between, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(damaged(TEXTS[2] + between + json.dumps(line(7)).encode()))
    tail = JsonlTail(path)
    assert list(tail) == [*LINES[:3], line(7), *LINES[3:]]
    assert [number for number, _ in tail.damaged] == [3]


@pytest.mark.parametrize("cut", range(0, len(TEXTS[2]), 7))
def test_a_last_line_cut_off_by_a_crash_is_dropped_silently(cut, tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(b"\n".join([*TEXTS[:2], TEXTS[2][:cut]]))
    JsonlWriter(path, lambda line: True, said.append).close()
    assert read_lines(path) == LINES[:2] and said == []
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_whole_last_line_without_a_line_break_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(TEXTS[:3]))
    assert read_lines(path) == LINES[:3]
    tail = JsonlTail(path)
    assert list(tail) == LINES[:2]  # a reader of a growing file waits for the break
    JsonlWriter(path, lambda line: True, print).close()
    assert list(tail) == [LINES[2]] and read_lines(path) == LINES[:3]


def test_empty_lines_and_windows_line_breaks_are_no_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\r\n\n" + b"\r\n".join(TEXTS) + b"\r\n\n")
    tail = JsonlTail(path)
    assert list(tail) == LINES and tail.damaged == []
    assert read_lines(tmp_path / "none.jsonl") == []


def test_many_damaged_lines_are_one_message(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(b"x\n" * 2000)
    JsonlWriter(path, lambda line: True, said.append).close()
    assert said == [f"{path}: lines 1, 2, 3, 4, 5 and 1,995 more are damaged; kept in metrics.damaged.jsonl"]


def test_the_report_and_the_curves_show_what_is_intact(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(damaged(b"x"))
    metrics = Metrics(path)
    for _ in range(2):
        metrics.read()
    assert metrics.curves("loss")[0].points()[0].tolist() == [1, 2, 4]
    assert [event for event in metrics.events if event["event"] == "damaged line"] == [
        {"event": "damaged line", "line": 3}
    ]
    path.write_bytes(damaged(DAMAGES["a key with a flipped bit"]))
    metrics = Metrics(path)
    metrics.read()
    draw_curves(metrics, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_report_command_names_a_damaged_line_once(tmp_path, capsys):
    (tmp_path / "status.json").write_text('{"state": "finished", "epoch": 1, "step": 6}', encoding="utf-8")
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(damaged(b"x"))
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"accel-restore: {path}: line 3 is damaged; left out of the report\n"
    assert "damaged line" in (tmp_path / "report.html").read_text(encoding="utf-8")
