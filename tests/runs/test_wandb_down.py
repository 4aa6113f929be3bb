"""Failures of W&B: training does not wait, no data are lost, and `wandb sync` completes the run later.

Each scenario is a process (wandb_scenarios.py) that logs a run as training does, with the real client and a stub
server. Time limits are shortened there. The tests assert outcomes, never durations.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import driver
import forked
import psutil
import pytest
import torch
import yaml
from runs import ROOT, clean_environment, json_lines, make_photos, run_folder, small_config
from stub_wandb import free_port, stub_server
from wandb_scenarios import AT_START, CONTROLS, FAULT_STEP, OTHERS, RANKS, SERVER_LOST, SERVICE_LOST, TOKEN, set_bounds

from accel_restore import train
from accel_restore.config.schema import Tracking
from accel_restore.tracking import wandb_logger

KEY = "0123456789abcdef" * 2 + "01234567"
BIN = Path(sys.executable).parent
BLOCKED_SECONDS = 6  # how long the controls block; with the guard, the shortened limits end the wait earlier


@dataclass
class Outcome:
    """The result of a scenario, the sync command it printed, and the server's rows after that command."""

    folder: Path
    result: dict
    command: str | None = None
    rows: list[dict] | None = None


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return the outcome of each scenario. All run in parallel, because they mostly wait."""
    root = tmp_path_factory.mktemp("scenarios")
    with ThreadPoolExecutor(7) as pool:
        controls = {name: pool.submit(_play_control, name, root / name) for name in CONTROLS}
        names = [*SERVER_LOST, *SERVICE_LOST, *AT_START, *OTHERS]
        played = {name: pool.submit(_play, name, root / name) for name in names}
        return {name: future.result() for name, future in {**played, **controls}.items()}


def _play(scenario: str, folder: Path) -> Outcome:
    process = subprocess.run(
        _command(scenario, folder),
        capture_output=True,
        text=True,
        timeout=200,  # a blocked process
        env=_environment(folder),
        start_new_session=True,
    )
    expected = -signal.SIGKILL if scenario == "trainer_killed" else 0
    assert process.returncode == expected, f"{scenario}\n{process.stdout}\n{process.stderr}"
    assert "atexit" not in process.stderr, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    if scenario == "trainer_killed":
        with suppress(psutil.NoSuchProcess):
            psutil.Process(result).wait(90)  # W&B's process ends as well
        (run,) = (folder / "wandb").glob("run-2*")
        command = f"wandb sync --include-online {run}"
        return Outcome(folder, {}, command, _sync(command, folder))
    if result["unsynced"] is None:
        return Outcome(folder, result)
    command = _command_in(result["messages"])
    return Outcome(folder, result, command, _sync(command, folder))


def _play_control(scenario: str, folder: Path) -> Outcome:
    process = subprocess.Popen(
        _command(scenario, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(folder),
        start_new_session=True,
    )
    service = next(line.split()[1] for line in process.stdout if line.startswith("blocked"))
    try:
        process.wait(BLOCKED_SECONDS)
        blocked = False
    except subprocess.TimeoutExpired:
        blocked = True
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # including the server
    process.wait()
    process.stdout.close()
    if service != "None":
        with suppress(ProcessLookupError):
            os.kill(int(service), signal.SIGKILL)
    return Outcome(folder, {"blocked": blocked})


def _command(scenario: str, folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    return [
        sys.executable,
        str(ROOT / "tests" / "support" / "wandb_scenarios.py"),
        scenario,
        str(folder),
        f"data.token={TOKEN}",
    ]


def _environment(home: Path) -> dict[str, str]:
    return {
        **clean_environment(),
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "NETRC": str(home / "none"),
        "WANDB_API_KEY": KEY,
        "HF_TOKEN": TOKEN,
        "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # seconds; a whole number
    }


def _sync(command: str, folder: Path) -> list[dict]:
    """Run a sync command with a working server and return the server's rows."""
    with stub_server(folder / "server") as server:
        environment = {**_environment(folder), "WANDB_BASE_URL": server.url}
        environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
        process = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, timeout=200)
        assert process.returncode == 0, process.stderr
        return server.rows()


def _command_in(messages: list[str]) -> str:
    (command,) = [match[0] for text in messages if (match := re.search(r"wandb sync .*", text))]
    return command


