"""`tracking.wandb_per_rank`: a W&B run of each rank beside that of all, which nothing of theirs may touch."""

import json
from types import SimpleNamespace

import pytest
from runs import json_lines
from wandb_scenarios import RANKS, STEPS, write_step

from accel_restore.config.schema import Tracking
from accel_restore.tracking import wandb_logger as dashboard
from accel_restore.tracking.rows import RankRows


class Client:
    """W&B, as far as a dashboard uses it; a `fault` is what fails of the runs whose name ends with `of`."""

    def __init__(self, monkeypatch, fault: str | None = None, of: str = "-rank0"):
        self.fault, self.of, self.runs, self.ended = fault, of, [], []
        monkeypatch.setattr(dashboard, "begin_run", self.begin)
        monkeypatch.setattr(dashboard, "end_run", self.end)
        monkeypatch.setattr(dashboard, "open_image", str)
        for name in ("drop_service", "kill_service"):
            monkeypatch.setattr(dashboard, name, lambda: None)

    def begin(self, mode: str, settings: dict, *_: object) -> SimpleNamespace:
        self.check("begin", settings["name"])
        folder = settings["dir"] / "wandb" / f"offline-run-{len(self.runs)}-{settings['id']}"
        folder.mkdir(parents=True)
        rows: list[dict] = []
        run = SimpleNamespace(
            settings=SimpleNamespace(sync_dir=folder), given=settings, rows=rows, summary={},
            log=lambda row: (self.check("log", settings["name"]), rows.append(row)),
        )  # fmt: skip
        self.runs.append(run)
        return run

    def end(self, run: SimpleNamespace, exit_code: int) -> bool:
        self.check("end", run.given["name"])
        self.ended.append(run.given["name"])
        return True

    def check(self, what: str, name: str) -> None:
        if what == self.fault and name.endswith(self.of):
            raise OSError("W&B fails")


def record(folder, rank: int = 0) -> list[str]:
    """Record a run on a rank; what the user is told."""
    folder.mkdir(exist_ok=True)
    notices: list[str] = []
    tracking = Tracking(wandb="offline", wandb_per_rank=True)
    board = dashboard.WandbLogger(tracking, "name", folder, {"lr": 0.1}, RANKS, "abc", notices.append, rank)
    for step in range(1, STEPS + 1):
        if not rank:
            write_step(folder, step)
        board.update()
    board.finish(failed=False)
    return notices


def test_each_rank_logs_its_own_lines_in_a_run_of_the_group(tmp_path, monkeypatch):
    client = Client(monkeypatch)
    for rank in range(RANKS):
        record(tmp_path, rank)
    whole, *own = client.runs
    assert whole.given["name"] == "name" and "group" not in whole.given and "train/loss/rank_1" in whole.rows[0]
    assert client.ended == ["name", *(f"name-rank{rank}" for rank in range(RANKS))] and len(own) == RANKS
    lines = [line for line in json_lines(tmp_path / "metrics.jsonl") if line["event"] == "train"]
    for rank, run in enumerate(own):
        told = {key: run.given[key] for key in ("name", "group", "job_type", "id")}
        assert told == {"name": f"name-rank{rank}", "group": "name", "job_type": "rank", "id": f"abc-rank{rank}"}
        mine = [line for line in lines if line["rank"] == rank]
        assert run.rows == [{"train/step": x["step"], "train/loss": x["loss"], "train/lr": x["lr"]} for x in mine]


@pytest.mark.parametrize("fault", ["begin", "log", "end"])
def test_a_rank_whose_run_fails_takes_nothing_from_the_run_of_all(tmp_path, monkeypatch, fault):
    sound = Client(monkeypatch)
    notices = record(tmp_path / "sound")
    failing = Client(monkeypatch, fault)
    told = record(tmp_path / "failing")
    assert failing.runs[0].rows == sound.runs[0].rows and "name" in failing.ended
    told = [text.replace("failing", "sound") for text in told]
    if fault == "begin":
        assert told.pop(0).startswith("W&B      name-rank0 could not be begun (W&B fails)")
    assert told == notices
    Client(monkeypatch, fault, of="name")  # the control: of the run of all, it is told
    assert any("W&B" in text and "W&B fails" in text for text in record(tmp_path / "control"))


def test_without_the_setting_there_is_one_run(tmp_path, monkeypatch):
    client = Client(monkeypatch)
    board = dashboard.WandbLogger(Tracking(wandb="offline"), "name", tmp_path, {}, RANKS, None, print)
    board.finish(failed=False)
    assert [run.given["name"] for run in client.runs] == ["name"]


def test_memory_is_that_of_the_step(tmp_path):
    files = {"metrics.jsonl": [], "memory.jsonl": []}
    for step in (1, 2):
        for rank in range(2):
            place = {"step": step, "rank": rank}
            files["memory.jsonl"].append({"event": "memory", **place, "memory": 100 * step + rank})
            files["metrics.jsonl"].append({"event": "train", "epoch": 0, **place, "loss": None, "wait_s": 0.5})
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = RankRows(tmp_path, 1)
    assert list(rows.read(rest=False)) == [
        {"train/step": step, "train/wait_s": 0.5, "train/memory": 100 * step + 1} for step in (1, 2)
    ]
    assert list(rows.read(rest=True)) == []
