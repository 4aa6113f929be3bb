"""report.html: its content, the thinning of curves, damaged files, and when it is written."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from made_run import COLOURS, EPOCHS, SPIKE, STEPS, made_run
from PIL import Image

from accel_restore.checkpoint.folder import RUN_FILES
from accel_restore.checkpoint.resume import Start, clear
from accel_restore.cli import main
from accel_restore.tracking.report.page import Page
from accel_restore.tracking.report.pictures import read_pictures
from accel_restore.tracking.report.series import Metrics
from accel_restore.tracking.rows import read_summary
from accel_restore.tracking.run_files import read_audit


def content_of(file):
    """Return the page's data, and its sections by title."""
    text = re.search(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)[1]
    content = json.loads(text)
    return content, {section["title"]: section for section in content["sections"]}


def cells(section):
    return [cell for table in section["tables"] for row in table["rows"] for cell in row]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("metrics.jsonl", 2), ("status.json", 2), ("plan.json", 0), ("audit.json", 0), ("config.yaml", 0),
        ("samples/epoch-00009.png", 0),
    ],
)  # fmt: skip
def test_what_is_not_a_regular_file_is_not_read(tmp_path, capsys, make, name, code):
    run = made_run(tmp_path / "run")
    file = run / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    make(file)
    assert main(["report", str(run)]) == code
    assert code == 0 or name in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("made") / "run")


def test_the_command_writes_the_page_and_prints_its_path(made, capsys):
    assert main(["report", str(made)]) == 0
    assert capsys.readouterr().out == f"{made / 'report.html'}\n"
    content, sections = content_of(made / "report.html")
    assert content["state"] == "finished" and content["progress"]["steps"] == STEPS and content["skipped"] == [30]
    assert ["PSNR", "29.50 dB", "input 20.20 dB"] in content["facts"]
    charts = {chart["id"]: chart for chart in [*sections["Training"]["charts"], *sections["Validation"]["charts"]]}
    assert [series["name"] for series in charts["loss"]["series"]] == ["rank 0", "rank 1"]
    assert "l1 + ssim" in charts["loss"]["note"]
    assert charts["lr"]["note"] == "bit-identical on all 2 ranks" and len(charts["lr"]["series"]) == 2
    assert [series["name"] for series in charts["terms"]["series"]] == ["l1", "ssim"]
    assert charts["val_psnr"]["series"][0]["y"] == [28.0, 29.0, 30.0] and charts["val_psnr"]["best"] == 2
    assert charts["val_psnr"]["series"][0]["x"] == [1, 2, 3], "epochs are counted from 1"
    assert ["best epoch", "2", "step 40"] in content["facts"]
    assert [series["name"] for series in charts["val_psnr"]["series"]] == ["validation", "input"]
    assert "rank 1: non-finite l1 of bad.png" in cells(sections["Events"])
    assert "optimizer.step" in cells(sections["Audit"]) and "2 × cpu" in cells(sections["Plan"])
    assert "0.7" in sections["Configuration"]["text"] and "2.14.1" in cells(sections["Versions"])
    assert sections["Speed"]["tables"][0]["rows"][1] == ["1", "60", "40", "200", "2"]
    assert "samples/s (median)" in sections["Speed"]["tables"][0]["head"]
    assert "samples/s" in sections["Speed"]["charts"][0]["title"]


def test_the_page_needs_neither_torch_nor_all_files(made, tmp_path):
    copy = shutil.copytree(made, tmp_path / "copy")
    for name in ("audit.json", "plan.json", "config.yaml", "report.html"):
        (copy / name).unlink(missing_ok=True)
    whole = (copy / "metrics.jsonl").read_bytes()
    (copy / "metrics.jsonl").write_bytes(whole[:-9])  # a partial line
    (copy / "samples" / "epoch-0002.png").write_bytes(b"\x89PNG truncated")
    code = "import sys; from accel_restore.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, "report", str(copy)], check=True, stdout=subprocess.DEVNULL)
    sections = content_of(copy / "report.html")[1]
    assert sections["Training"]["charts"][0]["series"][0]["x"][-1] == STEPS
    assert sections["Validation"]["charts"][0]["series"][0]["x"] == [1, 2]
    assert sections["Pictures"]["pictures"]["epochs"] == ["1", "2"]
    assert not sections["Audit"]["tables"] and not sections["Plan"]["tables"]


@pytest.mark.parametrize("kind", ["empty", "missing", "file"])
def test_a_folder_without_a_run_is_rejected_with_one_line(tmp_path, capsys, kind):
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    elif kind == "file":
        folder.write_text("{}")
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{folder}: not a run's folder" in error
    assert list(tmp_path.rglob("*.html")) == []