def _assert_complete(rows: list[dict], folder: Path) -> None:
    """Assert that the rows contain every line of metrics.jsonl once."""
    by_step = {row["train/step"]: row for row in rows if "train/step" in row}
    by_epoch = {row["epoch"]: row for row in rows if "val/loss" in row}
    assert len(by_step) == sum("train/step" in row for row in rows)
    assert len(by_epoch) == sum("val/loss" in row for row in rows)
    lines = json_lines(folder / "metrics.jsonl")
    assert {line["rank"] for line in lines if line["event"] == "train"} == set(range(RANKS))
    for line in lines:
        if line["event"] == "epoch":
            assert math.isclose(by_epoch[line["epoch"]]["val/loss"], line["val_loss"])
        else:
            for name in ("loss", "lr"):
                assert math.isclose(by_step[line["step"]][f"train/{name}/rank_{line['rank']}"], line[name])


@pytest.mark.parametrize("scenario", [*AT_START, *SERVER_LOST, *SERVICE_LOST])
def test_the_printed_command_uploads_what_the_server_has_not_received(outcomes, scenario):
    outcome = outcomes[scenario]
    path = Path(outcome.result["unsynced"])
    assert path.name.startswith("run-" if scenario in SERVER_LOST else "offline-run-")
    assert str(path) in outcome.command
    assert [run.name for run in path.parent.glob("*run-2*")] == [path.name], "no other folder looks like the run"
    assert sum("this run is logged offline" in text for text in outcome.result["messages"]) == (scenario in AT_START)
    _assert_complete(outcome.rows, outcome.folder)


@pytest.mark.parametrize("scenario", CONTROLS)
def test_control_the_client_alone_blocks(outcomes, scenario):
    assert outcomes[scenario].result["blocked"]


def test_control_sync_without_include_online_skips_the_run(outcomes):
    outcome = outcomes["server_dies"]  # the command that W&B prints does nothing
    before = _content_of_server(outcome.folder)
    _sync(f"wandb sync {outcome.result['unsynced']}", outcome.folder)
    assert _content_of_server(outcome.folder) == before


def test_a_healthy_server_has_all_rows_and_a_signal_to_the_group_ends_nothing(outcomes):
    folder, result = outcomes["healthy"].folder, outcomes["healthy"].result
    assert result["unsynced"] is None and result["same_handlers"]
    assert result["messages"] == [f"W&B      view the run: wandb leet {folder / 'wandb'}"]
    with stub_server(folder / "server") as server:
        _assert_complete(server.rows(), folder)
        assert {"config.yaml", "wandb-metadata.json", "wandb-summary.json"} <= server.uploaded()
        assert server.config() == {"lr": 0.1, "token": "***"}


def test_the_time_limits_stay_below_those_of_launchers():
    assert wandb_logger.SERVER_SECONDS < wandb_logger.INIT_SECONDS
    assert wandb_logger.UPLOAD_SECONDS < wandb_logger.FINISH_SECONDS - wandb_logger._REWRITE_SECONDS
    assert wandb_logger.INIT_SECONDS + wandb_logger.FINISH_SECONDS < 30


def test_a_killed_training_can_be_synced(outcomes):
    rows = outcomes["trainer_killed"].rows
    assert [row["train/step"] for row in rows if "train/step" in row] == list(range(1, FAULT_STEP))


def test_a_resumed_run_starts_with_the_earlier_rows(outcomes):
    outcome = outcomes["resumed"]
    (former,) = (outcome.folder / "wandb" / "former").iterdir()
    path = Path(outcome.result["unsynced"])
    assert former.name.endswith(outcome.result["id"]) and path.name.endswith(outcome.result["id"])
    _assert_complete(outcome.rows, outcome.folder)
    # control: the server keeps only the rows of the last sync, so rows missing in the synced folder would be lost
    rows = _sync(f"wandb sync {former}", outcome.folder)
    assert max(row.get("train/step", 0) for row in rows) == FAULT_STEP


def test_disabled_logging_keeps_the_id(tmp_path):
    logger = wandb_logger.WandbLogger(Tracking(wandb="disabled"), "name", tmp_path, {}, 1, "former", print)
    logger.update()
    logger.finish(failed=False)
    assert logger.id == "former" and logger.unsynced is None and not any(tmp_path.iterdir())


