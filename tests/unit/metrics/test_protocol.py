"""Scores compared with MATLAB's arithmetic, repeated here in float64, and with scikit-image; and the protocol."""

import json
from enum import Enum

import numpy as np
import pytest
import scipy
import skimage
import torch
from photographs import photograph

from accel_restore.config.load import config_from
from accel_restore.metrics import get_metric
from accel_restore.metrics.protocol import Protocol
from accel_restore.metrics.psnr_ssim import psnr, ssim
from accel_restore.registry import METRICS

PHOTOS = {
    "colour": photograph("astronaut")[20:141, 150:317],
    "gray": photograph("camera")[100:221, 200:333, None],
    "bright": np.clip(photograph("coffee")[:97, 400:555].astype(int) // 4 + 190, 0, 255).astype(np.uint8),
}


def noisy(gt: np.ndarray, sigma: float) -> np.ndarray:
    """Return 8-bit levels plus noise as floats (H, W, C) in units of [0, 1], neither clipped nor rounded."""
    return gt / 255 + np.random.default_rng(1).normal(0, sigma / 255, gt.shape)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()


def levels(image: np.ndarray, border: int, y_channel: bool, quantize: bool) -> np.ndarray:
    """Return floats (H, W, C) from 0 to 255 as evaluation scripts do: im2uint8, shave, rgb2ycbcr of doubles."""
    image = np.clip(image, 0, 1) * 255
    if quantize:
        image = np.floor(image + 0.5).astype(np.uint8).astype(float)
    image = image[border : image.shape[0] - border, border : image.shape[1] - border]
    if y_channel:
        red, green, blue = np.moveaxis(image / 255, -1, 0)
        image = (16 + 65.481 * red + 128.553 * green + 24.966 * blue)[..., None]
    return image


def matlab_psnr(output: np.ndarray, gt: np.ndarray) -> float:
    return 20 * np.log10(255 / np.sqrt(np.mean((output - gt) ** 2)))


def matlab_ssim(output: np.ndarray, gt: np.ndarray) -> float:
    """Return the mean over channels of ssim_index.m: fspecial('gaussian', 11, 1.5) and filter2(..., 'valid')."""
    rows, columns = np.mgrid[-5:6, -5:6]
    window = np.exp(-(rows**2 + columns**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for x, y in zip(np.moveaxis(output, -1, 0), np.moveaxis(gt, -1, 0), strict=True):
        mean_x, mean_y, xx, yy, xy = (
            scipy.signal.correlate2d(image, window, "valid") for image in (x, y, x * x, y * y, x * y)
        )
        numerator = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
        denominator = (mean_x**2 + mean_y**2 + c1) * (xx - mean_x**2 + yy - mean_y**2 + c2)
        values.append(np.mean(numerator / denominator))
    return float(np.mean(values))


SETTINGS = [(border, y, quantize) for border in (0, 2) for y in (False, True) for quantize in (False, True)]


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("sigma", [25, 1.5])
@pytest.mark.parametrize(("border", "y_channel", "quantize"), SETTINGS)
def test_scores_equal_matlab_and_skimage(name, sigma, border, y_channel, quantize):
    if y_channel and name == "gray":
        return
    gt, degraded = PHOTOS[name] / 255, noisy(PHOTOS[name], sigma)
    protocol = Protocol(crop_border=border, y_channel=y_channel, quantize=quantize)
    scores = {key: score(tensor(degraded), tensor(gt)).item() for key, score in protocol.scores.items()}
    x, y = (levels(image, border, y_channel, quantize) for image in (degraded, gt))

    assert scores["psnr"] == pytest.approx(matlab_psnr(x, y), abs=1e-4)
    assert scores["ssim"] == pytest.approx(matlab_ssim(x, y), abs=1e-6)
    assert scores["psnr"] == pytest.approx(skimage.metrics.peak_signal_noise_ratio(y, x, data_range=255), abs=1e-4)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = skimage.metrics.structural_similarity(x, y, channel_axis=2, **options)
    assert scores["ssim"] == pytest.approx(expected, abs=1e-6)


def test_each_setting_changes_the_scores_by_more_than_the_tolerance():
    gt, degraded = (tensor(image) for image in (PHOTOS["colour"] / 255, noisy(PHOTOS["colour"], 1.5)))
    plain = Protocol()
    for other in (Protocol(crop_border=2), Protocol(y_channel=True), Protocol(quantize=True)):
        for name, score in other.scores.items():
            assert abs(score(degraded, gt) - plain.scores[name](degraded, gt)) > 1e-4, (other, name)


def test_luma_of_8_bit_images_is_not_rounded():
    gt = tensor(PHOTOS["colour"] / 255)
    scored = Protocol(y_channel=True, quantize=True).prepare(gt) * 255
    expected = skimage.color.rgb2ycbcr(PHOTOS["colour"])[..., 0]
    torch.testing.assert_close(scored[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert (scored - scored.round()).abs().max() > 0.4


def test_ssim_of_bright_smooth_images_is_accurate():
    """The control is torchmetrics, which computes in float32."""
    gt = np.full((64, 64, 3), 0.99)
    output = gt + np.random.default_rng(0).normal(0, 2e-4, gt.shape)
    expected = matlab_ssim(output * 255, gt * 255)
    assert ssim(*(torch.from_numpy(x).permute(2, 0, 1)[None] for x in (output, gt))).item() == pytest.approx(
        expected, abs=1e-6
    )
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, single = structural_similarity_index_measure(
        tensor(output), tensor(gt), data_range=1.0, kernel_size=11, sigma=1.5, return_full_image=True
    )
    assert abs(single[..., 5:-5, 5:-5].mean().item() - expected) > 1e-4


@pytest.mark.parametrize("border", [0, 2])
def test_images_of_the_smallest_side_can_be_scored(border):
    assert Protocol(crop_border=border, metrics=("psnr",)).smallest_side == 2 * border + 1
    protocol = Protocol(crop_border=border)
    side = protocol.smallest_side
    assert side == 2 * border + 11
    images = torch.rand(2, 1, 3, side, side)
    assert all(score(*images).isfinite().all() for score in protocol.scores.values())
    assert protocol.scores["ssim"](*images[..., 1:, :]).isnan().all()  # the control


class Hue(Enum):
    RED = 1


def tinted(image, random, *, film: str = "", hue: Hue = Hue.RED):
    """A user-defined degradation with a default that JSON cannot represent."""
    return image


def protocol_of(**sections) -> Protocol:
    data = {"train": {"gt": "clean"}, **sections.pop("data", {})}
    return Protocol.of(config_from({"data": data, **sections}))


def test_the_description_holds_the_full_protocol():
    described = protocol_of().describe()
    assert (described["channels"], described["network"]) == ("RGB", "whole images")
    assert "not quantised" in described["range"] and "per image" in described["average"]
    assert "name" in described["input"] and "run.seed" in described["input"]
    for text in ("11", "1.5", "0.01", "0.03", "valid", "mean over channels"):
        assert text in described["ssim"]
    assert protocol_of(data={"channels": 1}).describe()["channels"] == "gray"
    assert protocol_of(data={"val": {"input": "a", "gt": "b"}}).describe()["input"] == "files"
    assert protocol_of(data={"train": {"input": "a", "gt": "b"}, "val": {"gt": "b"}}).degradation
    steps = [{"name": "gaussian_noise"}, {"name": "jpeg", "quality": 30}]
    described = protocol_of(data={"degradation": steps}).describe()["degradation"]
    assert described[0] == {"name": "gaussian_noise", "sigma": 25, "gray": 0.0} and described[1]["quality"] == 30
    nested = {
        "name": "choice",
        "of": [{"name": "gaussian_noise"}, {"name": "test_protocol:tinted", "film": "/a/film.png"}],
    }
    (described,) = protocol_of(data={"degradation": [nested]}).describe()["degradation"]
    assert described["of"][0]["sigma"] == 25 and described["of"][1]["film"] == "film.png"
    assert described["of"][1]["hue"] == "<Hue.RED: 1>" and json.dumps(described)
    assert "degradation" not in protocol_of(data={"train": {"input": "a", "gt": "b"}}).describe()
    assert "ssim" not in protocol_of(validation={"metrics": ["psnr"]}).describe()


@pytest.mark.parametrize(
    ("key", "value", "where", "text"),
    [
        ("y_channel", True, "channels", "BT.601"),
        ("quantize", True, "range", "8 bits"),
        ("self_ensemble", True, "network", "8 flips"),
        ("tile", 96, "network", "tiles of 96"),
        ("crop_border", 3, "crop_border", "3"),
    ],
)
def test_each_key_appears_in_the_description(key, value, where, text):
    plain, described = protocol_of().describe(), protocol_of(validation={key: value}).describe()
    assert described[key] == value != plain[key]
    assert text in str(described[where]) and text not in str(plain[where])


def test_a_cropped_gt_is_recorded_and_records_of_older_versions_stay_equal():
    assert "crop_gt" not in protocol_of().describe()
    assert protocol_of(validation={"crop_gt": True}).describe()["crop_gt"] is True


def test_every_metric_describes_itself_and_psnr_and_ssim_fall_with_noise():
    for metric in map(get_metric, METRICS):
        assert metric.text and isinstance(metric.higher_is_better, bool)
    gt, mild, strong = (tensor(noisy(PHOTOS["colour"], sigma)) for sigma in (0, 5, 25))
    for measure in (psnr, ssim):
        assert measure(mild, gt) > measure(strong, gt)
