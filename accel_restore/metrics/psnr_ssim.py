"""PSNR and SSIM of each image, and the luma that both may be measured on."""

import math

import torch
from torch import Tensor

WINDOW = [math.exp(-((place - 5) ** 2) / (2 * 1.5**2)) for place in range(11)]  # of SSIM
WINDOW = [weight / sum(WINDOW) for weight in WINDOW]


def luma(images: Tensor) -> Tensor:
    """The Y of BT.601, 16–235 of 255, of RGB images (B, 3, H, W): (B, 1, H, W), as MATLAB's rgb2ycbcr of doubles."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return ((images * weights).sum(1, keepdim=True) + 16) / 255


def psnr(output: Tensor, gt: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB of each image (B, C, H, W) in [0, 1]: (B,).

    At most 100, for equal images too: one that is infinite would make the mean over all images say nothing.
    """
    error = (output.double() - gt.double()).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(output: Tensor, gt: Tensor) -> Tensor:
    """The structural similarity of each image (B, C, H, W) in [0, 1]: shape (B,), the mean over channels.

    Computed in float64: in float32 the variance of bright smooth areas drowns in rounding.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, as their
        ssim_index.m: Gaussian window of 11, valid region, no reduction of large images.
    """
    x, y = output.double(), gt.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similar_mean = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    similar_shape = (2 * covariance + c2) / (var_x + var_y + c2)
    return (similar_mean * similar_shape).flatten(1).mean(1)


def blur(images: Tensor) -> Tensor:
    """The images (…, H, W) under SSIM's window, where it lies inside: (…, H - 10, W - 10)."""
    for dim in (-2, -1):
        size = images.shape[dim] - len(WINDOW) + 1
        images = sum(weight * images.narrow(dim, place, size) for place, weight in enumerate(WINDOW))
    return images
