"""`accel-restore check` of several sets: leaks between any two, images that a share leaves unseen, the table."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from runs import make_photos

from accel_restore.cli import main


def check(base: Path, train: dict, val: dict, length: dict | None = None, more: dict | None = None) -> tuple[int, dict]:
    """Return the exit code and the JSON report."""
    file, report = base / "config.yaml", base / "report.json"
    data = {"patch_size": 16, "batch_size": 4, "cache_dir": str(base / "cache"), "train": train, "val": val}
    data |= more or {}
    file.write_text(yaml.safe_dump({"data": data, "run": {"dir": str(base / "runs")}, "train": length or {}}))
    code = main(["check", "--config", str(file), "--json", str(report)])
    return code, json.loads(report.read_text())


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    return {name: make_photos(tmp_path / name, 4, seed) for seed, name in enumerate(("one", "two", "three", "four"))}


def sources(folders: dict[str, Path]) -> tuple[dict, dict]:
    given = {name: {"gt": str(folder)} for name, folder in folders.items()}
    return {name: given[name] for name in ("one", "two")}, {name: given[name] for name in ("three", "four")}


def kinds(report: dict) -> list[str]:
    return [warning["kind"] for warning in report["warnings"]]


def test_sets_without_faults_have_a_column_each_and_no_warning(tmp_path, folders, capsys):
    code, report = check(tmp_path, *sources(folders))
    assert code == 0 and "leak" not in kinds(report) and "unseen" not in kinds(report)
    names = ("train.one", "train.two", "val.three", "val.four")
    assert all(report[name]["pairs"] == 4 for name in names)
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


@pytest.mark.parametrize("trained", ["one", "two"])
@pytest.mark.parametrize("validated", ["three", "four"])
def test_an_image_of_any_training_set_in_any_validation_set_is_a_leak(tmp_path, folders, trained, validated):
    shutil.copy(folders[trained] / "photo002.png", folders[validated] / "again.png")
    code, report = check(tmp_path, *sources(folders))
    (leak,) = (warning for warning in report["warnings"] if warning["kind"] == "leak")
    assert code == 0 and {Path(file).parent.name for file in leak["files"]} == {trained, validated}


@pytest.mark.parametrize(("share", "is_unseen"), [(0.05, True), (0.5, False)])
def test_a_share_that_leaves_images_unseen_is_a_warning(tmp_path, folders, share, is_unseen):
    train, val = sources(folders)
    train["two"]["share"] = share
    _, report = check(tmp_path, train, val, {"epochs": 2, "steps_per_epoch": 5})  # 40 samples
    texts = [warning["text"] for warning in report["warnings"] if warning["kind"] == "unseen"]
    assert len(texts) == is_unseen
    if is_unseen:
        assert texts[0].startswith("data.train.two: a run of 40 samples takes 2 of them (5.0%) from its 4 images")


@pytest.mark.parametrize("crops", [{"two": 8}, {"all": 8}])
def test_several_crops_of_an_image_are_not_images_that_are_never_seen(tmp_path, folders, crops):
    train, val = sources(folders)
    train["two"] |= {"share": 0.1, **({"crops_per_image": 8} if "two" in crops else {})}
    more = {"crops_per_image": 8} if "all" in crops else {}
    _, report = check(tmp_path, train, val, {"epochs": 2, "steps_per_epoch": 5}, more)  # 4 samples of the second set
    assert report["epoch"]["sets"]["data.train.two"].items() >= {"samples": 32, "images": 4}.items()
    assert "unseen" not in kinds(report)


def test_the_length_of_a_run_in_steps_counts(tmp_path, folders):
    train, val = sources(folders)
    train["two"]["share"] = 0.05
    _, short = check(tmp_path, train, val, {"max_steps": 10})
    _, long = check(tmp_path, train, val, {"max_steps": 100})
    assert "unseen" in kinds(short) and "unseen" not in kinds(long)
