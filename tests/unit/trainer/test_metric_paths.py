"""Scores of metrics named by import path: in all files of a run, in its report, and in the commands that read it."""

import io
import json
import shutil
import sys
from contextlib import redirect_stdout

import pytest
from runs import epochs_of, small_config

from accel_restore import fit
from accel_restore.cli import main
from accel_restore.errors import UserError
from accel_restore.inference.model_card import card
from accel_restore.models.weights_file import read_header, read_metadata
from accel_restore.tracking.report.page import Page
from accel_restore.tracking.rows import Rows, read_summary

PHOTOS = 8, 2  # training, validation
PACKAGE = """
def worst(output, gt, power=1):
    "The largest error of a pixel."
    return ((output - gt).abs() ** power).flatten(1).amax(1)

worst.higher_is_better = False

def contrast(output):
    return output.flatten(1).std(1)
"""
WORST, CONTRAST = "own_package.scores:worst", "own_package.scores:contrast"
OWN = [WORST, CONTRAST, "squared", "torchmetrics.image:SpatialCorrelationCoefficient"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Write the package and make it importable."""
    root = tmp_path_factory.mktemp("package")
    (root / "own_package").mkdir()
    (root / "own_package" / "scores.py").write_text(PACKAGE)
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))


@pytest.fixture(scope="module")
def config(photos, package, tmp_path_factory):
    metrics = ["psnr", WORST, CONTRAST, {"name": WORST, "power": 2, "title": "squared"}, OWN[-1]]
    validation = {"metrics": metrics, "monitor": WORST}
    config = small_config(*photos, tmp_path_factory.mktemp("out"), train={"epochs": 3}, validation=validation)
    return {**config, "scheduler": {"name": "constant"}}


@pytest.fixture(scope="module")
def printed():
    return io.StringIO()


@pytest.fixture(scope="module")
def run(config, printed):
    with redirect_stdout(printed):
        return fit(config, cpu=True)


def test_lines_and_status_hold_the_scores_of_output_and_input(run, config):
    lines = epochs_of(config)
    for line in lines:
        for name in OWN:
            assert isinstance(line[f"val_{name}"], float) and isinstance(line[f"val_input_{name}"], float)
        assert 0 < line[f"val_{WORST}"] <= 1 and line["val_squared"] <= line[f"val_{WORST}"]
    best = min(lines, key=lambda line: line[f"val_{WORST}"])
    assert lines[max(line["epoch"] for line in lines if line["is_best"])] == best
    stored = json.loads((run / "status.json").read_text())["best"]
    assert {name: stored[name] for name in OWN} == {name: best[f"val_{name}"] for name in OWN}


def test_weights_hold_the_scores_and_how_they_were_measured(run):
    metadata = {**read_header(run / "best.safetensors")[0]}
    metadata |= read_metadata(metadata)
    scores, protocol = metadata["metrics"], metadata["metrics"]["protocol"]
    assert set(OWN) < set(scores) and protocol["squared"] == f"{WORST}(power=2), in float32"
    text = str(card("me/model", metadata, None, None, None))
    for name in OWN:
        assert f"| {name} | {scores[f'input_{name}']:.5g} | **{scores[name]:.5g}** | {protocol[name]} |" in text


def test_report_and_trackers_show_every_score(run):
    content = Page(run)
    content.build()
    titles = [name for name, *_ in content._content("run", json.loads((run / "status.json").read_text()))["facts"]]
    charts = content._content("run", {})["sections"][1]["charts"]
    assert set(OWN) < set(titles) and set(OWN) < {chart["title"] for chart in charts}
    rows = [row for row in Rows(run, 1).read(flush=True) if "val/loss" in row]
    names = {"own_package_scores_worst", "own_package_scores_contrast", "squared"}
    assert all({f"val/{name}" for name in names} | {f"val/input_{name}" for name in names} < row.keys() for row in rows)
    assert names < read_summary(run)["best"].keys()


def test_console_shows_every_score(run, printed):
    (best,) = [line for line in printed.getvalue().splitlines() if line.startswith("finished: best epoch")]
    assert all(f"{name} " in best for name in OWN) and f" · {WORST} " in printed.getvalue()


def evaluate(run, *arguments) -> int:
    return main(["evaluate", str(run / "best.safetensors"), "--run", str(run), "--cpu", *arguments])


def test_the_runs_own_validation_is_repeated(run, tmp_path):
    assert evaluate(run, "--json", str(tmp_path / "scores.json")) == 0
    measured = json.loads((tmp_path / "scores.json").read_text())["mean"]
    best = json.loads((run / "status.json").read_text())["best"]
    assert {name: measured[name] for name in OWN} == pytest.approx({name: best[name] for name in OWN}, rel=1e-4)


def test_weights_alone_run_no_code_of_a_metric(run, photos, tmp_path, capsys):
    command = ["evaluate", str(run / "best.safetensors"), "--gt", str(photos[1]), "--degrade", "quantize", "--cpu"]
    command += ["--json", str(tmp_path / "scores.json")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"{', '.join(OWN)}: not measured, as weights may not choose which code outside accel_restore runs" in printed
    assert f"--metrics psnr,{WORST},{CONTRAST},package.module:Name," in printed
    assert "psnr" in json.loads((tmp_path / "scores.json").read_text())["mean"]
    assert main([*command, "--metrics", f"[psnr, {{name: '{WORST}', power: 2}}]", "--pictures", str(tmp_path)]) == 0
    assert f"{WORST}(power=2), in float32" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["mean"][WORST] < 0.1
    assert main([*command, "--metrics", CONTRAST, "--pictures", str(tmp_path)]) == 2
    assert f"--pictures: '{CONTRAST}' has no attribute higher_is_better" in capsys.readouterr().err


def test_a_missing_package_is_named(run, package, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(package)])
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        monkeypatch.delitem(sys.modules, name)
    assert evaluate(run) == 2
    assert f"validation.metrics.1: cannot import '{WORST}' (No module named 'own_package')" in capsys.readouterr().err


def test_a_run_continues_only_with_the_same_metrics(run, config, tmp_path):
    shutil.copytree(run.parent, tmp_path / "copy")
    own = {**config, "run": {**config["run"], "dir": str(tmp_path / "copy")}, "train": {"epochs": 4}}
    changed = json.loads(json.dumps(own))
    changed["validation"]["metrics"][3]["power"] = 3
    with pytest.raises(
        UserError, match=r"validation\.metrics: \['psnr', .*'power': 2.* in the commit, .*'power': 3.* now"
    ):
        fit(changed, "train.epochs=4", cpu=True)
    fit(own, "train.epochs=4", cpu=True)
    assert len(epochs_of(own)) == 4


def test_a_broken_metric_leaves_no_files(config, tmp_path):
    broken = {**config, "run": {**config["run"], "dir": str(tmp_path / "out")}}
    for validation, message in (
        (
            {"metrics": ["psnr", CONTRAST], "monitor": CONTRAST},
            "validation.monitor: .* has no attribute higher_is_better",
        ),
        ({"metrics": ["psnr", "own_package.scores:nothing"]}, "validation.metrics.1: cannot import"),
        ({"metrics": ["torchmetrics.image:MultiScaleStructuralSimilarityIndexMeasure"]}, "cannot score an image of"),
    ):
        with pytest.raises(UserError, match=message):
            fit({**broken, "validation": validation}, cpu=True)
        assert not (tmp_path / "out" / "small").exists()
