"""The scores of several validation sets in the rows of W&B, the report and the curves."""

import json

import numpy as np
from made_run import made_run
from PIL import Image

from accel_restore.tracking.curves import draw_curves
from accel_restore.tracking.report.page import Page
from accel_restore.tracking.report.series import Metrics
from accel_restore.tracking.rows import Rows, read_summary
from accel_restore.tracking.run_files import read_status


def run_with_sets(folder):
    """Write a run with the sets `set5` and `set12`, whose mean is what the run without sets has."""
    made_run(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] == "epoch":
            shift = {"psnr": 2, "input_psnr": 1, "loss": 0.001, "ssim": 0}
            sets = {name: {k: line[f"val_{k}"] + sign * s for k, s in shift.items()} for name, sign in SIGNS.items()}
            line["val_sets"] = {name: {**scores, "terms": {"l1": 0.5}} for name, scores in sets.items()}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = json.loads((folder / "status.json").read_text())
    status["best"]["sets"] = {"set5": {"loss": 0.021, "psnr": 31.5, "input_psnr": 21.2}, "set12": {"psnr": 27.5}}
    (folder / "status.json").write_text(json.dumps(status))
    plan = json.loads((folder / "plan.json").read_text())
    plan["protocol"] |= {"crop_border": 0, "average": "over sets"}
    own = {"psnr": "dB, peak 1", "crop_border": 2, "average": "over images"}
    plan["validation_sets"] = {"set5": {"protocol": own, "images": list("abcde")}}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


SIGNS = {"set5": 1, "set12": -1}


def content(page):
    text = page.split('id="data"', 1)[1].split(">", 1)[1].split("</script>", 1)[0]
    return {section["title"]: section for section in json.loads(text)["sections"]}


def test_rows_have_the_scores_of_each_set(tmp_path):
    rows = [row for row in Rows(run_with_sets(tmp_path / "run"), 2).read(flush=True) if "val/psnr" in row]
    assert [row["val/psnr"] for row in rows] == [28, 29, 30]
    assert [row["val/set5/psnr"] for row in rows] == [30, 31, 32] and rows[0]["val/set12/input_psnr"] == 19.2
    assert rows[0]["val/set5/terms/l1"] == 0.5 and rows[0]["val/terms/l1"] == 0.02
    assert not [key for row in rows for key, value in row.items() if isinstance(value, dict)]
    best = read_summary(tmp_path / "run")["best"]
    assert best["set5/psnr"] == 31.5 and "sets" not in best


def test_the_report_has_a_curve_and_a_row_of_each_set(tmp_path):
    page = Page(run_with_sets(tmp_path / "run")).build()
    sections = content(page)
    charts = {chart["id"]: chart for chart in sections["Validation"]["charts"]}
    series = {one["name"]: one for one in charts["val_psnr"]["series"]}
    assert list(series) == ["mean of sets", "set5", "set12", "input"]
    assert series["set12"]["y"] == [26, 27, 28] and series["set12"]["x"] == [1, 2, 3]
    (table,) = sections["Validation"]["tables"]
    assert table["head"] == ["set", "images", "PSNR of input", "PSNR", "loss"]
    assert table["rows"] == [
        ["set5", "5", "21.20 dB", "31.50 dB", "0.02100"],
        ["set12", "", "", "27.50 dB", ""],
        ["mean of sets", "", "20.20 dB", "29.50 dB", "0.02000"],
    ]
    assert ["set5: crop_border", "2"] in sections["Scores"]["tables"][0]["rows"]
    assert not [row for row in sections["Scores"]["tables"][0]["rows"] if row[0] in ("set5: psnr", "set5: average")]


def test_a_run_without_named_sets_has_no_table_of_them(tmp_path):
    sections = content(Page(made_run(tmp_path / "run")).build())
    assert sections["Validation"]["tables"] == [] and len(sections["Scores"]["tables"]) == 1
    assert sections["Validation"]["charts"][0]["series"][0]["name"] == "validation"


def test_curves_of_sets_are_drawn(tmp_path):
    for name, folder in {"sets": run_with_sets(tmp_path / "run"), "plain": made_run(tmp_path / "other")}.items():
        metrics = Metrics(folder / "metrics.jsonl")
        metrics.read()
        draw_curves(metrics, tmp_path / f"{name}.png")
    with_sets, plain = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("sets", "plain"))
    assert with_sets.shape == plain.shape and (with_sets != plain).mean() > 0.002


def test_damaged_records_of_sets_are_left_out(tmp_path):
    folder = run_with_sets(tmp_path / "run")
    status = json.loads((folder / "status.json").read_text())
    status["best"]["sets"] = {"set5": {"psnr": "high", "loss": 0.5}, "set12": 3}
    (folder / "status.json").write_text(json.dumps(status))
    assert read_status(folder)["best"]["sets"] == {"set5": {"loss": 0.5}}
    with (folder / "metrics.jsonl").open("a") as file:
        line = {"event": "epoch", "epoch": 3, "step": 61, "train_loss": 0.1, "val_loss": 0.1, "is_best": False}
        for sets in (3, {"set5": 3}, {"set5": {"psnr": "x"}}):
            file.write(json.dumps({**line, "val_sets": sets}) + "\n")
    (folder / "plan.json").write_text(json.dumps({"protocol": {"psnr": "dB"}, "validation_sets": {"set5": 3}}))
    assert content(Page(folder).build())["Validation"]["tables"][0]["rows"][0] == ["set5", "", "", "", "0.5000"]
