"""W&B's mode, its project and the environment variables that it reads."""

import os

import pytest

from accel_restore.cli import main
from accel_restore.config.load import config_from
from accel_restore.config.schema import Tracking
from accel_restore.errors import UserError
from accel_restore.tracking import wandb_client
from accel_restore.tracking.wandb_client import auto_mode, check_settings
from accel_restore.tracking.wandb_logger import WandbLogger


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_MODE", "nonsense"),
        ("WANDB_MODE", "OFFLINE"),
        ("WANDB_SILENT", "nonsense"),
        ("WANDB_BASE_URL", "nowhere"),
        ("WANDB_PROJECT", "a:b"),
        ("WANDB_INIT_TIMEOUT", "soon"),
    ],
)
def test_a_variable_that_wandb_does_not_accept_is_named_beforehand(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^{name}.*unset it$"):
        check_settings(Tracking())
    check_settings(Tracking(wandb="disabled"))
    monkeypatch.setenv(name, "")
    check_settings(Tracking())


@pytest.mark.parametrize(("value", "mode"), [("true", "disabled"), ("1", "disabled"), ("false", "offline")])
def test_wandb_disabled_is_honoured(monkeypatch, value, mode):
    monkeypatch.setenv("WANDB_DISABLED", value)
    assert auto_mode() == mode


def test_a_project_may_name_its_entity():
    assert Tracking(project="me/proj").entity_and_project == ("me", "proj")
    assert Tracking(project="proj").entity_and_project == (None, "proj")


@pytest.mark.parametrize("project", ["", "a/", "/b", "a/b/c", "a?b", "a:b/c", "x" * 129, "a\nb"])
def test_a_project_that_wandb_does_not_accept_is_refused_with_its_key(project):
    with pytest.raises(UserError, match=r"tracking\.project: must be"):
        config_from({"data": {"train": {"gt": "photos"}}, "tracking": {"project": project}})
    with pytest.raises(UserError, match="--project: must be"):
        _dashboard(project) if project else _dashboard(":")


def _dashboard(project):
    from accel_restore.commands.dashboard import main as dashboard

    return dashboard(["--project", project, "--print"])


def test_the_view_belongs_to_the_project_without_its_entity(capsys):
    assert main(["dashboard", "--project", "me/proj", "--print"]) == 0
    assert "of project proj" in capsys.readouterr().out


def _started(monkeypatch, tmp_path, tracking):
    lines = []
    monkeypatch.setattr("accel_restore.tracking.wandb_logger._Sender.start", lambda sender: None)
    logger = WandbLogger(tracking, "run", tmp_path, {}, 1, None, lines.append)
    return [*lines, logger.notice], logger.sender and logger.sender.main_run.settings


def test_a_run_says_where_wandb_writes_and_how_to_turn_it_off(monkeypatch, tmp_path):
    lines, settings = _started(monkeypatch, tmp_path, Tracking(project="me/proj"))
    assert lines == [f"W&B      offline; files in {tmp_path / 'wandb'}; tracking.wandb=false turns W&B off"]
    assert (settings["entity"], settings["project"]) == ("me", "proj")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_PROJECT", "other")
    lines, settings = _started(monkeypatch, tmp_path, Tracking())
    assert "online, project accel-restore; files in" in lines[1] and "WANDB_PROJECT is ignored" in lines[0]
    assert "entity" not in settings, "the account's"
    assert _started(monkeypatch, tmp_path, Tracking(wandb="disabled")) == ([None], None)


def test_a_trial_of_a_sweep_is_the_run_that_the_agent_has_made(monkeypatch, tmp_path):
    for name, value in {"RUN_ID": "trial1", "PROJECT": "theirs", "ENTITY": "us"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    settings = _started(monkeypatch, tmp_path, Tracking())[1]
    assert settings["id"] != "trial1" and settings["project"] == "accel-restore"  # control: not in a sweep
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    lines, settings = _started(monkeypatch, tmp_path, Tracking(project="me/mine"))
    assert (settings["id"], settings["project"], settings["entity"]) == ("trial1", "theirs", "us")
    assert not any("is ignored" in line for line in lines if line)
    lines = []
    for rank in (0, 1):  # W&B would write the run of a rank into that of the trial
        logger = WandbLogger(Tracking(wandb_per_rank=True), "run", tmp_path, {}, 2, "former", lines.append, rank)
        assert (logger.sender is None) == (rank == 1) and logger.id == "trial1"
        assert rank or logger.sender.side_run is None
    assert lines == ["W&B: a trial of a sweep is one run, so tracking.wandb_per_rank is ignored"]


def test_wandb_gets_a_cache_that_can_be_written_and_no_empty_variable(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("WANDB_MODE", "")
    with wandb_client._usable_environment():
        assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "other" / "wandb") and "WANDB_MODE" not in os.environ
    assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "file" / "cache") and os.environ["WANDB_MODE"] == ""
