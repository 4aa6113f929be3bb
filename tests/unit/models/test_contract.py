"""The table of what each architecture can do is complete, gives its reasons, and is measured, not written."""

import re
from contextlib import suppress

import architecture_checks
import pytest
from architecture_checks import COLUMNS
from contract import README, WANTED, measure, read_table
from onnx_check import LimitError, time_limit
from torch import nn

from accel_restore.models.architectures import model_names


def test_table_has_a_row_for_every_model_and_no_other():
    rows = read_table()
    assert list(rows) == list(model_names())
    assert all(list(row) == list(COLUMNS) for row in rows.values())


def test_at_least_34_architectures_train():
    rows = read_table()
    assert sum(row["trains"] == "yes" for row in rows.values()) >= 34
    assert all(rows[name]["trains"] == rows[name]["continues"] == "yes" for name in WANTED)


def test_every_no_has_a_reason():
    text = README.read_text(encoding="utf-8")
    reasons = re.findall(r"^- (`.+`); (.+?): \S", text, re.MULTILINE)
    for name, row in read_table().items():
        explained = {column for names, column in reasons if f"`{name}`" in names}
        assert {column for column, cell in row.items() if cell not in ("yes", "–")} - {"scales"} <= explained, name


@pytest.mark.parametrize("name", ["compact", "realplksr", "unet"])
def test_cells_are_as_measured(name, tmp_path):
    columns = ["scales", "any size", "gray", "gradients", "tiles"]
    cells, _ = measure(name, tmp_path, columns)
    assert cells == {column: read_table()[name][column] for column in columns}


def test_control_faults_of_a_network_are_reported(tmp_path, monkeypatch):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x)[..., : x.shape[-1] // 16 * 16] + x.mean()

    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.unused = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x)

    monkeypatch.setattr(architecture_checks, "build_model", lambda *_: Broken())
    cells, reasons = measure("broken", tmp_path, ["any size", "tiles"])
    assert set(cells.values()) == {"no"}
    assert "13x17 gives" in reasons["any size"] and "or more away" in reasons["tiles"]
    monkeypatch.setattr(architecture_checks, "build_model", lambda *_: Partial())
    cells, reasons = measure("partial", tmp_path, ["scales", "gradients"])
    assert cells["gradients"] == "2 frozen" and "unused.weight" in reasons["gradients"]


def test_control_networks_that_cannot_be_exported_are_reported(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")

    class Fixed(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).reshape(int(x.shape[0] / 1.0), 3, *x.shape[2:])

    class Sorting(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).sort(dim=0, stable=True)[0]

    cells = {}
    for network in (nn.Conv2d, Fixed, Sorting):
        monkeypatch.setattr(architecture_checks, "build_model", lambda *_, of=network: of(3, 3, 1))
        found, reasons = measure("net", tmp_path, ["ONNX"])
        cells[network] = found["ONNX"], reasons.get("ONNX", "")
    assert cells[nn.Conv2d] == ("yes", "")
    assert cells[Fixed][0] == "fixed size" and "Constraints violated" in cells[Fixed][1]
    assert cells[Sorting][0] == "no" and "aten.sort" in cells[Sorting][1]


def test_an_export_that_does_not_end_is_reported():
    with pytest.raises(LimitError, match="takes more than"), time_limit(1):
        while True:
            with suppress(Exception):  # as torch's export does
                sum(range(100))
