"""W&B end to end with the real client on 1, 2 and 3 ranks (offline, synced, online), and the saved view."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
from runs import ROOT, clean_environment, json_lines, make_photos, run_folder, small_config
from stub_wandb import stub_server

from accel_restore import cli
from accel_restore.commands import dashboard
from accel_restore.errors import UserError
from accel_restore.tracking.rows import PER_RANK, Rows
from accel_restore.tracking.wandb_logger import auto_mode

RANKS = (1, 2, 3)
KEY = "0123456789abcdef" * 2 + "01234567"
ONLINE = """
import sys
from pathlib import Path
from accel_restore.tracking import wandb_logger
from accel_restore.config.schema import Tracking
folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
for name in ("SERVER_SECONDS", "INIT_SECONDS", "UPLOAD_SECONDS", "FINISH_SECONDS"):
    setattr(wandb_logger, name, 90.0)
logger = wandb_logger.WandbLogger(Tracking(wandb="online"), "online", folder, {}, ranks, None, print)
logger.finish(failed=False)
assert logger.unsynced is None
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, dict]:
    """World size → configuration of an audited run that was logged offline."""
    root = tmp_path_factory.mktemp("ranks")
    photos = make_photos(root / "train", 7), make_photos(root / "val", 2, seed=1)
    tracking = {"wandb": "offline", "project": "mine"}
    configs = {}
    for ranks in RANKS:
        config = small_config(*photos, root / str(ranks), data={"batch_size": 2}, tracking=tracking)
        config["train"], config["validation"] = {"epochs": 1}, {"metrics": ["psnr", "ssim"]}
        configs[ranks] = config
        assert forked.run(config, "--audit", ranks=ranks, mode="patient", timeout=300) == [0] * ranks, forked.printed(
            config
        )
    return configs


def _client(*command: str, server: str | None = None, home: Path) -> str:
    """Run a command in an isolated environment and return its output."""
    environment = {**clean_environment(), "HOME": str(home), "NETRC": str(home / "none"), "PYTHONPATH": str(ROOT)}
    if server is not None:
        environment |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def _wandb() -> str:
    return str(Path(sys.executable).parent / "wandb")


def _expected(config: dict, ranks: int) -> list[dict]:
    return [row for row in Rows(run_folder(config), ranks).read(flush=True) if "val/images" not in row]


def _numbers(rows: list[dict], like: list[dict]) -> list[dict]:
    """Return the rows without images and without the keys that the client adds."""
    known = {key for row in like for key in row}
    found = [{key: value for key, value in row.items() if key in known} for row in rows]
    return [row for row in found if set(row) - {"epoch"}]


def test_an_offline_run_contains_all_values_of_all_ranks_the_plan_and_the_audit(trained, tmp_path):
    for ranks, config in trained.items():
        (run,) = (run_folder(config) / "wandb").glob("offline-run-*")
        records = [
            json.loads(line)
            for line in _client(_wandb(), "leet", "inspect", "--json", str(run), home=tmp_path).splitlines()
        ]
        rows = [record["history"]["item"] for record in records if record["type"] == "history"]
        expected = _expected(config, ranks)
        assert _numbers(rows, expected) == [pytest.approx(row) for row in expected]
        steps = [row for row in rows if "train/step" in row]
        lines = [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "train"]
        assert len(steps) == len({line["step"] for line in lines}) > 0
        memory = json_lines(run_folder(config) / "memory.jsonl")
        for line, used in zip(lines, memory, strict=True):
            assert (used.pop("event"), used["step"], used["rank"]) == ("memory", line["step"], line["rank"])
            line |= used
            for name in (name for name in PER_RANK if not name.startswith(("d_", "g_share"))):
                logged = steps[line["step"] - 1].get(f"train/{name}/rank_{line['rank']}")
                assert logged == (None if line[name] is None else pytest.approx(line[name])), name
        assert all(f"train/memory/rank_{rank}" in steps[0] for rank in range(ranks))
        assert sum("val/images.path" in row for row in rows) == 1
        (config_sent,) = (record["run"]["config"]["update"] for record in records if record["type"] == "run")
        assert f"× {ranks} rank" in config_sent["plan"]["global batch"]
        summary = {}
        for record in records:
            summary |= record.get("summary", {}).get("update", {})
        assert summary["audit"]["ok"] and summary["audit"]["table"]["scheduler.step"]["calls"] == 1
        assert summary["best"]["psnr"] > 5


