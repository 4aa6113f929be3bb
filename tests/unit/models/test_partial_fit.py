"""Weights that fit a model in part: what is taken, what is listed, and when a file is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from weight_files import write

from accel_restore.config.load import config_from
from accel_restore.config.model import Model
from accel_restore.errors import UserError
from accel_restore.models import ImageSpec, build_model
from accel_restore.models.partial_fit import PartialFit, grouped
from accel_restore.models.pretrained import build_or_load_model, describe, initial_model, initial_model_and_fit

NAFNET = {"width": 8, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}


def file_of(path: Path, name: str, arguments: dict, channels: int = 3, scale: int = 1) -> Path:
    """Write weights, all different from those of a new model, as a run does."""
    net = build_model(name, arguments, channels, scale)
    generator = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator)
    metadata = {"model": json.dumps({"name": name, "arguments": arguments})}
    return write(path, net, channels, **metadata, data=json.dumps({"channels": channels, "scale": scale}))


def configured(file: Path, channels: int = 3, scale: int = 1, freeze: tuple[str, ...] = (), **model):
    return config_from(
        {
            "data": {"train": {"gt": "x"}, "channels": channels, "scale": scale, "patch_size": 16},
            "model": {"checkpoint": str(file), "partial": True, **model},
            "train": {"freeze": list(freeze)},
        }
    )


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("channels", "scale", "new"), [(3, 4, {"ending"}), (1, 2, {"intro", "ending"})])
@pytest.mark.parametrize("named", [{}, {"name": "nafnet", **NAFNET}])
def test_other_scales_and_channels_take_everything_but_the_first_and_last_layers(named, channels, scale, new, tmp_path):
    file = file_of(tmp_path / "best.safetensors", "nafnet", NAFNET, 3, 2)
    config = configured(file, channels, scale, **named)
    model, fit = initial_model_and_fit(config)
    assert fit is not None and {name.split(".")[0] for name in fit.other_shape} == new
    assert not fit.missing and not fit.unused
    source, fresh = (
        build_or_load_model(Model(checkpoint=str(file)), ImageSpec.of(3, 2)),
        build_model("nafnet", NAFNET, channels, scale),
    )
    for name, tensor in model.state_dict().items():
        same = name.split(".")[0] not in new
        assert tensor.shape == fresh.state_dict()[name].shape
        assert not same or torch.equal(tensor, source.state_dict()[name])
    assert all(map(torch.equal, model.state_dict().values(), initial_model(config).state_dict().values()))  # of the EMA
    assert describe(config.model, config.data.image_spec) == {"name": "nafnet", "arguments": NAFNET}


def test_more_blocks_keep_those_that_the_file_has(tmp_path):
    file = tmp_path / "net.pth"
    torch.save({"params_ema": build_model("dncnn", {"depth": 5, "width": 8}, 3).state_dict()}, file)
    _, fit = initial_model_and_fit(configured(file, name="dncnn", depth=6, width=8))
    assert fit is not None
    assert fit.missing == ("body.10.weight", "body.10.bias") and fit.other_shape == ("body.8.weight", "body.8.bias")
    assert fit.describe("net.pth") == (
        f"8 of 12 tensors, {fit.share} of parameters, from net.pth; new: body.10 (2), body.8 (2 of another shape)"
    )
    _, fit = initial_model_and_fit(configured(file, name="dncnn", depth=4, width=8))
    assert fit is not None and "; not in the model: body.8 (2)" in fit.describe("net.pth")
    record = fit.record("net.pth")
    assert json.loads(json.dumps(record)) == record and record["unused"] == {"body.8": 2}


def test_less_than_half_of_the_values_is_refused_with_the_number(tmp_path):
    file = tmp_path / "net.pth"
    torch.save(build_model("dncnn", {"depth": 5, "width": 8}, 3).state_dict(), file)
    with pytest.raises(
        UserError, match=rf"^model\.checkpoint: {file}: fits only 1?\d\.\d % of the parameters of .*half"
    ):
        initial_model(configured(file, name="dncnn", depth=5, width=9))

    class Two(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.one, self.two = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(size))

    for size, enough in ((4, True), (5, False)):  # values count, not tensors
        fit = PartialFit.of(Two(size), {"one": torch.ones(4)})
        assert fit.is_enough == enough and fit.values == 4 + size
    assert PartialFit((), (), (), (), 9999, 10000).share == "99.9 %"  # not all


def test_a_refused_file_suggests_partial_only_if_half_would_fit(tmp_path):
    file = file_of(tmp_path / "best.safetensors", "nafnet", NAFNET, 3, 2)
    with pytest.raises(UserError, match=r"data\.scale=2, but data\.scale is 4; .*, or set model\.partial=true .*\d %"):
        build_or_load_model(Model(checkpoint=str(file)), ImageSpec.of(3, 4))
    plain = tmp_path / "net.pth"
    torch.save(build_model("dncnn", {"depth": 5, "width": 8}, 3).state_dict(), plain)
    with pytest.raises(UserError, match=r"% of the parameters fit, which model\.partial=true takes; .* does not fit"):
        build_or_load_model(Model(checkpoint=str(plain), name="dncnn", depth=6, width=8), ImageSpec.of(3, 1))
    with pytest.raises(UserError, match=r"net\.pth: does not fit the model"):
        build_or_load_model(Model(checkpoint=str(plain), name="dncnn", depth=5, width=16), ImageSpec.of(3, 1))


def test_partial_needs_a_checkpoint_and_a_model(tmp_path):
    with pytest.raises(UserError, match=r"model\.partial: needs model\.checkpoint"):
        config_from({"data": {"train": {"gt": "x"}}, "model": {"name": "unet", "partial": True}})
    file = tmp_path / "net.pth"
    torch.save(build_model("dncnn", {"depth": 5, "width": 8}, 3).state_dict(), file)
    with pytest.raises(UserError, match=r"does not name its model; set model\.name"):
        initial_model(configured(file))


class WithBuffers(nn.Module):
    """Has what a constructor computes, and what training changes."""

    def __init__(self, shift: int = 0):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("index", torch.arange(4) + shift)
        self.register_buffer("used", torch.arange(4) > shift)
        self.register_buffer("mean", torch.full((4,), float(shift)))
        self.again = self.norm


def test_indices_stay_as_the_model_computes_them_and_statistics_are_taken():
    file, model = WithBuffers(2), WithBuffers(0)
    file.norm.running_mean += 3
    file.norm.num_batches_tracked += 7
    fit = PartialFit.of(model, file.state_dict())
    fit.fill(model, file.state_dict())
    assert torch.equal(model.index, torch.arange(4)) and torch.equal(model.used, torch.arange(4) > 0)
    assert torch.equal(model.norm.running_mean, file.norm.running_mean) and model.norm.num_batches_tracked == 7
    assert torch.equal(model.mean, file.mean)
    assert (fit.values_taken, fit.values) == (8, 8)  # tied parameters count once
    old = {name: tensor for name, tensor in file.state_dict().items() if "num_batches" not in name}
    assert not PartialFit.of(model, old).missing


def test_long_lists_are_grouped_by_the_first_parts_of_their_names():
    names = [f"layers.{i}.blocks.{j}.{kind}" for i in range(6) for j in range(30) for kind in ("weight", "bias")]
    assert grouped(names) == {"layers": 360}
    few = [*names[:62], "up.0.weight", "scale"]
    assert grouped(few) == {"layers.0.blocks": 60, "layers.1.blocks": 2, "up.0": 1, "scale": 1}
    assert grouped([*names, "up.0.weight", "up.2.weight"]) == {"layers": 360, "up": 2}
    many = PartialFit((), tuple(f"p{i}.weight" for i in range(9)), (), (), 1, 1).describe("x")
    assert many.endswith("new: p0 (1), p1 (1), p2 (1), p3 (1), p4 (1), 4 more")


def test_what_is_not_taken_is_trained_alone(tmp_path):
    file = file_of(tmp_path / "best.safetensors", "nafnet", NAFNET, 3, 2)
    assert trained(initial_model(configured(file, 3, 4, ("all_but_new",)))) == {"ending.weight", "ending.bias"}
    with pytest.raises(UserError, match=r"train\.freeze: all_but_new freeze all parameters"):
        initial_model(configured(file, 3, 2, ("all_but_new",)))
    with pytest.raises(UserError, match=r"all_but_new freezes what model\.partial takes"):
        initial_model(configured(file, 3, 2, ("all_but_new",), partial=False))


class HeadLast(nn.Module):
    """Names its last layer before its blocks, as some published networks do."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.ending, self.intro = nn.Conv2d(8, channels, 3, padding=1), nn.Conv2d(channels, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(Block(), Block()) for _ in range(2))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.intro(x)
        for block in self.blocks:
            y = block(y)
        return self.ending(self.norm(y))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


