"""The contract of every model in MODELS: sizes, dtypes, gradients, determinism. New models are covered by it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from accel_restore.checkpoint.state_dict import serialize
from accel_restore.errors import UserError
from accel_restore.inference import restorer
from accel_restore.models import build_model, weights_file
from accel_restore.models.blocks import upscale
from accel_restore.models.compile import compile_blocks
from accel_restore.models.nafnet import NAFBlock
from accel_restore.models.restormer import TransformerBlock
from accel_restore.models.unet import Block
from accel_restore.registry import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "unet": {"width": 8},
    "dncnn": {"width": 8, "depth": 5},
    "nafnet": {"width": 8, "encoder_blocks": [1, 2], "middle_blocks": 1, "decoder_blocks": [1, 1]},
    "restormer": {"width": 8, "blocks": [1, 1, 1, 2], "refinement_blocks": 1},
}


class Keeps(torch.nn.Module):
    """A user-defined model that cannot enlarge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + self.layer(input).to(input.dtype)


NAMES = [*MODELS, "test_models:Keeps"]


def build(name: str, channels: int = 3, scale: int = 1, **arguments) -> torch.nn.Module:
    """Return a new model, as training starts with it."""
    torch.manual_seed(0)
    return build_model(name, {**SMALL.get(name, {}), **arguments}, channels, scale)


def awake(name: str, channels: int = 3, scale: int = 1, **arguments) -> torch.nn.Module:
    """Return the model without zero parameters; a new NAFNet multiplies all its branches by zero."""
    model = build(name, channels, scale, **arguments).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (16, 16), (37, 50)])
@pytest.mark.parametrize("name", NAMES)
def test_images_of_any_size_keep_their_size(name, size, channels):
    images = torch.rand(2, channels, *size)
    output = awake(name, channels)(images)
    assert output.shape == images.shape and output.dtype == images.dtype
    assert output.isfinite().all()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_a_new_super_resolution_model_is_close_to_bicubic_enlarging(name, scale):
    images = torch.rand(2, 3, 9, 14)
    model = build(name, scale=scale)
    output = model(images)
    assert output.shape == (2, 3, 9 * scale, 14 * scale)
    assert 0 < (output - upscale(images, scale)).abs().mean() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.float32


def test_bicubic_enlarging_equals_pillow():
    image = torch.rand(1, 1, 11, 9)
    expected = Image.fromarray(image[0, 0].numpy()).resize((27, 33), Image.Resampling.BICUBIC)  # Keys' a = -0.5
    assert np.abs(upscale(image, 3)[0, 0].numpy() - np.asarray(expected)).max() < 1e-6
    assert upscale(image, 1) is image


def test_a_model_without_scale_is_rejected_for_super_resolution():
    assert isinstance(build_model("test_models:Keeps", {}, 3), Keeps)
    with pytest.raises(UserError, match=r"data\.scale: 2, but the model 'test_models:Keeps' cannot enlarge"):
        build_model("test_models:Keeps", {}, 3, 2)
    with pytest.raises(UserError, match=r"model\.scale: unknown key; set data\.scale"):
        build_model("unet", {"scale": 2}, 3)


