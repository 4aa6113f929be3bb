"""The rows that W&B receives are read from metrics.jsonl while it grows."""

from wandb_scenarios import RANKS, STEPS, write_step

from accel_restore.tracking.rows import Rows


def test_rows_are_read_when_their_lines_are_complete(tmp_path):
    path, whole = tmp_path / "metrics.jsonl", tmp_path / "whole"
    whole.mkdir()
    for step in range(1, STEPS + 1):
        write_step(whole, step)
    expected = list(Rows(whole, RANKS).read(flush=False))
    assert len(expected) == STEPS + 3 and expected[0]["train/loss"] == 1.5 and expected[10]["val/psnr"] == 20
    path.touch()
    rows, read = Rows(tmp_path, RANKS), []
    for text in (whole / "metrics.jsonl").read_text().splitlines(keepends=True):
        for part in (text[:9], text[9:]):
            with path.open("a") as file:
                file.write(part)
            new = list(rows.read(flush=False))
            assert all(f"train/loss/rank_{rank}" in row for row in new if "train/step" in row for rank in range(RANKS))
            read += new
    assert read == expected
    assert list(Rows(whole, ranks=3).read(flush=False)) == expected, "the lines may come from another world size"
    with path.open("a") as file:
        file.write('{"event": "train", "epoch": 3, "step": 31, "rank": 0, "loss": null, "lr": 0.1, "samples": 0}\n')
    assert list(rows.read(flush=False)) == []
    assert list(rows.read(flush=True)) == [{"train/step": 31, "train/lr": 0.1, "train/lr/rank_0": 0.1}]
