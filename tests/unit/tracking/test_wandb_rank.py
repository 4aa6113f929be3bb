"""`tracking.wandb_per_rank`: each rank also logs a W&B run of its own, whose failures never affect the main run."""

import json
from types import SimpleNamespace

import pytest
from runs import json_lines
from wandb_scenarios import RANKS, STEPS, write_step

from accel_restore.config.schema import Tracking
from accel_restore.tracking import wandb_logger
from accel_restore.tracking.rows import RankRows


class Client:
    """A stub of the W&B client. The call named `fault` fails for runs whose name ends with `of`."""

    def __init__(self, monkeypatch, fault: str | None = None, of: str = "-rank0"):
        self.fault, self.of, self.runs, self.finished = fault, of, [], []
        monkeypatch.setattr(wandb_logger, "start_run", self.start)
        monkeypatch.setattr(wandb_logger, "finish_run", self.finish)
        monkeypatch.setattr(wandb_logger, "open_image", str)
        for name in ("drop_service", "kill_service"):
            monkeypatch.setattr(wandb_logger, name, lambda: None)

    def start(self, mode: str, settings: dict, *_: object) -> SimpleNamespace:
        self.check("start", settings["name"])
        folder = settings["dir"] / "wandb" / f"offline-run-{len(self.runs)}-{settings['id']}"
        folder.mkdir(parents=True)
        rows: list[dict] = []
        run = SimpleNamespace(
            settings=SimpleNamespace(sync_dir=folder), given=settings, rows=rows, summary={},
            log=lambda row: (self.check("log", settings["name"]), rows.append(row)),
        )  # fmt: skip
        self.runs.append(run)
        return run

    def finish(self, run: SimpleNamespace, exit_code: int) -> bool:
        self.check("finish", run.given["name"])
        self.finished.append(run.given["name"])
        return True

    def check(self, call: str, name: str) -> None:
        if call == self.fault and name.endswith(self.of):
            raise OSError("W&B fails")


def record(folder, rank: int = 0) -> list[str]:
    """Record a run on a rank and return the logged messages."""
    folder.mkdir(exist_ok=True)
    messages: list[str] = []
    tracking = Tracking(wandb="offline", wandb_per_rank=True)
    logger = wandb_logger.WandbLogger(tracking, "name", folder, {"lr": 0.1}, RANKS, "abc", messages.append, rank)
    for step in range(1, STEPS + 1):
        if not rank:
            write_step(folder, step)
        logger.update()
    logger.finish(failed=False)
    return messages


def test_each_rank_logs_its_own_lines_in_a_run_of_the_group(tmp_path, monkeypatch):
    client = Client(monkeypatch)
    for rank in range(RANKS):
        record(tmp_path, rank)
    whole, *own = client.runs
    assert whole.given["name"] == "name" and "group" not in whole.given and "train/loss/rank_1" in whole.rows[0]
    assert client.finished == ["name", *(f"name-rank{rank}" for rank in range(RANKS))] and len(own) == RANKS
    lines = [line for line in json_lines(tmp_path / "metrics.jsonl") if line["event"] == "train"]
    for rank, run in enumerate(own):
        settings = {key: run.given[key] for key in ("name", "group", "job_type", "id")}
        assert settings == {"name": f"name-rank{rank}", "group": "name", "job_type": "rank", "id": f"abc-rank{rank}"}
        mine = [line for line in lines if line["rank"] == rank]
        assert run.rows == [{"train/step": x["step"], "train/loss": x["loss"], "train/lr": x["lr"]} for x in mine]


@pytest.mark.parametrize("fault", ["start", "log", "finish"])
def test_a_failing_run_of_a_rank_does_not_affect_the_main_run(tmp_path, monkeypatch, fault):
    sound = Client(monkeypatch)
    expected = record(tmp_path / "sound")
    failing = Client(monkeypatch, fault)
    messages = record(tmp_path / "failing")
    assert failing.runs[0].rows == sound.runs[0].rows and "name" in failing.finished
    messages = [text.replace("/failing/", "/sound/") for text in messages]
    if fault == "start":
        assert messages.pop(0).startswith("W&B: run name-rank0 could not be started (W&B fails)")
    assert messages == expected
    Client(monkeypatch, fault, of="name")  # control: a failure of the main run is logged
    assert any("W&B" in text and "W&B fails" in text for text in record(tmp_path / "control"))


def test_without_the_setting_there_is_one_run(tmp_path, monkeypatch):
    client = Client(monkeypatch)
    logger = wandb_logger.WandbLogger(Tracking(wandb="offline"), "name", tmp_path, {}, RANKS, None, print)
    logger.finish(failed=False)
    assert [run.given["name"] for run in client.runs] == ["name"]


def test_memory_is_logged_with_its_step(tmp_path):
    files = {"metrics.jsonl": [], "memory.jsonl": []}
    for step in (1, 2):
        for rank in range(2):
            place = {"step": step, "rank": rank}
            files["memory.jsonl"].append({"event": "memory", **place, "memory": 100 * step + rank})
            files["metrics.jsonl"].append({"event": "train", "epoch": 0, **place, "loss": None, "wait_s": 0.5})
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = RankRows(tmp_path, 1)
    assert list(rows.read(flush=False)) == [
        {"train/step": step, "train/wait_s": 0.5, "train/memory": 100 * step + 1} for step in (1, 2)
    ]
    assert list(rows.read(flush=True)) == []
