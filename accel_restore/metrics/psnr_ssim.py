"""PSNR and SSIM of each image, and the luma on which both may be measured."""

import math
from collections.abc import Callable
from functools import reduce
from operator import add

import torch
from torch import Tensor

from accel_restore.losses.map_mean import mean_of_map
from accel_restore.losses.pixel import BT601, SSIM_SIGMA, SSIM_WINDOW, constant, ssim_factors
from accel_restore.metrics import Metric

Prepare = Callable[[Tensor], Tensor]  # converts each pixel by itself, to float64 and as a protocol describes

_WEIGHTS = [math.exp(-((place - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2)) for place in range(SSIM_WINDOW)]
_WEIGHTS = [weight / sum(_WEIGHTS) for weight in _WEIGHTS]


def luma(images: Tensor) -> Tensor:
    """Return the luma Y of BT.601, (B, 1, H, W), of RGB images (B, 3, H, W), as MATLAB's rgb2ycbcr does for doubles.

    Units: 16/255 (black) to 235/255 (white).
    """
    weights = constant(BT601, images.dtype, images.device).view(1, 3, 1, 1)
    return ((images * weights).sum(1, keepdim=True) + 16) / 255


def psnr(output: Tensor, gt: Tensor, prepare: Prepare = Tensor.double) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each image (B, C, H, W) in [0, 1]; shape (B,).

    It is at most 100 dB. For equal images it would be infinite, and so would the mean over all images.
    metrics/README.md gives the reasons for not using torchmetrics. `prepare` is applied to both images first, block by
    block.
    """
    error = mean_of_map(lambda output, gt: (prepare(output) - prepare(gt)).square(), output, gt)
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(output: Tensor, gt: Tensor, prepare: Prepare = Tensor.double) -> Tensor:
    """Return the structural similarity of each image (B, C, H, W) in [0, 1], averaged over channels; shape (B,).

    Computed in float64: in float32 the variance of bright smooth areas is lost to rounding. `prepare` is applied to
    both images first, block by block.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, as their
        ssim_index.m: Gaussian window of 11, valid region, no reduction of large images.
    """

    def similarity(output: Tensor, gt: Tensor) -> Tensor:
        x, y = prepare(output), prepare(gt)
        luminance, structure = ssim_factors((_blur(x), _blur(y), _blur(x * x), _blur(y * y), _blur(x * y)))
        return luminance * structure

    return mean_of_map(similarity, output, gt, margin=SSIM_WINDOW - 1)


def _blur(images: Tensor) -> Tensor:
    """Return the weighted means under SSIM's window, at the positions where it is inside the image.

    Shapes: (…, H, W) to (…, H - 10, W - 10).
    """
    for dim in (-2, -1):
        size = images.shape[dim] - SSIM_WINDOW + 1
        images = reduce(add, (weight * images.narrow(dim, place, size) for place, weight in enumerate(_WEIGHTS)))
    return images


PSNR = Metric(
    lambda _: psnr, "dB, peak 1, of the mean squared error over pixels and channels, at most 100", prepares=True
)
SSIM = Metric(
    lambda _: ssim,
    "Gaussian window 11, sigma 1.5, K1 0.01, K2 0.03, population variance, valid region, mean over channels",
    smallest_side=SSIM_WINDOW,
    prepares=True,
)
