"""Commands and the Python interface in a locale whose encoding is not UTF-8."""

import subprocess
import sys

import pytest
import yaml
from runs import ROOT, clean_environment, json_lines, make_photos, run_folder, small_config, succeed

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FIT = "import sys, accel_restore; accel_restore.fit(sys.argv[1], *sys.argv[2:], cpu=True)"


def _run(*command, **environment):
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT), **environment}
    return succeed(subprocess.run([sys.executable, *command], capture_output=True, env=environment, timeout=300))


def _losses(config, name):
    lines = json_lines(run_folder({"run": {**config["run"], "name": name}}) / "metrics.jsonl")
    return [(line.get("loss"), line.get("val_loss")) for line in lines]


@pytest.mark.sweep
def test_commands_and_draws_do_not_depend_on_the_locale(tmp_path):
    photos, val = make_photos(tmp_path / "фото", 4), make_photos(tmp_path / "val", 2, seed=1)
    for index, file in enumerate([*photos.iterdir(), *val.iterdir()]):
        file.rename(file.with_name(f"Übung{index}.png"))
    config = small_config(photos, val, tmp_path)
    file = tmp_path / "configuration.yaml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    given = ["-m", "accel_restore.cli"], ["--config", str(file)]
    _run(*given[0], "check", *given[1], **ASCII)
    for name, environment in {"Übung": ASCII, "utf8": {}}.items():
        _run(*given[0], "train", *given[1], "--cpu", f"run.name={name}", **environment)
    assert _losses(config, "Übung") == _losses(config, "utf8")
    (tmp_path / "Übung" / "report.html").unlink()
    _run(*given[0], "report", str(tmp_path / "Übung"), **ASCII)
    assert "Übung" in (tmp_path / "Übung" / "report.html").read_text(encoding="utf-8")


def test_a_run_started_from_python_writes_its_report_in_any_locale(tmp_path):
    photos, val = make_photos(tmp_path / "photos", 4), make_photos(tmp_path / "val", 2, seed=1)
    file = tmp_path / "configuration.yaml"
    file.write_text(yaml.safe_dump(small_config(photos, val, tmp_path)), encoding="utf-8")
    _run("-c", FIT, str(file), **ASCII)
    assert "median" in (tmp_path / "small" / "report.html").read_text(encoding="utf-8")
