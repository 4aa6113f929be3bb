"""Independent implementations of losses, from their papers, and photographs for comparing them."""

import numpy as np
import scipy
import skimage
import torch
from photographs import photograph
from torch.nn import functional as F


def photos(count: int, height: int, width: int, channels: int = 3, sigma: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return output and gt (B, C, H, W) in float64: crops of photographs, the output with noise."""
    random = np.random.default_rng(0)
    sources = [photograph("astronaut"), photograph("coffee"), photograph("chelsea")]
    cuts = []
    for i in range(count):
        photo = sources[i % 3] / 255
        top, left = (random.integers(size - side) for size, side in zip(photo.shape, (height, width), strict=False))
        cuts.append(photo[top : top + height, left : left + width, :channels].transpose(2, 0, 1))
    gt = np.stack(cuts)
    return gt + random.normal(0, sigma, gt.shape) * np.arange(1, count + 1).reshape(-1, 1, 1, 1), gt


def photo_tensors(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(image).to(dtype) for image in photos(*shape))


def reference_l1(output, gt):
    return F.l1_loss(torch.from_numpy(output), torch.from_numpy(gt)).item()


def reference_mse(output, gt):
    return F.mse_loss(torch.from_numpy(output), torch.from_numpy(gt)).item()


def reference_charbonnier(output, gt):
    return np.sqrt((output - gt) ** 2 + 1e-6).mean()


def reference_psnr(output, gt):
    return -skimage.metrics.peak_signal_noise_ratio(gt, output, data_range=1)


def reference_ssim(output, gt, **constants):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, **constants}
    return 1 - skimage.metrics.structural_similarity(output, gt, channel_axis=0, **options)


def reference_ms_ssim(output, gt):
    product = 1.0
    for exponent in (0.0448, 0.2856, 0.3001, 0.2363):  # with such a large K1, the luminance is 1 everywhere
        product *= (1 - reference_ssim(output, gt, K1=1e8)) ** exponent
        even = (slice(None), *(slice(0, side - side % 2) for side in output.shape[1:]))
        output, gt = (skimage.transform.downscale_local_mean(image[even], (1, 2, 2)) for image in (output, gt))
    return 1 - product * (1 - reference_ssim(output, gt)) ** 0.1333


def reference_fft(output, gt):
    difference = np.fft.fft2(output) - np.fft.fft2(gt)
    return (np.abs(difference.real) + np.abs(difference.imag)).mean() / 2


def reference_gradient(output, gt):
    return sum(np.abs(np.diff(output, axis=axis) - np.diff(gt, axis=axis)).mean() for axis in (1, 2))


def reference_edge(output, gt):
    def blurred(image):
        for axis in (1, 2):
            image = scipy.ndimage.correlate1d(image, [0.05, 0.25, 0.4, 0.25, 0.05], axis, mode="nearest")
        return image

    def laplacian(image):
        half = np.zeros_like(image)
        half[:, ::2, ::2] = 4 * blurred(image)[:, ::2, ::2]
        return image - blurred(half)

    return np.sqrt((laplacian(output) - laplacian(gt)) ** 2 + 1e-6).mean()


def reference_ldl(output, gt):
    error = np.abs(output - gt)
    residual = error.sum(0)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(residual, 3, mode="reflect"), (7, 7))
    weight = windows.var(axis=(2, 3), ddof=1) * residual.var(ddof=1) ** (1 / 5)
    return np.abs(weight * output - weight * gt).mean()


def reference_focal_frequency(output, gt):
    total = 0.0
    for one, other in zip(output, gt, strict=True):
        distance = np.abs(np.fft.fft2(one, norm="ortho") - np.fft.fft2(other, norm="ortho"))
        total += (distance / distance.max() * distance**2).mean()
    return total / len(output)


REFERENCES = {name.removeprefix("reference_"): value for name, value in globals().items() if name.startswith("refer")}
