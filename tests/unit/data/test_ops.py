"""Each degradation against another implementation of it or its statistics."""

import io
import math

import numpy as np
import pytest
import scipy
import skimage
import torch
from degraded import ASTRONAUT, SEEDS, apply
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from accel_restore.data.degradations.pipeline import build_degradation


def impulse(side: int) -> Tensor:
    """A black image with a white pixel in the middle, whose blur is the kernel."""
    image = torch.zeros(1, side, side, dtype=torch.float64)
    image[0, side // 2, side // 2] = 1
    return image


def covariance(kernel: Tensor) -> np.ndarray:
    """Second moments of a (1, side, side) kernel, x to the right and y up."""
    weights, half = kernel[0].numpy(), kernel.shape[1] // 2
    y, x = -np.mgrid[-half : half + 1, -half : half + 1] * [[[1]], [[-1]]]
    points = np.stack([x.ravel(), y.ravel()])
    return (points * weights.ravel()) @ points.T


def turned(along: float, across: float, angle: float) -> np.ndarray:
    """The covariance matrix with these variances along and across a direction in degrees."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[c, -s], [s, c]])
    return turn @ np.diag([along, across]) @ turn.T


# Noise


@pytest.mark.parametrize("sigma", [5, 25.0, 75])
def test_gaussian_noise_has_the_given_strength_and_is_not_clipped(sigma):
    gt = torch.stack([torch.zeros(3, 96, 96), torch.ones(3, 96, 96)]).repeat(2, 1, 1, 1)
    noisy = build_degradation([("gaussian_noise", {"sigma": sigma})])(gt, SEEDS)
    for noise in noisy - gt:
        assert noise.std().item() == pytest.approx(sigma / 255, rel=0.03)  # five standard errors
        assert abs(noise.mean().item()) < 5 * sigma / 255 / noise.numel() ** 0.5
    assert noisy[0].min() < 0 and noisy[1].max() > 1


def test_sigma_is_in_8_bit_levels():
    noise = apply("gaussian_noise", torch.zeros(3, 700, 700), sigma=25)
    assert noise.std().item() * 255 / 25 == pytest.approx(1, abs=0.003)  # five standard errors; 256 would be 0.004 off


def test_range_is_drawn_for_each_sample():
    seeds = np.arange(64).astype(np.uint64)
    noise = build_degradation([("gaussian_noise", {"sigma": [5, 50]})])(torch.zeros(64, 3, 32, 32), seeds)
    strengths = (noise.flatten(1).std(1) * 255).numpy()
    assert 4.5 < strengths.min() < 15 and 40 < strengths.max() < 54
    assert strengths.mean() == pytest.approx(27.5, abs=8)
    assert len(set(strengths.tolist())) == 64


def test_two_steps_of_a_degradation_add_different_noise():
    twice = build_degradation([("gaussian_noise", {"sigma": 10})] * 2)(torch.zeros(1, 3, 64, 64), SEEDS[:1])
    assert twice.std().item() * 255 == pytest.approx(10 * 2**0.5, rel=0.05)  # the same noise twice would have 20


@pytest.mark.parametrize(("level", "peak", "strength"), [(0.5, 20, 1), (0.1, 20, 1), (0.5, 500, 1), (0.5, 20, 2)])
def test_poisson_noise_counts_photons(level, peak, strength):
    noise = apply("poisson_noise", torch.full((3, 128, 128), level), peak=peak, strength=strength) - level
    variance = strength**2 * level / peak
    assert noise.var().item() == pytest.approx(variance, rel=0.06)
    assert abs(noise.mean().item()) < 5 * (variance / noise.numel()) ** 0.5
    counts = ((noise / strength + level) * peak).double()
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)


def test_speckle_grows_with_the_light():
    image = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1).expand(3, 128, 128)
    black, dark, white = (apply("speckle", image, sigma=0.3) - image).flatten(1).std(1).tolist()
    assert black == 0 and dark == pytest.approx(0.06, rel=0.03) and white == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("name", ["gaussian_noise", "poisson_noise", "speckle"])
def test_gray_noise_is_shared_by_the_channels(name):
    image = torch.full((3, 24, 24), 0.5)
    shares = []
    for seed in range(60):
        red, green, _ = apply(name, image, seed, gray=0.4) - image
        shares.append(torch.allclose(red, green, atol=1e-6))
    assert 5 < sum(shares) < 43  # 24 expected; five standard deviations
    red, green, blue = apply(name, image, gray=1.0)
    assert torch.allclose(red, green) and torch.allclose(green, blue) and red.std() > 0.01


def test_gray_poisson_noise_is_that_of_the_luma():
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 128, 128)
    noise = apply("poisson_noise", red, peak=50, gray=1.0) - red
    assert noise[1].var().item() == pytest.approx(0.299 / 50, rel=0.06)


# Blur


@pytest.mark.parametrize("sigma", [0.5, 2, 15])
def test_isotropic_blur_equals_scipy_even_with_a_kernel_wider_than_the_image(sigma):
    image = ASTRONAUT.double()
    expected = [scipy.ndimage.gaussian_filter(channel, sigma, mode="mirror", truncate=4) for channel in image.numpy()]
    torch.testing.assert_close(apply("gaussian_blur", image, sigma=sigma), torch.from_numpy(np.stack(expected)))


def test_anisotropic_blur_follows_its_angle():
    kernel = apply("gaussian_blur", impulse(61), sigma=4, sigma_y=1.5, angle=30, radius=20)
    np.testing.assert_allclose(covariance(kernel), turned(16, 2.25, 30), rtol=0.002)
    upright = apply("gaussian_blur", ASTRONAUT.double(), sigma=3, sigma_y=1, angle=90)
    expected = scipy.ndimage.gaussian_filter(ASTRONAUT.double().numpy(), (0, 3, 1), mode="mirror", truncate=4)
    torch.testing.assert_close(upright, torch.from_numpy(expected), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("profile", "flank"), [("gaussian", lambda d: math.exp(-(d**3) / 2)), ("plateau", lambda d: 1 / (1 + d**3))]
)
def test_generalised_blurs_have_their_profiles(profile, flank):
    row = apply("gaussian_blur", impulse(41), sigma=4, beta=1.5, profile=profile, radius=12)[0, 20]
    for distance in (0, 1, 4, 8, 12):
        assert (row[20 + distance] / row[20]).item() == pytest.approx(flank(distance / 4), rel=1e-9)
    assert row[33] == 0 and row[7] == 0 and row[8] > 0


def test_blurs_keep_the_mean_and_strength_zero_keeps_the_image():
    flat = torch.full((3, 20, 20), 0.3)
    for name in ("gaussian_blur", "motion_blur", "sinc"):
        torch.testing.assert_close(apply(name, flat), flat)
    torch.testing.assert_close(apply("gaussian_blur", ASTRONAUT, sigma=0), ASTRONAUT)
    torch.testing.assert_close(apply("motion_blur", ASTRONAUT, length=1, angle=90), ASTRONAUT)


@pytest.mark.parametrize(("angle", "axis"), [(0, 2), (90, 1)])
def test_motion_along_an_axis_is_a_moving_average(angle, axis):
    expected = scipy.ndimage.uniform_filter1d(ASTRONAUT.double().numpy(), 9, axis, mode="mirror")
    torch.testing.assert_close(apply("motion_blur", ASTRONAUT.double(), length=9, angle=angle), torch.tensor(expected))


@pytest.mark.parametrize("angle", [20, 45, 150])
def test_motion_blur_follows_its_angle(angle):
    spread = covariance(apply("motion_blur", impulse(61), length=30, angle=angle))
    values, directions = np.linalg.eigh(spread)
    assert math.degrees(math.atan2(directions[1, 1], directions[0, 1])) % 180 == pytest.approx(angle, abs=0.5)
    assert values[1] == pytest.approx(30**2 / 12, rel=0.02) and values[0] < 0.5


@pytest.mark.parametrize(("cutoff", "radius"), [(0.4, 10), (1, 3)])
def test_sinc_equals_the_kernel_of_scipys_bessel_function(cutoff, radius):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance = np.hypot(x, y)
    distance[radius, radius] = 1e-9
    kernel = scipy.special.j1(math.pi * cutoff * distance) / distance
    kernel /= kernel.sum()
    expected = [scipy.ndimage.convolve(channel, kernel, mode="mirror") for channel in ASTRONAUT.double().numpy()]
    result = apply("sinc", ASTRONAUT.double(), cutoff=cutoff, radius=radius)
    torch.testing.assert_close(result, torch.from_numpy(np.stack(expected)))
    assert (result - ASTRONAUT).abs().max() > 0.02


# Size


def imresize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """MATLAB's bicubic imresize of a floating-point (C, H, W) image that becomes smaller, written from its weights."""
    for axis, new in zip((1, 2), size, strict=True):
        old = image.shape[axis]
        factor = old / new
        centres = (np.arange(new) + 0.5) * factor - 0.5
        places = np.floor(centres - 2 * factor)[:, None] + np.arange(4 * factor + 2)
        d = np.abs(centres[:, None] - places) / factor
        weights = np.where(d <= 1, 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2) * (d <= 2)
        weights /= weights.sum(1, keepdims=True)
        mirror = np.concatenate([np.arange(old), np.arange(old)[::-1]])
        taken = np.moveaxis(image, axis, -1)[..., mirror[places.astype(int) % (2 * old)]]
        image = np.moveaxis((taken * weights).sum(-1), -1, axis)
    return image


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("side", [12, 60])
def test_downscale_equals_matlabs_imresize(scale, side):
    gt = ASTRONAUT[:, :side].double()
    size = (side // scale, 72 // scale)
    expected = torch.from_numpy(imresize(gt.numpy(), size))
    torch.testing.assert_close(apply("downscale", gt, size=size), expected)
    torch.testing.assert_close(apply("downscale", gt.float(), size=size), expected.float(), rtol=0, atol=1e-5)
    plain = F.interpolate(gt[None], size, mode="bicubic", antialias=True)[0]  # the control: another border
    difference = (plain - expected).abs() * 255
    assert difference.max() > 1 and (side == 12 or difference[:, 3:-3, 3:-3].max() < 1e-6)


def test_downscale_ends_at_the_size_of_the_input_after_any_resize():
    steps = [("resize", {"scale": [0.3, 1.4]}), ("downscale", {"method": ["area", "bilinear", "bicubic"]})]
    gt = ASTRONAUT[None].expand(12, -1, -1, -1)
    output = build_degradation(steps, 4)(gt, np.arange(12))
    assert output.shape == (12, 3, 15, 18)
    expected = F.interpolate(ASTRONAUT[None], (15, 18), mode="area")[0]
    assert ((output - expected).abs().mean((1, 2, 3)) < 0.05).all()
    same = build_degradation([("downscale", {})])(gt, np.arange(12))
    assert same.equal(gt)


@pytest.mark.parametrize(("method", "resample"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("scale", [0.45, 1.3])
def test_resize_equals_pillow(method, resample, scale):
    size = (round(60 * scale), round(72 * scale))
    bands = [Image.fromarray(band.numpy()).resize(size[::-1], resample) for band in ASTRONAUT]
    expected = torch.from_numpy(np.stack([np.asarray(band) for band in bands]))
    result = apply("resize", ASTRONAUT, scale=scale, method=method, size=(1, 1))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_resize_by_area_averages_and_may_be_relative_to_the_input():
    expected = skimage.transform.downscale_local_mean(ASTRONAUT.numpy(), (1, 4, 4))
    for arguments in ({"scale": 0.25}, {"scale": 0.5, "base": "input"}):
        result = apply("resize", ASTRONAUT, method="area", size=(30, 36), **arguments)
        torch.testing.assert_close(result, torch.from_numpy(expected))
    sizes = [apply("resize", ASTRONAUT, seed, scale=[0.5, 1.5], size=(1, 1)).shape[1] for seed in range(60)]
    assert 30 <= min(sizes) < 36 and 84 < max(sizes) <= 90 and 45 < np.mean(sizes) < 75


# Compression, rounding, rain and light


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_pillow(channels):
    image = ASTRONAUT[:channels]
    levels = (image * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    coded = {}
    for quality in (10, 90):
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "JPEG", quality=quality)
        coded[quality] = torch.from_numpy(np.array(Image.open(file))).view(60, 72, channels).permute(2, 0, 1)
        result = apply("jpeg", image, quality=quality) * 255
        torch.testing.assert_close(result, coded[quality].float())
    assert (coded[10].float() - coded[90]).abs().mean() > 2


def test_jpeg_needs_the_host_and_clips():
    for steps, on_host in [
        ([("jpeg", {})], True),
        ([("gaussian_noise", {}), ("choice", {"of": [{"name": "sequence", "of": [{"name": "jpeg"}]}]})], True),
        ([("gaussian_noise", {}), ("random_order", {"of": [{"name": "rain"}]})], False),
    ]:
        assert build_degradation(steps).on_host is on_host
    over = torch.full((3, 16, 16), 1.7)
    over[:, :, 8:] = -0.4
    result = apply("jpeg", over, quality=100)
    assert result[:, :, :8].min() > 0.98 and result[:, :, 8:].max() < 0.02


def test_quantize_rounds_to_levels():
    result = apply("quantize", torch.tensor([-0.3, 0.0, 0.2 / 255, 0.7 / 255, 0.5, 1.0, 1.6]).view(1, 1, 7))
    assert (result * 255).flatten().tolist() == pytest.approx([0, 0, 0, 1, 128, 255, 255])


def test_rain_is_drops_along_a_line():
    dark = torch.zeros(3, 128, 128)
    drops = apply("rain", dark, density=0.02, length=1, angle=90, strength=1)
    assert (drops[0] > 0).float().mean().item() == pytest.approx(0.02, rel=0.3)  # five standard deviations
    assert 0 < drops.max() <= 1 and drops[0].equal(drops[2])
    assert drops[drops > 0].mean().item() == pytest.approx(0.5, abs=0.08)
    streaks = apply("rain", dark, density=0.02, length=15, angle=90, strength=1)
    expected = scipy.ndimage.uniform_filter1d(drops.double().numpy(), 15, 1, mode="mirror") * 15
    torch.testing.assert_close(streaks, torch.from_numpy(expected.clip(max=1)).float(), rtol=0, atol=1e-5)
    assert apply("rain", dark, density=0).equal(dark)


def test_rain_goes_towards_white_by_its_strength():
    gray = torch.full((3, 64, 64), 0.4)
    wet = apply("rain", gray, density=0.05, length=20, angle=80, strength=0.5)
    assert wet.min().item() == pytest.approx(0.4) and wet.max().item() == pytest.approx(0.7, abs=0.01)


def test_low_light_is_a_gamma_curve_with_a_gain():
    expected = skimage.exposure.adjust_gamma(ASTRONAUT.double().numpy(), 2.5, 0.6)
    torch.testing.assert_close(apply("low_light", ASTRONAUT.double(), gain=0.6, gamma=2.5), torch.tensor(expected))
    assert apply("low_light", torch.full((1, 1, 1), -0.1)).item() == 0