def test_the_page_can_be_written_to_another_file(made, tmp_path, capsys):
    assert main(["report", str(made), "-o", str(tmp_path / "page.html")]) == 0
    assert content_of(tmp_path / "page.html")[0]["name"] == "run"
    assert main(["report", str(made), "-o", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_page_of_64_ranks_stays_small_and_keeps_a_spike(tmp_path):
    folder = made_run(tmp_path / "many", ranks=64, steps=450)
    page = Page(folder).build()
    assert (folder / "metrics.jsonl").stat().st_size > 5e6 and len(page) < 2.5e6
    (tmp_path / "page").write_text(page)
    loss = content_of(tmp_path / "page")[1]["Training"]["charts"][0]
    assert len(loss["series"]) == 65 and loss["series"][64]["name"] == "all ranks"
    assert max(loss["series"][1]["y"]) == SPIKE and len(loss["series"][1]["x"]) < 400


def test_metrics_are_read_incrementally(made, tmp_path):
    data, path = (made / "metrics.jsonl").read_bytes(), tmp_path / "metrics.jsonl"
    once, growing = Metrics(made / "metrics.jsonl"), Metrics(path)
    once.read()
    growing.read()  # the file does not exist yet
    for end in (1000, 1010, len(data) // 2, len(data)):
        path.write_bytes(data[:end])
        growing.read()
    for name in once.names():
        for rank, curve in once.curves(name).items():
            assert np.array_equal(curve.points(), growing.curves(name)[rank].points())
        assert np.array_equal(once.mean(name), growing.mean(name))
        assert once.is_identical_on_all_ranks(name) == growing.is_identical_on_all_ranks(name)
    assert len(once.scores) == len(growing.scores) > 3 and once.best == growing.best and growing.events == once.events


def test_unknown_lines_and_missing_values_are_tolerated(tmp_path):
    lines = [
        {"event": "train", "step": 1, "rank": 0, "loss": None, "samples": 0, "step_s": 0.0, "wait_s": 0.0},
        {"event": "train", "step": 2, "rank": 0, "loss": 1.5, "samples": 8, "step_s": 0.1, "memory_gb": 2.5, "on": "x"},
        {"event": "train", "step": "3", "rank": [], "loss": 10**400},
        {"event": "moved", "to": "another host"},
        [1],
        {},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    (tmp_path / "status.json").write_text('{"state": "failed", "error": "out of memory"}')
    (tmp_path / "page").write_text(Page(tmp_path).build())
    content, sections = content_of(tmp_path / "page")
    charts = {chart["title"]: chart["series"][0] for chart in sections["Training"]["charts"]}
    assert charts["Loss per rank"]["x"] == [2] and charts["memory_gb per rank"]["y"] == [2.5]
    assert "on per rank" not in charts and content["error"] == "out of memory"
    assert "moved" in cells(sections["Events"])


@pytest.mark.parametrize(
    "audit",
    [
        "[1]", "{", "{}", '{"ok": true}', '{"ok": true, "table": 5, "violations": []}', '"text"',
        '{"ok": true, "table": [{"calls": 3}], "violations": []}', '{"ok": 1, "table": [], "violations": []}',
        '{"ok": true, "table": [3], "violations": []}', '{"ok": true, "table": [], "violations": 1}',
        '{"ok": true, "table": [{"operation": ["a"]}], "violations": []}',
    ],
)  # fmt: skip
def test_an_invalid_audit_is_treated_as_missing(made, tmp_path, audit):
    folder = shutil.copytree(made, tmp_path / "run")
    assert read_summary(folder)["audit"]["ok"] and read_audit(folder), "control: a valid audit"
    (folder / "audit.json").write_text(audit)
    assert read_audit(folder) == {} and set(read_summary(folder)) == {"best"}
    (tmp_path / "page").write_text(Page(folder).build())
    assert content_of(tmp_path / "page")[1]["Audit"]["tables"] == []
    (folder / "status.json").write_text('{"state": "finished", "best": [1]}')
    assert read_summary(folder) == {}


def test_the_pictures_are_the_tiles_of_the_sheets_in_samples(made, tmp_path):
    (tmp_path / "page").write_text(Page(made).build())
    pictures = content_of(tmp_path / "page")[1]["Pictures"]["pictures"]
    assert len(pictures["images"]) == 2 and pictures["epochs"] == ["1", "2", "3"] and pictures["sheets"] == EPOCHS
    image = pictures["images"][1]
    for name, tile in {"input": image["input"], "gt": image["gt"], "output": image["outputs"][-1]}.items():
        pixels = Image.open(io.BytesIO(base64.b64decode(tile["src"].split(",")[1])))
        assert pixels.size == (tile["width"], tile["height"]) == (64, 48) and tile["caption"] == name
        assert np.abs(np.asarray(pixels, int) - COLOURS[name]).max() <= 3


def test_a_loss_with_an_adversarial_term_is_named_as_such(tmp_path):
    folder = made_run(tmp_path / "run")

    def names() -> list[str]:
        (tmp_path / "page").write_text(Page(folder).build())
        sections = content_of(tmp_path / "page")[1]
        charts = {chart["id"]: chart for title in ("Training", "Validation") for chart in sections[title]["charts"]}
        return [charts["loss"]["note"].partition(".")[0], charts["val_loss"]["series"][-1]["name"]]

    assert names() == ["l1 + ssim", "training"]
    with (folder / "config.yaml").open("a") as file:
        file.write("adversarial: {weight: 0.01}\n")
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"terms": {', '"terms": {"adversarial": 0.01, '))
    assert names() == ["l1 + ssim + adversarial", "training, with the adversarial term"]


def test_overwrite_removes_every_file_of_a_run_but_the_configuration_that_is_replaced(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    (folder / "tensorboard").mkdir()
    (folder / "report.html").touch()
    assert {"plan.json", "report.html", "tensorboard", "samples"} <= set(RUN_FILES)
    (folder / "config.yaml").touch()
    clear(folder, Start())
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_the_pictures_include_the_best_epoch_of_a_long_run(tmp_path):
    folder = made_run(tmp_path / "run")
    for epoch in range(3, 20):
        shutil.copy(folder / "samples" / "epoch-0000.png", folder / "samples" / f"epoch-{epoch:04d}.png")
    for best, file in ((4, "epoch-0004.png"), (5, "best-epoch-0005.png")):
        if not file.startswith("epoch"):
            (folder / "samples" / "epoch-0005.png").rename(folder / "samples" / file)
        pictures = read_pictures(folder, best, {})
        assert pictures["best"] == str(best + 1) in pictures["epochs"]
        assert pictures["epochs"] == sorted(pictures["epochs"], key=int) and len(pictures["epochs"]) == 5
    assert read_pictures(folder, None, {})["best"] is None