@pytest.mark.sweep
def test_each_rank_can_log_its_own_run_in_one_group(trained, tmp_path):
    config = {**trained[2], "run": {"name": "each", "dir": str(tmp_path), "seed": 7}}
    config["tracking"] = {**config["tracking"], "wandb_per_rank": True}
    assert forked.run(config, ranks=2, mode="patient", timeout=300) == [0, 0], forked.printed(config)
    lines = [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "train"]
    found = {}
    for run in (run_folder(config) / "wandb").glob("offline-run-*"):
        output = _client(_wandb(), "leet", "inspect", "--json", str(run), home=tmp_path)
        records = [json.loads(line) for line in output.splitlines()]
        (header,) = (record["run"] for record in records if record["type"] == "run")
        rows = [record["history"]["item"] for record in records if record["type"] == "history"]
        found[header["display_name"]] = header, [row for row in rows if "train/step" in row]
    assert set(found) == {"each", "each-rank0", "each-rank1"}, "the run of all ranks is unchanged"
    assert "train/loss/rank_1" in found["each"][1][0] and "run_group" not in found["each"][0]
    for rank in range(2):
        header, rows = found[f"each-rank{rank}"]
        assert (header["run_group"], header["job_type"], header["project"]) == ("each", "rank", "mine")
        mine = [line for line in lines if line["rank"] == rank]
        assert [row["train/step"] for row in rows] == [line["step"] for line in mine]
        for row, line in zip(rows, mine, strict=True):
            assert row["train/memory"] > 0
            for name in ("loss", "lr", "grad_norm", "step_s", "wait_s"):
                assert row.get(f"train/{name}") == (None if line[name] is None else pytest.approx(line[name])), name


def test_a_finished_run_prints_the_two_commands_once(trained):
    for config in trained.values():
        last = forked.printed(config).splitlines()[-2:]
        folder = run_folder(config) / "wandb"
        assert last[0].endswith(f"wandb leet {folder}") and re.search(rf"wandb sync {folder}/offline-run-\S+$", last[1])
        assert forked.printed(config).count("wandb leet") == forked.printed(config).count("wandb sync") == 1


def test_a_server_receives_the_same_rows_from_sync_and_online_runs(trained, tmp_path):
    def send(ranks: int, online: bool) -> list[dict]:
        config, home = trained[ranks], tmp_path / f"{ranks}-{online}"
        with stub_server(home) as server:
            (run,) = (run_folder(config) / "wandb").glob("offline-run-*")
            if online:
                copy = home / "run"
                copy.mkdir()
                for name in ("metrics.jsonl", "memory.jsonl"):
                    shutil.copy(run_folder(config) / name, copy)
                _client(sys.executable, "-c", ONLINE, str(copy), str(ranks), server=server.url, home=home)
            else:
                _client(_wandb(), "sync", str(run), server=server.url, home=home)
            return server.rows()

    jobs = [(ranks, online) for ranks in RANKS for online in (False, True)]
    with ThreadPoolExecutor(3) as pool:
        received = dict(zip(jobs, pool.map(lambda job: send(*job), jobs), strict=True))
    for (ranks, online), rows in received.items():
        expected = _expected(trained[ranks], ranks)
        assert _numbers(rows, expected) == [pytest.approx(row) for row in expected], (ranks, online)


def test_the_view_has_one_panel_for_each_logged_quantity(trained, tmp_path):
    """A quantity added to the rows must also be added to the view."""
    view = tmp_path / "view.json"
    assert cli.main(["dashboard", str(run_folder(trained[3])), "--json", str(view)]) == 0
    saved = json.loads(view.read_bytes())
    assert saved["name"] == "accel-restore, small"
    assert '"metricRegex": "train/lr/rank_[0-9]+"' in json.dumps(saved) and '"val/images"' in json.dumps(saved)
    panels = [y for panels in dashboard.SECTIONS.values() for _, _, y in panels]
    patterns = [y if isinstance(y, str) else "|".join(map(re.escape, y)) for y in panels]
    for ranks, config in trained.items():
        for key in {key for row in _expected(config, ranks) for key in row} - {"epoch", "train/step"}:
            mean = key in ("train/lr", "train/grad_norm")  # each rank has the same value
            assert mean or sum(bool(re.fullmatch(pattern, key)) for pattern in patterns) == 1, key


def test_the_view_is_saved_to_the_server(trained, tmp_path, capsys):
    command = (sys.executable, "-m", "accel_restore.cli", "dashboard", str(run_folder(trained[2])), "--entity", "us")
    with stub_server(tmp_path / "server") as server:
        assert f"saved: {server.url}/us/mine?nw=" in _client(*command, server=server.url, home=tmp_path)
        (spec,) = server.views()
    (sections,) = (spec["section"]["panelBankConfig"]["sections"],)
    assert [section["name"] for section in sections][:3] == ["Training, per rank", "Validation", "Pictures"]


def test_without_an_account_or_a_server_the_error_comes_quickly(tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert auto_mode() == "offline", "the mode of `tracking.wandb: auto`"
    assert cli.main(["dashboard"]) == 2 and "wandb login" in capsys.readouterr().err
    assert cli.main(["dashboard", str(tmp_path)]) == 2 and "config.yaml" in capsys.readouterr().err
    assert cli.main(["dashboard", "--print"]) == 0 and "train/grad_norm/rank_[0-9]+" in capsys.readouterr().out
    with pytest.raises(UserError, match="no answer from W&B for 0 s"):
        dashboard._within(0.05, lambda: __import__("time").sleep(5))
    with pytest.raises(UserError, match="rejected the view"):
        dashboard._within(60, lambda: {}["refused"])
