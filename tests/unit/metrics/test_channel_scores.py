"""Scores of images with any number of channels, of inputs with other channels than gt, and of float pixels."""

from dataclasses import replace

import numpy as np
import pytest
import scipy
import torch
from photographs import photograph

from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.losses import build_loss
from accel_restore.metrics.protocol import Protocol, score_image
from accel_restore.models import ImageSpec

FLOAT = np.dtype(np.float32)


def cube(channels: int, seed: int = 0) -> np.ndarray:
    """Return floats (H, W, C): mixtures of the colours of a photograph."""
    photo = photograph("astronaut")[40:80, 60:104] / 255
    mixed = photo @ np.random.default_rng(1).random((3, channels)) / 3
    return mixed + np.random.default_rng(seed).normal(0, 0.05, mixed.shape)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()


def numpy_ssim(output: np.ndarray, gt: np.ndarray) -> float:
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / 4.5)
    window /= window.sum()
    values = []
    for x, y in zip(np.moveaxis(output, 2, 0), np.moveaxis(gt, 2, 0), strict=True):
        mx, my, xx, yy, xy = (scipy.signal.correlate2d(i, window, "valid") for i in (x, y, x * x, y * y, x * y))
        top = (2 * mx * my + 1e-4) * (2 * (xy - mx * my) + 9e-4)
        values.append((top / ((mx**2 + my**2 + 1e-4) * (xx - mx**2 + yy - my**2 + 9e-4))).mean())
    return float(np.mean(values))


def numpy_psnr(output: np.ndarray, gt: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(output - gt).mean()))


@pytest.mark.parametrize("channels", [2, 4, 31])
def test_psnr_and_ssim_of_any_channels_are_those_of_numpy(channels):
    gt, output = cube(channels), cube(channels, seed=1)
    scores = Protocol(channels=channels).scores
    psnr, ssim = (float(scores[name](tensor(output), tensor(gt))) for name in ("psnr", "ssim"))
    gt, output = (image.astype(np.float32).astype(float).clip(0, 1) for image in (gt, output))
    assert psnr == pytest.approx(numpy_psnr(output, gt), abs=1e-6)
    assert ssim == pytest.approx(numpy_ssim(output, gt), abs=1e-9)
    assert Protocol(channels=channels).describe()["channels"] == f"all {channels} channels"


def test_float_pixels_are_scored_without_clamping():
    gt, output = 2.5 * cube(4) - 0.3, 2.5 * cube(4, seed=1) - 0.3
    protocol = Protocol(channels=4).for_pixels(FLOAT)
    found = {name: float(score(tensor(output), tensor(gt))) for name, score in protocol.scores.items()}
    gt, output = (image.astype(np.float32).astype(float) for image in (gt, output))
    assert found["psnr"] == pytest.approx(numpy_psnr(output, gt), abs=1e-6)
    assert found["ssim"] == pytest.approx(numpy_ssim(output, gt), abs=1e-9)
    clamped = float(Protocol(channels=4).scores["psnr"](tensor(output), tensor(gt)))
    assert clamped > found["psnr"] + 0.1  # the control: errors outside of [0, 1] are ignored


def test_the_protocol_describes_float_pixels_only_where_there_are_some():
    plain, described = Protocol().describe(), Protocol().for_pixels(FLOAT, (-0.3, 2.2)).describe()
    assert plain["range"].startswith("clamped to [0, 1]") and plain.keys() == described.keys()
    assert described["range"] == "float pixels, data.range [-0.3, 2.2] as [0, 1], not clamped"
    assert Protocol().for_pixels(np.dtype(np.uint16)) == Protocol()


def test_rounding_float_pixels_to_8_bits_is_refused():
    with pytest.raises(UserError, match=r"^validation.quantize: rounds to 8 bits, but gt has float pixels"):
        Protocol(quantize=True).for_pixels(FLOAT)
    assert Protocol(quantize=True).for_pixels(np.dtype(np.uint8)).quantize


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_metrics_of_colours_refuse_other_channels_with_their_key(name):
    message = (
        f"^validation.metrics: {name} needs images of 1 or 3 channels, but gt has 31 \\(data.channels\\); remove it"
    )
    with pytest.raises(UserError, match=message):
        _ = Protocol(channels=31, metrics=("psnr", name)).scores
    for channels in (1, 3):
        assert name in Protocol(channels=channels, metrics=("psnr", name)).built


@pytest.mark.parametrize("name", ["lpips", "perceptual"])
def test_losses_of_colours_refuse_other_channels_with_their_key(name):
    with pytest.raises(UserError, match=f"^loss.{name}: needs images of 1 or 3 channels, but gt has 31 .*; remove it"):
        build_loss({"l1": 1.0, name: {"weight": 0.1}}, 31)


@pytest.mark.parametrize("terms", [["l1", "mse", "charbonnier", "psnr"], ["ssim", "fft", "gradient", "edge"]])
def test_losses_of_pixels_accept_any_channels(terms):
    values = build_loss(dict.fromkeys(terms, 1.0), 31)(torch.rand(2, 31, 16, 16), torch.rand(2, 31, 16, 16))
    assert values.shape == (2,) and values.isfinite().all()


@pytest.mark.parametrize(
    "sections",
    [
        {"validation": {"y_channel": True}, "data": {"channels": 31}},
        {"validation": {"y_channel": True}, "data": {"channels": 1}},
        {"data": {"channels": 4, "val": {"five": {"gt": "five", "y_channel": True}}}},
    ],
)
def test_the_luma_of_other_channels_than_three_is_refused(sections):
    key = "validation" if "validation" in sections else "data.val.five"
    with pytest.raises(UserError, match=f"{key}.y_channel: needs colour images"):
        config_from({**sections, "data": {"train": {"gt": "photos"}, **sections["data"]}})


@pytest.mark.parametrize("input_channels", [4, 3])
def test_an_input_with_other_channels_than_gt_has_no_scores(input_channels):
    protocol = Protocol.of(
        config_from({"data": {"train": {"input": "in", "gt": "gt"}, "input_channels": input_channels}})
    )
    assert protocol.scores_input == (input_channels == 3)
    output, gt = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    image = [torch.rand(1, input_channels, 16, 16), output, gt]
    row = score_image(0, image, build_loss({"l1": 1.0}), (), protocol.scores, {})
    assert len(row) == (6 if input_channels == 3 else 4)
    assert float(row[1]) == pytest.approx(float(protocol.scores["psnr"](output, gt)))


def test_a_kept_score_keeps_no_other_values():
    image, kept = list(torch.rand(3, 1, 3, 16, 16)), {}

    def largest(output, gt):
        """A metric whose score is a view."""
        return (output - gt).abs().flatten(1).sort(1).values[:, -1]

    score_image(7, image, build_loss({"l1": 1.0}), (), {"largest": largest}, kept)
    assert kept[7][0].equal(largest(image[0], image[2]))
    assert kept[7][0].untyped_storage().nbytes() == 4
    assert largest(image[0], image[2]).untyped_storage().nbytes() > 4, "the control"


def test_the_fields_for_channels_do_not_change_the_description_of_other_protocols():
    assert replace(Protocol(), scores_input=False).describe() == Protocol().describe()
    assert ImageSpec.of(3).in_words == "3 channels and scale 1"
    assert ImageSpec(3, 2, 4).in_words == "3 channels (4 in the input) and scale 2"
