"""Degradations of images with any number of channels, and those that make an input with other channels than gt."""

import numpy as np
import pytest
import torch
from torch import Tensor

from accel_restore.config.load import config_from
from accel_restore.data.build import degradations_of
from accel_restore.data.degradations.pipeline import build_degradation
from accel_restore.errors import UserError
from accel_restore.registry import DEGRADATIONS
from accel_restore.utils.rng import KeyedRandom

SEEDS = np.arange(2).astype(np.uint64)
NEED_COLOURS = {"jpeg": {}, "poisson_noise": {"gray": 0.01}}
ARGUMENTS = {name: {"of": [{"name": "quantize"}]} for name in ("sequence", "random_order", "choice")}
ARGUMENTS["resize"] = {"scale": 1.0}


def images(channels: int, side: int = 32) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [2, 4, 31])
@pytest.mark.parametrize("name", sorted(DEGRADATIONS.keys() - {"jpeg"}))
def test_degradations_keep_any_number_of_channels(name, channels):
    gt = images(channels)
    degraded = build_degradation([(name, ARGUMENTS.get(name, {}))], 1, channels)(gt, SEEDS)
    assert degraded.shape == gt.shape and degraded.isfinite().all()


@pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur", "sinc", "downscale", "quantize", "low_light"])
def test_each_channel_is_degraded_as_a_gray_image(name):
    gt = images(5)
    scale = 2 if name == "downscale" else 1
    degraded = build_degradation([(name, {})], scale, 5)(gt, SEEDS)
    alone = build_degradation([(name, {})], scale, 1)(gt[:, 3:4], SEEDS)
    assert torch.allclose(degraded[:, 3:4], alone, atol=1e-6)


@pytest.mark.parametrize(("name", "arguments"), NEED_COLOURS.items())
def test_a_degradation_of_colours_refuses_other_channels_with_its_name(name, arguments):
    message = f"^data.degradation.1: {name} fails with these arguments: needs images of 1 or 3 channels, not 31$"
    with pytest.raises(UserError, match=message):
        build_degradation([("quantize", {}), (name, arguments)], 1, 31)
    for channels in (1, 3):
        build_degradation([(name, arguments)], 1, channels)


def packed_bayer(image: Tensor, random: KeyedRandom) -> Tensor:
    """Return R, G, G and B of an RGGB mosaic, at half the size."""
    return torch.stack([image[0, ::2, ::2], image[1, ::2, 1::2], image[1, 1::2, ::2], image[2, 1::2, 1::2]])


def test_a_function_of_the_users_own_makes_an_input_with_other_channels():
    steps = [("test_channel_degradations:packed_bayer", {}), ("gaussian_noise", {"sigma": 0})]
    gt = images(3)
    degraded = build_degradation(steps, 2, 3, 4)(gt, SEEDS)
    assert degraded.shape == (2, 4, 16, 16) and degraded[:, 3].equal(gt[:, 2, 1::2, 1::2])
    with pytest.raises(UserError, match=r"jpeg fails with these arguments: needs images of 1 or 3 channels, not 4"):
        build_degradation([*steps, ("jpeg", {})], 2, 3, 4)


@pytest.mark.parametrize(
    ("steps", "numbers", "message"),
    [
        ([("downscale", {})], (2, 3, 4), "makes an input of 3 channels from a gt of 3, but the input must have 4"),
        ([("test_channel_degradations:packed_bayer", {})], (2, 3), "makes an input of 4 channels from a gt of 3, but"),
    ],
)
def test_an_input_with_wrong_channels_is_refused(steps, numbers, message):
    with pytest.raises(UserError, match=f"^data.degradation: {message}"):
        build_degradation(steps, *numbers)
    with pytest.raises(UserError, match=f"^data.val.a.degradation: {message}"):
        build_degradation(steps, *numbers, key="data.val.a.degradation")


def test_a_configuration_with_other_input_channels_needs_files_or_a_function_of_the_users_own():
    data = {"channels": 3, "input_channels": 4, "scale": 2, "patch_size": 16}
    with pytest.raises(UserError, match=r"read it from files \(data.train.input\), or name a function of your own"):
        degradations_of(config_from({"data": {**data, "train": {"gt": "gt"}}}).data)
    degradations_of(config_from({"data": {**data, "train": {"input": "input", "gt": "gt"}}}).data)
