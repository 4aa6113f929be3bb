"""Models for any number of channels, and for other numbers in the input than in the output."""

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.models import ImageSpec, build_model
from accel_restore.models.load_weights import load_module
from accel_restore.models.pretrained import initial_model_and_fit
from accel_restore.models.weights_file import digest, read_metadata

SMALL = {
    "unet": {"width": 4, "multipliers": [1, 2], "blocks": 1},
    "dncnn": {"depth": 3, "width": 6},
    "nafnet": {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]},
    "restormer": {"width": 4, "blocks": [1, 1, 1, 1], "refinement_blocks": 1, "heads": [1, 1, 2, 2]},
}
FOREIGN = {"realplksr": {"dim": 16, "n_blocks": 2, "kernel_size": 5}, "scunet": {"config": [1] * 7}}
SPECS = [ImageSpec(31, 1, 31), ImageSpec(2, 2, 2), ImageSpec(3, 2, 4), ImageSpec(1, 1, 3), ImageSpec(3, 4, 1)]


def new(name: str, spec: ImageSpec) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, SMALL[name], *spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.input_channels}to{spec.channels}x{spec.scale}")
@pytest.mark.parametrize("name", SMALL)
def test_models_map_any_channels_and_train_every_parameter(name, spec):
    model = new(name, spec)
    for height, width in ((13, 18), (1, 1)):
        output = model(torch.rand(2, spec.input_channels, height, width))
        assert output.shape == (2, spec.channels, height * spec.scale, width * spec.scale)
    model(torch.rand(2, spec.input_channels, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_equal_channels_leave_names_and_bits_of_a_model_as_they_were(name):
    spec = ImageSpec.of(3, 2)
    plain, given = new(name, spec), new(name, ImageSpec.of(3, 2, 3))
    assert "skip.weight" not in plain.state_dict() and list(plain.state_dict()) == list(given.state_dict())
    assert "skip.weight" in new(name, ImageSpec(3, 2, 4)).state_dict()
    image = torch.rand(1, 3, 9, 11)
    assert plain(image).equal(given(image))
    torch.manual_seed(0)
    assert build_model(name, SMALL[name], 3, 2)(image).equal(plain(image))


@pytest.mark.parametrize("name", ["unet", "dncnn"])
def test_a_new_network_starts_near_the_mean_of_the_input_channels(name):
    image = torch.tensor([0.2, 0.9, 0.5, 0.8]).view(1, 4, 1, 1).expand(-1, -1, 16, 16)
    output = new(name, ImageSpec(3, 2, 4))(image)
    assert (output - 0.6).abs().mean() < 0.25  # about 0.6 without the skip connection


@pytest.mark.parametrize("name", SMALL)
def test_the_skip_connection_keeps_the_precision_of_the_input_under_autocast(name):
    model, image = new(name, ImageSpec(3, 1, 4)), torch.rand(1, 4, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(image)
        skipped = model.skip(image)
    assert output.dtype is torch.float32
    assert (skipped - image.mean(1, keepdim=True)).abs().max() < 1e-6  # bfloat16 would be off by 1e-3


class OneNumber(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)


class NoNumber(nn.Conv2d):
    def __init__(self):
        super().__init__(4, 3, 3, padding=1)


class TwoNumbers(nn.Conv2d):
    def __init__(self, channels, input_channels):
        super().__init__(input_channels, channels, 3, padding=1)


def test_a_class_of_the_users_own_gets_the_channels_that_it_has_parameters_for():
    model = build_model(f"{__name__}:TwoNumbers", {}, 3, 1, 4)
    assert (model.in_channels, model.out_channels) == (4, 3)
    assert build_model(f"{__name__}:NoNumber", {}, 3, 1, 4).in_channels == 4
    with pytest.raises(
        UserError, match=r"^data.input_channels: 4, but the model '.*OneNumber' has no parameter input_"
    ):
        build_model(f"{__name__}:OneNumber", {}, 3, 1, 4)
    with pytest.raises(UserError, match=r"^model.input_channels: unknown key; set data.input_channels"):
        build_model(f"{__name__}:TwoNumbers", {"input_channels": 4}, 3, 1, 4)


def test_architectures_of_spandrel_take_other_channels_by_their_own_arguments():
    span = {"feature_channels": 8}
    for spec in (ImageSpec(31, 2, 31), ImageSpec(3, 2, 4), ImageSpec(31, 1, 3)):
        model = build_model("span", span, *spec).eval()
        assert model(torch.rand(1, spec.input_channels, 9, 7)).shape == (
            1,
            spec.channels,
            9 * spec.scale,
            7 * spec.scale,
        )


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("realplksr", ImageSpec.of(31), "data.channels: 31, but the model 'realplksr' has only 3"),
        (
            "realplksr",
            ImageSpec(3, 2, 4),
            "data.input_channels: 4, but the model 'realplksr' can have only 3, as many as",
        ),
        ("scunet", ImageSpec(3, 1, 4), "data.input_channels: 4, but the model 'scunet' can have only 3, as"),
    ],
)
def test_an_architecture_without_such_channels_names_those_that_it_has(name, spec, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        build_model(name, FOREIGN[name], *spec)


def write(path: Path, model: nn.Module, name: str, data: dict) -> Path:
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    texts = {"model": {"name": name, "arguments": SMALL[name]}, "data": data}
    metadata = {key: json.dumps(value) for key, value in texts.items()}
    safetensors.torch.save_file(weights, path, {**metadata, "sha256": digest(weights)})
    return path


def test_weights_with_other_input_channels_are_read_back(tmp_path):
    model = new("nafnet", ImageSpec(3, 2, 4)).eval()
    data = {"channels": 3, "scale": 2, "input_channels": 4}
    loaded, info = load_module(write(tmp_path / "best.safetensors", model, "nafnet", data))
    image = torch.rand(1, 4, 8, 8)
    assert loaded(image).equal(model(image)) and info["data"] == data


@pytest.mark.parametrize(
    ("data", "is_valid"),
    [
        ({"channels": 31}, True),
        ({"channels": 3, "scale": 2, "input_channels": 4}, True),
        ({"channels": 0}, False),
        ({"channels": 3, "input_channels": 0}, False),
        ({"channels": 3, "input_channels": 10**9}, False),
        ({"channels": 3.0}, False),
        ({"channels": True}, False),
    ],
)
def test_metadata_with_impossible_channels_are_refused(data, is_valid):
    stored = {"model": json.dumps({"name": "unet", "arguments": {}}), "data": json.dumps(data), "sha256": ""}
    if is_valid:
        assert read_metadata(stored)["data"] == data
    else:
        with pytest.raises(UserError, match="is not a model of accel_restore"):
            read_metadata(stored)


@pytest.mark.parametrize(
    ("channels", "input_channels", "new_tensors"),
    [(31, None, {"intro.weight", "ending.weight", "ending.bias"}), (3, 4, {"intro.weight", "skip.weight"})],
)
def test_fine_tuning_in_part_takes_everything_but_the_layers_at_the_images(
    tmp_path, monkeypatch, channels, input_channels, new_tensors
):
    monkeypatch.setitem(SMALL["nafnet"], "width", 16)
    source = new("nafnet", ImageSpec.of(3))
    file = write(tmp_path / "best.safetensors", source, "nafnet", {"channels": 3, "scale": 1})
    images = {"channels": channels, "input_channels": input_channels, "patch_size": 16}
    section = {"train": {"input": "in", "gt": "gt"}, **images}
    with pytest.raises(UserError, match=r"is a model for data.(input_)?channels=3, but .*model.partial=true"):
        initial_model_and_fit(config_from({"data": section, "model": {"checkpoint": str(file)}}))
    config = config_from({"data": section, "model": {"checkpoint": str(file), "partial": True}})
    model, fit = initial_model_and_fit(config)
    assert {*fit.missing, *fit.other_shape} == new_tensors
    state = model.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in source.state_dict().items() if name not in new_tensors)
