"""The script that measures speed on a GPU runs: with tiny networks, on the CPU."""

import json

import pytest
import speed_table

from accel_restore.config.load import config_from
from accel_restore.models import build_model


@pytest.mark.parametrize("name", speed_table.NETWORKS)
def test_each_configuration_is_valid_and_the_tiny_networks_can_be_built(name, tmp_path):
    config_from(speed_table.configuration(name, tmp_path, dry=False))
    tiny = config_from(speed_table.configuration(name, tmp_path, dry=True))
    build_model(tiny.model.name, tiny.model.arguments, 3, tiny.data.scale)


def test_a_row_of_the_table_has_what_was_measured(tmp_path):
    only = ["--only", "UNet-32, adversarial", "--compiled", "no"]
    assert speed_table.main([str(tmp_path), "--dry", "--seconds", "0.1", *only]) == 0
    head, _, row = (line.strip("| ").split(" | ") for line in (tmp_path / "speed.md").read_text().splitlines())
    record = json.loads((tmp_path / "unet-32-adversarial-no.json").read_text())
    cells = dict(zip(head, row, strict=True))
    assert cells["samples/s"] == f"{record['samples_per_second']:.1f}" and cells["compiled"] == "no"
    assert cells["trainer/bare"].startswith(f"{record['ratio']['median']:.3f} (")


def test_a_network_that_fails_leaves_no_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(speed_table.TINY, "UNet-32", {"width": "wide"})
    assert speed_table.main([str(tmp_path), "--dry", "--only", "UNet-32", "--compiled", "no"]) == 1
    assert "unet-32-no: CalledProcessError" in capsys.readouterr().out and not (tmp_path / "speed.md").exists()
