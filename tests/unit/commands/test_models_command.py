"""`accel-restore models`."""

import json

import pytest
import yaml

from accel_restore.cli import main
from accel_restore.commands import models
from accel_restore.config.load import config_from
from accel_restore.models import build_model
from accel_restore.models.catalogue import describe_model


def test_one_model_is_described_with_an_example_that_is_a_configuration(capsys, tmp_path):
    assert main(["models", "swinir", "--json", str(tmp_path / "m.json")]) == 0
    text = capsys.readouterr().out
    for part in ("Liang et al. 2021", "licence:     Apache-2.0", "  window_size: 8\n", "  swinir_light: {", "scales:"):
        assert part in text
    example = yaml.safe_load(text.split("example:\n")[1])
    config = config_from({"data": {**example["data"], "train": {"gt": "photos"}}, "model": example["model"]})
    assert config.model.name == "swinir"
    (stored,) = json.loads((tmp_path / "m.json").read_text())
    assert set(stored) == {"name", "source", "presets", "parameters", "scales", "arguments", "licence", "paper"}


def test_the_list_holds_ours_and_those_of_spandrel(capsys, tmp_path, monkeypatch):
    names = dict.fromkeys(["unet", "compact", "scunet", "upcunet3x"], "")
    monkeypatch.setattr(models, "model_names", lambda: names)
    assert main(["models", "--json", str(tmp_path / "m.json")]) == 0
    stored = json.loads((tmp_path / "m.json").read_text())
    assert [model["name"] for model in stored] == list(names)
    assert [model["scales"] for model in stored] == [[1, 2, 3, 4], [1, 2, 3, 4], [1], [3]]
    text = capsys.readouterr().out
    assert all(name in text for name in names) and "not here: 'lama' cannot be trained" in text


def test_the_count_of_parameters_is_that_of_the_built_model():
    for name in ("compact", "dncnn", "safmn"):
        built = sum(parameter.numel() for parameter in build_model(name, {}, 3, 1).parameters())
        assert describe_model(name)["parameters"] == built


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hatt"], "models: unknown choice 'hatt'; choose one of: unet, "),
        (["lama"], "models: 'lama' cannot be trained on pairs of images: it needs a mask"),
        (["hat", "--json", "missing/m.json"], "missing/m.json: the folder missing does not exist"),
    ],
)
def test_wrong_input_is_one_line_with_exit_code_2(arguments, message, capsys):
    assert main(["models", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
