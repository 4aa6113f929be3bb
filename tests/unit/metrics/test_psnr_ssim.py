"""PSNR, SSIM and luma compared with scikit-image."""

import numpy as np
import pytest
import skimage
import torch
from photographs import photograph

from accel_restore.metrics.protocol import Protocol
from accel_restore.metrics.psnr_ssim import luma, psnr, ssim


def random_pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    gt = torch.rand(shape, generator=generator, dtype=dtype)
    return gt + 0.1 * torch.randn(shape, generator=generator, dtype=dtype), gt


def photo_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of a degraded and a clean image, floats (H, W, C) in [0, 1]: odd sizes, dark, flat, tiny, gray."""
    random = np.random.default_rng(0)
    astronaut = photograph("astronaut") / 255
    parts = {
        "photo": astronaut[3:104, 7:80],
        "dark": astronaut[300:350, 100:133] * 0.05,
        "flat": np.full((24, 31, 3), 0.8),
        "tiny": astronaut[:11, :11],
        "gray": photograph("camera")[100:161, 200:255, None] / 255,
    }
    return {name: (np.clip(gt + random.normal(0, 0.05, gt.shape), 0, 1), gt) for name, gt in parts.items()}


PHOTOS = photo_pairs()


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()


def reference_ssim(output: np.ndarray, gt: np.ndarray) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return skimage.metrics.structural_similarity(output, gt, channel_axis=2, **options)


@pytest.mark.parametrize("name", PHOTOS)
def test_psnr_equals_skimage(name):
    output, gt = PHOTOS[name]
    expected = skimage.metrics.peak_signal_noise_ratio(gt, output, data_range=1)
    assert psnr(tensor(output), tensor(gt)).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", PHOTOS)
def test_ssim_equals_skimage(name):
    output, gt = PHOTOS[name]
    expected = reference_ssim(output, gt)
    assert expected < 0.99
    assert ssim(tensor(output), tensor(gt)).item() == pytest.approx(expected, abs=1e-4)


def test_scores_are_per_image():
    batch = [tensor(image)[:, :, :20, :20] for image in (*PHOTOS["photo"], *PHOTOS["flat"])]
    output, gt = torch.cat(batch[::2]), torch.cat(batch[1::2])
    for metric in (psnr, ssim):
        values = metric(output, gt)
        assert values.shape == (2,)
        single = torch.cat([metric(output[i : i + 1], gt[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(values, single, rtol=1e-5, atol=1e-5)
        assert abs(values[0] - values[1]) > 1e-3
    assert (psnr(gt, gt) == 100).all(), "equal images score 100 dB, so that means stay finite"
    torch.testing.assert_close(ssim(gt, gt), torch.ones(2).double())


def test_luma_is_bt601():
    photo = PHOTOS["photo"][1]
    expected = skimage.color.rgb2ycbcr(photo)[..., :1] / 255
    torch.testing.assert_close(luma(tensor(photo)), tensor(expected), rtol=0, atol=1e-6)
    black_and_white = luma(torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])).flatten()
    torch.testing.assert_close(black_and_white, torch.tensor([16 / 255, 235 / 255]))


@pytest.mark.parametrize(("border", "y_channel"), [(0, False), (4, False), (3, True)])
def test_border_and_luma_are_scored_as_the_protocol_says(border, y_channel):
    output, gt = PHOTOS["photo"]
    protocol = Protocol(crop_border=border, y_channel=y_channel)
    scored = [image[border : len(image) - border, border : image.shape[1] - border] for image in (output, gt)]
    if y_channel:
        scored = [skimage.color.rgb2ycbcr(image)[..., :1] / 255 for image in scored]
    prepared = [protocol.prepare(tensor(image)) for image in (output, gt)]
    expected = skimage.metrics.peak_signal_noise_ratio(scored[1], scored[0], data_range=1)
    assert psnr(*prepared).item() == pytest.approx(expected, abs=1e-4)
    assert ssim(*prepared).item() == pytest.approx(reference_ssim(*scored), abs=1e-4)
    assert protocol.describe()["crop_border"] == border and protocol.describe()["y_channel"] == y_channel


def test_images_are_clamped_before_scoring():
    images = torch.tensor([-0.5, 0.25, 1.5]).view(1, 1, 1, 3)
    assert Protocol().prepare(images).flatten().tolist() == [0, 0.25, 1]
