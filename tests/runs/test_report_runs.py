"""report.html is written during training and at its end."""

import json
import re
import time

import forked
from runs import make_photos, run_folder, small_config


def content_of(file):
    """Return the page's data and its sections by title."""
    content = json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)[1])
    return content, {section["title"]: section for section in content["sections"]}


def cells(section):
    return [cell for table in section["tables"] for row in table["rows"] for cell in row]


def test_the_page_is_written_during_training_and_at_its_end(tmp_path):
    """The page is written at the end of each epoch. The last page has the final state and the audit."""
    photos, val = make_photos(tmp_path / "photos", 8), make_photos(tmp_path / "val", 2, seed=1)
    config = small_config(photos, val, tmp_path, data={"batch_size": 4})
    file, gate = run_folder(config) / "report.html", tmp_path / "gate"
    gate.mkdir()
    (gate / "hold-2").touch()  # the second epoch
    processes = forked.start(config, "--audit", ranks=2, mode=f"report,gate={gate}")
    deadline = time.monotonic() + 90
    while not ((gate / "at-2").exists() and file.exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    content, sections = content_of(file)
    (gate / "hold-2").unlink()
    assert content["state"] == "running" and content["progress"] == {"epoch": 1, "epochs": 2, "step": 1, "steps": 2}
    assert len(sections["Training"]["charts"][0]["series"]) == 2
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0], forked.printed(config)
    content, sections = content_of(file)
    assert content["state"] == "finished" and content["progress"]["epoch"] == 2
    assert "2 × cpu, 1 thread each" in cells(sections["Plan"]) and "optimizer.step" in cells(sections["Audit"])
    assert sections["Pictures"]["pictures"]["epochs"] == ["1", "2"] and "torch" in cells(sections["Versions"])
    assert "report.html" in forked.printed(config)
