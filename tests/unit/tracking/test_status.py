"""status.json as its readers see it: damaged, from another program, or with values out of range."""

import json

import pytest
from made_run import made_run

from accel_restore.checkpoint.run_lock import RunLock, record_preempted
from accel_restore.tracking.report.page import Page
from accel_restore.tracking.rows import read_summary
from accel_restore.tracking.run_files import read_status

HUGE = 10**400
DAMAGED = {
    "empty": "",
    "truncated": '{"state": "runn',
    "a list": "[1, 2]",
    "a number": "7",
    "not UTF-8": b"\xff\xfe",
    "only a state": '{"state": "running"}',
    "words": json.dumps({"state": 3, "pid": "x", "host": 7, "epoch": "two", "step": [], "world_size": {}, "best": []}),
    "huge": json.dumps(
        {"state": "running", "pid": HUGE, "epoch": HUGE, "best": {"epoch": HUGE, "psnr": HUGE, "loss": 1e308}}
    ),
    "negative": '{"state": "failed", "pid": -1, "epoch": -5, "step": 1.5, "best": {"epoch": -1, "psnr": true}}',
    "not finite": '{"state": "failed", "best": {"epoch": 1, "psnr": NaN, "loss": Infinity}}',
}


@pytest.fixture(params=DAMAGED)
def damaged(request, tmp_path):
    folder = made_run(tmp_path / "run")
    content = DAMAGED[request.param]
    (folder / "status.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_every_reader_survives_a_damaged_status(damaged):
    assert "<title>run · " in Page(damaged).build()
    read_summary(damaged)
    lock = RunLock(damaged, print)
    assert lock.acquire_existing()
    lock.release()
    record_preempted(damaged)


def test_fields_have_their_types_or_are_left_out(damaged):
    status = read_status(damaged)
    for key in ("pid", "epoch", "step", "world_size"):
        assert 0 <= status.get(key, 0) < 2**63 and isinstance(status.get(key, 0), int)
    assert isinstance(status.get("state", ""), str) and isinstance(status.get("host", ""), str)
    assert isinstance(status.get("best", {}).get("epoch", 0), int) and abs(status.get("best", {}).get("psnr", 0)) < 1e9


def test_a_sound_status_is_read_whole(tmp_path):
    status = {"state": "finished", "epoch": 3, "step": 60, "world_size": 2, "host": "a", "pid": 7}
    status["best"] = {"epoch": 1, "step": 40, "loss": 0.1, "psnr": None}
    (tmp_path / "status.json").write_text(json.dumps(status), encoding="utf-8")
    assert read_status(tmp_path) == status


def test_a_huge_number_in_a_line_of_an_epoch_is_left_out_of_the_report(tmp_path):
    folder = made_run(tmp_path / "run")
    line = {
        "event": "epoch",
        "epoch": 3,
        "step": 80,
        "train_loss": HUGE,
        "val_loss": HUGE,
        "val_psnr": HUGE,
        "seconds": HUGE,
    }
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    assert "val_psnr" in Page(folder).build()
