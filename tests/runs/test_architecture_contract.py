"""Architectures are measured again and compared with the table in accel_restore/models/README.md."""

import pytest
from architecture_checks import COLUMNS
from contract import WANTED, measure, names, read_table

SLOW = {"uformer", "scunet", "swinir", "drunet", "rcan", "nafnet", "drct", "atd", "dat", "hat"}  # most of the time
SELDOM = ["bf16", "ONNX"]  # slow: bf16 on CPUs without instructions for it, and ONNX with networks of many blocks
OFTEN = [name for name in WANTED if name not in SLOW]
OTHERS = [pytest.param(name, marks=pytest.mark.sweep) for name in names() if name not in OFTEN]


@pytest.mark.parametrize("name", [*OFTEN, *OTHERS])
def test_an_architecture_can_do_what_the_table_says(name, tmp_path):
    columns = [column for column in COLUMNS if column not in SELDOM]
    cells, reasons = measure(name, tmp_path, columns)
    assert cells == {column: read_table()[name][column] for column in columns}, reasons


@pytest.mark.parametrize(
    "name", ["compact", *(pytest.param(n, marks=pytest.mark.sweep) for n in names() if n != "compact")]
)
def test_an_architecture_trains_in_bf16_and_is_exported_as_the_table_says(name, tmp_path):
    cells, reasons = measure(name, tmp_path, ["scales", *SELDOM])
    assert cells == {column: read_table()[name][column] for column in cells}, reasons