def test_no_secret_is_in_the_files_or_uploads_of_wandb(outcomes):
    for scenario in (*SERVER_LOST, *SERVICE_LOST, *AT_START, *OTHERS):
        folder = outcomes[scenario].folder
        for content in (_content(folder / "wandb"), _content_of_server(folder)):
            assert TOKEN.encode() not in content and KEY.encode() not in content
    (metadata,) = (outcomes["healthy"].folder / "server" / "files").glob("*wandb-metadata.json")
    assert json.loads(metadata.read_bytes())["cpu_count"] > 0, "the machine is described"
    control = _content(outcomes["finish_unguarded"].folder / "wandb")
    assert TOKEN.encode() in control, "the client alone stores the command line"


def _content(folder: Path) -> bytes:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    return b"\n".join(path.read_bytes() for path in files)


def _content_of_server(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in (folder / "server").rglob("*") if path.is_file())


# Whole trainings.


class Scale(torch.nn.Module):
    """A model with an argument that may contain a secret."""

    def __init__(self, *, channels: int, source: str = ""):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input * self.scale


def _train(arguments: list[str], environment: dict[str, str], bounds: dict[str, float], gate: str, log: str) -> None:
    """Train online in this process."""
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    set_bounds(bounds)
    driver.install(f"gate={gate}")
    sys.exit(train.main(arguments))


@pytest.mark.sweep
def test_a_dying_server_does_not_change_training_and_secrets_stay_hidden(tmp_path):
    """The server dies during training; training is stopped and resumed without it. One command uploads all rows."""
    photos = make_photos(tmp_path / "train", 12), make_photos(tmp_path / "val", 3, seed=1)
    config, disabled = (
        small_config(*photos, tmp_path / mode, data={"batch_size": 2}, tracking={"wandb": mode})
        for mode in ("auto", "disabled")
    )
    config["model"] = disabled["model"] = {"name": "test_wandb_down:Scale"}
    login = "s3cret-0042-login"
    override = f"model.source=https://reader:{login}@example.org/weights?token={TOKEN}"
    file, gate, logs = tmp_path / "online.yaml", tmp_path / "gate", [tmp_path / "first.log", tmp_path / "second.log"]
    file.write_text(yaml.safe_dump(config))
    gate.mkdir()

    def start(bounds: dict[str, float], log: Path) -> list:
        port, command = free_port(), ["--config", str(file), "--cpu", override]
        processes = []
        for rank in range(RANKS):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
            environment = {**_environment(tmp_path), "WANDB_BASE_URL": server.url, "MASTER_ADDR": "127.0.0.1"}
            environment |= {name: str(value) for name, value in place.items()}
            processes.append(forked.start_process(_train, command, environment, bounds, str(gate), str(log)))
        return processes

    def end(processes: list) -> list[int]:
        for process in processes:
            process.join(200)
            process.kill()  # a blocked process
        return [process.exitcode for process in processes]

    with stub_server(tmp_path / "server") as server:
        for step in (3, 5):
            (gate / f"hold-{step}").touch()
        processes = start({"UPLOAD_SECONDS": 2.0}, logs[0])
        _wait(lambda: (gate / "at-3").exists() and server.rows(), processes)
        server.kill()
        (gate / "hold-3").unlink()
        _wait((gate / "at-5").exists, processes)
        for process in processes:
            process.terminate()
        (gate / "hold-5").unlink()
        assert end(processes) == [143, 143], logs[0].read_text()
        assert end(start({"SERVER_SECONDS": 2.0}, logs[1])) == [0, 0], logs[1].read_text()
    folder = run_folder(config)
    first, second = (_command_in(log.read_text().splitlines()) for log in logs)
    assert "--include-online" in first and "offline-run-" in second
    _assert_complete(_sync(second, tmp_path), folder)

    assert forked.run(disabled, ranks=RANKS) == [0, 0], forked.printed(disabled)
    assert _without_times(folder) == _without_times(run_folder(disabled))

    for content in (_content(folder / "wandb"), _content_of_server(tmp_path)):
        for secret in (TOKEN, KEY, login):
            assert secret.encode() not in content


def _wait(condition, processes: list) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert all(process.is_alive() for process in processes) and time.monotonic() < deadline
        time.sleep(0.05)


def _without_times(folder: Path) -> list[dict]:
    times = {"step_s", "wait_s", "seconds"}
    return [{k: v for k, v in line.items() if k not in times} for line in json_lines(folder / "metrics.jsonl")]