def of_preset(*presets: str, name: str = f"{__name__}:HeadLast", **arguments) -> nn.Module:
    data = {"train": {"gt": "x"}, "patch_size": 16}
    return initial_model(
        config_from({"data": data, "model": {"name": name, **arguments}, "train": {"freeze": list(presets)}})
    )


def test_presets_go_by_the_order_of_computation():
    tail = {"ending.weight", "ending.bias", "norm.weight", "norm.bias"}
    model = of_preset("all_but_tail")
    assert trained(model) == tail and model.norm.num_batches_tracked == 0  # the trial changes no statistics
    assert trained(of_preset("body")) == {*tail, "intro.weight", "intro.bias"}
    assert trained(of_preset("body", "intro.*", "*.bias")) == {"ending.weight", "norm.weight"}
    assert trained(of_preset("all_but_tail", name="nafnet", **NAFNET)) == {"ending.weight", "ending.bias"}


class Named(HeadLast):
    def __init__(self, channels: int = 3):
        super().__init__(channels)
        self.body = nn.Parameter(torch.zeros(1))


def test_a_preset_that_is_a_parameter_or_does_not_apply_is_refused():
    with pytest.raises(UserError, match=r"train\.freeze: 'body' is a preset and the name of a parameter; .*'\[b\]ody'"):
        of_preset("body", name=f"{__name__}:Named")
    assert "body" not in trained(of_preset("[b]ody", name=f"{__name__}:Named"))
    for preset in ("body", "all_but_tail"):
        with pytest.raises(UserError, match=rf"train\.freeze: {preset} needs repeated blocks, which DnCNN does not"):
            of_preset(preset, name="dncnn", depth=4, width=8)