def without_gradient(model: torch.nn.Module, scale: int) -> set[str]:
    """Return the names of the parameters whose gradient is zero everywhere after one backward pass."""
    images = torch.rand(2, 3, 24 // scale, 24 // scale)
    model.zero_grad()
    (model(images) - torch.rand(2, 3, 24, 24)).abs().mean().backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    return {key for key, gradient in gradients.items() if not gradient.any()}


@pytest.mark.parametrize(("name", "scale"), [(name, 1) for name in NAMES] + [(name, 2) for name in MODELS])
def test_gradients_reach_every_parameter(name, scale):
    model = build(name, scale=scale)
    if (
        name == "nafnet"
    ):  # as published, the factors of the branches start at zero, so the branches have gradients from step 2 on
        parts = {key: key.split(".") for key, _ in model.named_parameters()}
        levels = {"encoders", "middle_blks", "decoders"}
        branches = {key for key, part in parts.items() if part[0] in levels and part[-1] not in ("beta", "gamma")}
        assert without_gradient(model, scale) == branches
        torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert not without_gradient(model, scale)


@pytest.mark.parametrize("name", NAMES)
def test_training_reduces_the_loss(name):
    model, images = build(name), torch.rand(4, 3, 24, 24)
    noisy = images + 0.1 * torch.randn_like(images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(noisy) - images).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_calls_and_builds_are_deterministic(name):
    images = torch.rand(1, 3, 24, 24)
    first, second = awake(name), awake(name)
    assert torch.equal(first(images), first(images)) and torch.equal(first(images), second(images))


@pytest.mark.parametrize("name", NAMES)
def test_output_is_independent_of_memory_format_and_precision(name):
    model, images = awake(name), torch.rand(1, 3, 24, 24)
    expected = model(images)
    last = awake(name).to(memory_format=torch.channels_last)
    assert torch.allclose(last(images.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5)
    double = awake(name).double()(images.double())
    assert double.dtype == torch.float64 and torch.allclose(double.float(), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    assert output.dtype == torch.float32
    assert torch.allclose(output, expected, atol=2e-2)


@pytest.mark.parametrize(("name", "block"), [("unet", Block), ("nafnet", NAFBlock), ("restormer", TransformerBlock)])
def test_the_residual_stream_is_not_rounded_under_autocast(name, block):
    model, stream, inside = awake(name), set(), set()
    for module in model.modules():
        if isinstance(module, block):
            module.register_forward_hook(lambda _, given, made: stream.update({given[0].dtype, made.dtype}))
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, given, made: inside.add(made.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(1, 3, 24, 24))
    assert stream == {torch.float32} and inside == {torch.bfloat16}


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_loaded_from_its_file_gives_the_same_output(name, scale, tmp_path):
    model, images = awake(name, scale=scale), torch.rand(1, 3, 17, 20)
    described = {"name": name, "arguments": SMALL[name]}, {"channels": 3, "scale": scale}
    metadata = dict(zip(("model", "data"), map(json.dumps, described), strict=True))
    path = tmp_path / "best.safetensors"
    path.write_bytes(serialize(model.state_dict(), {"sha256": weights_file.digest(model.state_dict()), **metadata}))
    assert torch.equal(restorer.load(path).model(images), model(images))


def test_a_new_unet_is_close_to_the_identity_and_scales_with_its_input():
    model, images = build("unet"), torch.rand(1, 3, 32, 32)
    output = model(images)
    assert 0 < (output - images).abs().mean() < 0.1
    assert torch.allclose(model(2 * images), 2 * output, atol=1e-5)  # bias-free


def test_biases_of_a_unet_start_at_zero():
    plain, biased = build("unet"), build("unet", bias=True)
    added = [name for name in biased.state_dict() if name not in plain.state_dict()]
    layers = [m for m in biased.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(added) == len(layers) and all(name.endswith("bias") for name in added)
    assert not any(biased.state_dict()[name].any() for name in added)
    woken, images = awake("unet", bias=True), torch.rand(1, 3, 32, 32)
    assert not torch.allclose(
        woken(2 * images), 2 * woken(images), atol=1e-5
    )  # with biases the output depends on the brightness


def test_unet_uses_the_configured_activation():
    plain, smooth, images = awake("unet"), awake("unet", activation="gelu"), torch.rand(1, 3, 32, 32)
    smooth.load_state_dict(plain.state_dict())
    blocks = [module.body for module in smooth.modules() if isinstance(module, Block)]
    assert blocks and all(isinstance(body[1], torch.nn.GELU) for body in blocks)
    assert not torch.allclose(smooth(images), plain(images), atol=1e-4)
    assert not torch.allclose(smooth(2 * images), 2 * smooth(images), atol=1e-4)  # a gelu is not homogeneous


def test_dncnn_is_the_network_of_the_paper():
    model = build_model("dncnn", {"norm": "batch"}, 1)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.out_channels for m in convolutions] == [64] * 16 + [1]
    assert len(norms) == 15
    assert not [m for m in build_model("dncnn", {}, 1).modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nafnet", {"encoder_blocks": []}, r"encoder_blocks=\[\] is not allowed: it must be a list of 1 to 8"),
        ("nafnet", {"encoder_blocks": [1] * 9}, r"encoder_blocks=.* a list of 1 to 8"),
        ("nafnet", {"middle_blocks": 0}, "middle_blocks=0 is not allowed"),
        (
            "nafnet",
            {"decoder_blocks": [2]},
            r"decoder_blocks=\[2\] is not allowed: it must be a list of 2 whole numbers",
        ),
        ("unet", {"bias": "no"}, "bias='no' is not allowed: it must be true or false"),
        ("unet", {"activation": "silu"}, "activation='silu' is not allowed: it must be 'relu' or 'gelu'"),
        ("unet", {"activation": ["gelu"]}, r"activation=\['gelu'\] is not allowed: it must be 'relu' or 'gelu'"),
        ("restormer", {"width": 7}, "width=7 is not allowed: it must be an even"),
        ("restormer", {"blocks": [4, 6, 6]}, r"blocks=\[4, 6, 6\] is not allowed: it must be a list of 4"),
        ("restormer", {"refinement_blocks": True}, "refinement_blocks=True is not allowed"),
        ("restormer", {"heads": [1, 2, 4]}, r"heads=.* a list of 4"),
        ("restormer", {"heads": [1, 2, 4, 7]}, r"divisors of the features of the levels, \[8, 16, 32, 64\]"),
        ("restormer", {"ffn_expansion": float("inf")}, "ffn_expansion=inf is not allowed"),
        ("restormer", {"bias": 1}, "bias=1 is not allowed: it must be true or false"),
        ("restormer", {"layer_norm": "rms"}, "layer_norm='rms' is not allowed: it must be 'with_bias' or 'bias_free'"),
    ],
)
def test_arguments_out_of_range_are_rejected_with_their_name(name, arguments, message):
    with pytest.raises(UserError, match=message):
        build(name, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_compiles_to_a_single_graph(name):
    model, images = awake(name), torch.rand(1, 3, 16, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # raises where the graph would break
    assert torch.equal(compiled(images), model(images))


def test_blocks_of_one_width_and_size_share_compiled_code(monkeypatch):
    from torch._dynamo.testing import CompileCounter

    counter, in_place = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **given: in_place(self, backend=counter, **given))
    torch._dynamo.reset()
    for _ in range(2):
        model = build("unet", width=4, multipliers=[1, 2], blocks=2)
        compile_blocks(model, True)
        for side in (16, 24, 16, 32):
            model(torch.rand(2, 3, side, side))
    assert counter.frame_count == 2 * 3  # levels times image sizes: no dynamic shapes


@pytest.fixture(scope="module")
def inductor():
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.rand(3))
    except Exception as error:  # no C++ compiler, Python headers or room for the cache
        pytest.skip(f"torch.compile cannot compile even x.sin() + 1 here: {error}")


# A representative part of each: every kernel takes the C++ compiler a second or more.
PARTS = {"unet": "encoder.0.0", "dncnn": "body", "nafnet": "encoders.0", "restormer": "encoder_level1"}


@pytest.mark.sweep  # more than a minute; test_entry.py compiles the model that it trains
@pytest.mark.parametrize("name", MODELS)
def test_compiled_parts_give_the_same_output(name, inductor):
    model, images = awake(name), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
        model.get_submodule(PARTS.get(name, "")).compile()  # in place, as training does it
        assert torch.allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "count"), [("unet", 14), ("dncnn", 1), ("nafnet", 36), ("restormer", 44)])
def test_repeated_blocks_or_else_the_whole_model_are_compiled_in_place(name, count):
    model = build_model(name, {}, 3)
    names = list(model.state_dict())
    compile_blocks(model, True)
    assert sum(module._compiled_call_impl is not None for module in model.modules()) == count
    assert list(model.state_dict()) == names


@pytest.mark.sweep  # minutes
@pytest.mark.parametrize("name", MODELS)
def test_compiled_models_give_the_same_output_and_gradients(name, inductor):
    model, images = awake(name), torch.rand(1, 3, 16, 16)
    runs = []
    for _ in range(2):
        model.zero_grad()
        output = model(images)
        output.square().mean().backward()
        runs.append([output.detach(), *(parameter.grad for parameter in model.parameters())])
        compile_blocks(model, True)
    for eager, compiled in zip(*runs, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-3, atol=1e-5)
