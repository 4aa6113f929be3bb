"""`model.preset`: it is replaced by its arguments at once, so neither a run nor its files depend on the table."""

import subprocess
import sys

import pytest
import yaml
from configurations import LEAST, problems
from runs import make_photos, run_folder, small_config

from accel_restore import fit, load
from accel_restore.config.load import config_from
from accel_restore.models import presets

TINY = {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}


def model_of(**model):
    return config_from({**LEAST, "model": model}).model


def test_a_preset_becomes_its_arguments():
    assert model_of(name="nafnet", preset="nafnet_64") == model_of(
        name="nafnet", width=64, encoder_blocks=[1, 1, 1, 28], middle_blocks=1, decoder_blocks=[1, 1, 1, 1]
    )
    assert model_of(name="nafnet").arguments == {}  # without a preset, the defaults of the class


def test_keys_next_to_a_preset_replace_those_of_the_preset():
    assert model_of(name="nafnet", preset="nafnet_64", width=16).arguments["width"] == 16
    tree = {**LEAST, "model": {"name": "nafnet", "preset": "nafnet_64"}}
    assert config_from(tree, ["model.preset=nafnet_32"]).model.arguments["width"] == 32
    assert config_from(tree, ["model.preset=nafnet_32", "model.width=8"]).model.arguments["width"] == 8
    assert config_from(tree, ["model.name=unet"]).model.arguments == {}  # another model has other presets


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"name": "nafnet", "preset": "nafnet_23"},
            "model.preset: unknown choice 'nafnet_23'; choose one of: nafnet_32, nafnet_64, nafnet_sidd_32, "
            "nafnet_sidd_64; did you mean 'nafnet_32'?",
        ),
        (
            {"preset": "nafnet_32"},
            "model.preset: the model 'unet' has no presets; 'nafnet_32' is one of nafnet's: set model.name=nafnet",
        ),
        (
            {"checkpoint": "a.pth", "preset": "best"},
            "model.preset: the model of a checkpoint has no presets; give its arguments instead",
        ),
    ],
    ids=["misspelt", "of another model", "checkpoint"],
)
def test_an_unknown_preset_is_refused_with_what_to_do(model, said):
    assert problems(model=model) == [said]


def test_an_unknown_preset_is_refused_before_torch_is_imported():
    code = (
        "import sys; from accel_restore.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code if 'torch' not in sys.modules else 9)"
    )
    arguments = ["train", "data.train.gt=x", "model={name: nafnet, preset: large}"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ended.returncode == 2 and "model.preset: unknown choice 'large'" in ended.stderr


def test_a_class_of_ones_own_may_have_an_argument_preset():
    model = model_of(name="mypackage.nets:MyNet", preset="deep", width=3)
    assert model.arguments == {"preset": "deep", "width": 3}
    assert config_from({**LEAST, "model": model.model_dump()}).model == model


def test_runs_and_weights_do_not_depend_on_the_table(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "train", 4), make_photos(tmp_path / "val", 1, seed=1)
    config = small_config(*photos, tmp_path / "runs", train={"epochs": 1})
    config["scheduler"] = {"name": "constant"}
    with monkeypatch.context() as patch:
        patch.setitem(presets.FAMILIES, "nafnet", presets.Family("2022", {"nafnet_tiny": TINY}))
        fit({**config, "model": {"name": "nafnet", "preset": "nafnet_tiny", "width": 6}}, cpu=True)
    restorer = load(run_folder(config) / "best.safetensors")
    assert restorer.metadata["model"] == {"name": "nafnet", "arguments": {**TINY, "width": 6}}
    resolved = yaml.safe_load((run_folder(config) / "config.yaml").read_text())
    unset = {"preset": None, "checkpoint": None, "partial": False}
    assert resolved["model"] == {"name": "nafnet", **unset, **TINY, "width": 6}
    fit(run_folder(config) / "config.yaml", "train.epochs=2", cpu=True)  # continues with the same arguments
    fit({**config, "model": {"name": "nafnet", **TINY, "width": 6}}, "train.epochs=3", cpu=True)
