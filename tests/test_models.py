"""The contract of every model in MODELS: sizes, dtypes, gradients, determinism. A new one is tested by being added."""

import numpy as np
import pytest
import torch
from PIL import Image

from accel_restore.errors import UserError
from accel_restore.models import MODELS, build_model
from accel_restore.models.blocks import upscale

SMALL = {"unet": {"width": 8}, "dncnn": {"width": 8, "depth": 5}}


def build(name: str, channels: int = 3, scale: int = 1, **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(name, {**SMALL.get(name, {}), **arguments}, channels, scale)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (16, 16), (37, 50)])
@pytest.mark.parametrize("name", MODELS)
def test_any_size_is_kept(name, size, channels):
    images = torch.rand(2, channels, *size)
    output = build(name, channels)(images)
    assert output.shape == images.shape and output.dtype == images.dtype
    assert output.isfinite().all()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_super_resolution_begins_near_bicubic_enlarging(name, scale):
    images = torch.rand(2, 3, 9, 14)
    model = build(name, scale=scale)
    output = model(images)
    assert output.shape == (2, 3, 9 * scale, 14 * scale)
    assert 0 < (output - upscale(images, scale)).abs().mean() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.float32
    output.sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_bicubic_enlarging_is_that_of_matlab_and_pillow():
    image = torch.rand(1, 1, 11, 9)
    expected = Image.fromarray(image[0, 0].numpy()).resize((27, 33), Image.Resampling.BICUBIC)  # Keys' a = -0.5
    assert np.abs(upscale(image, 3)[0, 0].numpy() - np.asarray(expected)).max() < 1e-6
    assert upscale(image, 1) is image


class Keeps(torch.nn.Module):
    """A user's model that cannot enlarge."""


def test_a_model_that_cannot_enlarge_is_refused_for_super_resolution():
    assert isinstance(build_model("test_models:Keeps", {}, 3), Keeps)
    with pytest.raises(UserError, match=r"data\.scale: 2, but the model 'test_models:Keeps' cannot enlarge"):
        build_model("test_models:Keeps", {}, 3, 2)
    with pytest.raises(UserError, match=r"model\.scale: unknown key; set data\.scale"):
        build_model("unet", {"scale": 2}, 3)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name):
    model = build(name)
    images = torch.rand(2, 3, 24, 24)
    (model(images) - torch.rand_like(images)).abs().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_training_helps(name):
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


@pytest.mark.parametrize("name", MODELS)
def test_two_calls_and_two_builds_agree(name):
    images = torch.rand(1, 3, 24, 24)
    first, second = build(name).eval(), build(name).eval()
    assert torch.equal(first(images), first(images)) and torch.equal(first(images), second(images))


@pytest.mark.parametrize("name", MODELS)
def test_memory_formats_and_precisions_agree(name):
    model, images = build(name).eval(), torch.rand(1, 3, 24, 24)
    expected = model(images)
    last = build(name).eval().to(memory_format=torch.channels_last)
    assert torch.allclose(last(images.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5)
    double = build(name).eval().double()(images.double())
    assert double.dtype == torch.float64 and torch.allclose(double.float(), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    assert output.dtype == torch.float32  # the residual stream is not rounded
    assert torch.allclose(output, expected, atol=2e-2)


def test_unet_is_near_the_identity_at_first_and_scales_with_its_input():
    model, images = build("unet"), torch.rand(1, 3, 32, 32)
    output = model(images)
    assert 0 < (output - images).abs().mean() < 0.1
    assert torch.allclose(model(2 * images), 2 * output, atol=1e-5)  # bias-free


def test_dncnn_is_the_network_of_the_paper():
    model = build_model("dncnn", {"norm": "batch"}, 1)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.out_channels for m in convolutions] == [64] * 16 + [1]
    assert len(norms) == 15
    assert not [m for m in build_model("dncnn", {}, 1).modules() if isinstance(m, torch.nn.BatchNorm2d)]
