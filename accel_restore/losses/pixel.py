"""Losses that compare pixels: each maps output and gt, (B, C, H, W) in [0, 1], to one value per sample, (B,).

Lower is better. A loss accepts images of any size unless it is marked with `needs_side`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_restore.losses.map_mean import mean_of_map

BT601 = (65.481, 128.553, 24.966)  # weights of R, G, B in [0, 1] in the luma, which ranges from 16 to 235
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # side and standard deviation of the Gaussian window, in pixels
_SCALE_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, from the finest scale to the coarsest

_LDL_WINDOW = 7  # side of the window of local variances, in pixels

LossType = TypeVar("LossType", bound=Callable[..., Tensor])


def needs_side(pixels: int) -> Callable[[LossType], LossType]:
    """Return a decorator that marks a loss as requiring images of at least `pixels` a side."""

    def mark(loss: LossType) -> LossType:
        vars(loss)["smallest_side"] = pixels
        return loss

    return mark


def l1(output: Tensor, gt: Tensor) -> Tensor:
    """Return the mean absolute error of each sample."""
    return (output - gt).abs().flatten(1).mean(1)


def mse(output: Tensor, gt: Tensor) -> Tensor:
    """Return the mean squared error of each sample."""
    return (output - gt).square().flatten(1).mean(1)


def charbonnier(output: Tensor, gt: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Return the mean of sqrt(error² + eps²) of each sample: an l1 loss that is smooth around zero. Its minimum is eps.

    Source: Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed imaging", 1994;
        eps = 1e-3 as in Lai et al., LapSRN, 2017.
    """
    return ((output - gt).square() + eps**2).sqrt().flatten(1).mean(1)


def psnr(output: Tensor, gt: Tensor, *, to_y: bool = False) -> Tensor:
    """Return the negative PSNR in dB of each sample, about -30 for a good output and at best -80.

    With `to_y` the PSNR is measured on the luma.

    Source: Chen et al., "Simple baselines for image restoration" (NAFNet), 2022; HINet, 2021. As there, 1e-8 is added
        to the squared error.
    """
    error = output - gt
    if to_y:
        if output.shape[1] != 3:
            raise ValueError("to_y needs colour images (data.channels=3); gray images are luma already")
        weights = constant(tuple(weight / 255 for weight in BT601), error.dtype, error.device)
        error = (error * weights.view(3, 1, 1)).sum(1)
    return 10 * torch.log10(error.square().flatten(1).mean(1) + 1e-8)


@needs_side(SSIM_WINDOW)
def ssim(output: Tensor, gt: Tensor) -> Tensor:
    """Return 1 - SSIM of each sample: Gaussian window 11, sigma 1.5, valid region, mean over channels.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    return 1 - _mean_similarity(output, gt)


@needs_side(SSIM_WINDOW * 2 ** (len(_SCALE_EXPONENTS) - 1))
def ms_ssim(output: Tensor, gt: Tensor) -> Tensor:
    """Return 1 - MS-SSIM of each sample, over five scales.

    Images must have at least 176 pixels a side, so that the coarsest scale holds a window. Each scale halves the one
    before by averaging 2x2 pixels; an odd last row or column is dropped. A scale whose factor is below 1e-4 counts as
    1e-4 and has no gradient: the factor may be negative, and a negative number has no real power.

    Source: Wang et al., "Multiscale structural similarity for image quality assessment", 2003. As there, windows are
        inside the image at every scale (torchmetrics pads the coarsest).
    """
    product = torch.ones((), dtype=output.dtype, device=output.device)
    for scale, exponent in enumerate(_SCALE_EXPONENTS, 1):
        factor = _mean_similarity(output, gt, with_luminance=scale == len(_SCALE_EXPONENTS))
        product = product * factor.clamp(min=1e-4) ** exponent
        output, gt = F.avg_pool2d(output, 2), F.avg_pool2d(gt, 2)
    return 1 - product


def fft(output: Tensor, gt: Tensor, *, norm: str = "backward") -> Tensor:
    """Return the mean absolute difference of the 2-D Fourier transforms of each sample, over real and imaginary parts.

    `norm` is an option of `torch.fft.fft2`. With `backward` the transform is a plain sum over pixels: the value grows
    with the square root of their number, and the paper's weight of 0.1 applies. With `ortho` the value has the scale of
    an l1 loss for any image size.

    Source: Cho et al., "Rethinking coarse-to-fine approach in single image deblurring" (MIMO-UNet), 2021. Deviation:
        one scale only.
    """
    difference = torch.fft.fft2(output - gt, norm=norm)  # the transform is linear
    return torch.view_as_real(difference).abs().flatten(1).mean(1)


@needs_side(2)
def gradient(output: Tensor, gt: Tensor) -> Tensor:
    """Return the mean absolute error of horizontal differences plus the same of vertical ones, for each sample.

    Source: Mathieu et al., "Deep multi-scale video prediction beyond mean square error", 2016. Deviation: differences
        keep their signs, so an edge of the wrong direction is an error.
    """
    error = output - gt
    return error.diff(dim=-1).abs().flatten(1).mean(1) + error.diff(dim=-2).abs().flatten(1).mean(1)


def edge(output: Tensor, gt: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Return the charbonnier loss of the Laplacian of each sample: the image minus its blurred, half-size version.

    Source: Zamir et al., "Multi-stage progressive image restoration" (MPRNet), 2021, where it has the weight 0.05 next
        to charbonnier; Burt and Adelson, 1983 (the pyramid).
    """
    error = output - gt  # the Laplacian is linear
    half = torch.zeros_like(error)
    half[..., ::2, ::2] = 4 * _blur(error)[..., ::2, ::2]
    return charbonnier(error, _blur(half), eps=eps)


@needs_side(_LDL_WINDOW // 2 + 1)
def ldl(output: Tensor, gt: Tensor) -> Tensor:
    """Return the mean absolute error of each sample, weighted by how much the error varies around each pixel.

    The weight is large at artifacts of adversarial training. It is the variance of the absolute error, summed over
    channels, in a window of 7 pixels (mirrored at borders), times the fifth root of the variance in the whole image.
    The gradient passes through the weight, as in the authors' code. An error that is the same everywhere costs nothing,
    so this is a term next to others.

    Source: Liang et al., "Details or artifacts: a locally discriminative learning approach to realistic image
        super-resolution" (LDL), 2022, with the weight 1 next to ESRGAN's losses. Deviation: the paper sets the weight
        to 0 where the model's error is smaller than that of its EMA; a loss sees output and gt only.
    """
    error = output - gt
    residual = error.abs().sum(1, keepdim=True)
    residual = residual - residual.detach().mean((1, 2, 3), keepdim=True)  # variances do not change, but rounding does
    whole = residual.flatten(1).var(1).clamp(min=1e-12) ** 0.2  # a root has no gradient at 0
    padded = _mirror(_mirror(residual, -1), -2)
    count = _LDL_WINDOW**2
    mean = F.avg_pool2d(padded, _LDL_WINDOW, 1)
    local = (F.avg_pool2d(padded.square(), _LDL_WINDOW, 1) - mean.square()).clamp(min=0) * (count / (count - 1))
    return whole * (local * error.abs()).flatten(1).mean(1)


def focal_frequency(output: Tensor, gt: Tensor, *, alpha: float = 1.0, log: bool = False) -> Tensor:
    """Return the weighted mean squared difference of the 2-D Fourier transforms of each sample.

    The weight of a frequency is its difference to the power `alpha`, divided by the largest of its channel, so hard
    frequencies count more. With `log` the logarithm of 1 + difference^alpha takes the place of the power. Weights have
    no gradient. Transforms are orthonormal. `alpha` 0 gives the mean squared error.

    Source: Jiang et al., "Focal frequency loss for image reconstruction and synthesis", 2021. Deviations: the spectrum
        is that of the whole image, not of patches, and never of the mean of a batch.
    """
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha={alpha!r} is not allowed: it must be a number of at least 0")
    difference = torch.view_as_real(torch.fft.fft2(output - gt, norm="ortho")).square().sum(-1)
    weight = difference.detach().sqrt() ** alpha
    weight = weight.log1p() if log else weight
    weight = weight / weight.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight * difference).flatten(1).mean(1)


@lru_cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a vector, made only once, because a copy to a GPU waits for all work queued there."""
    return torch.tensor(values, dtype=dtype, device=device)


def ssim_factors(means: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the two factors of SSIM under each window: luminance, and contrast times structure.

    `means` are the weighted means of x, y, x * x, y * y and x * y under each window, for values in [0, 1].
    """
    mean_x, mean_y, square_x, square_y, product = means
    c1, c2 = 0.01**2, 0.03**2
    variances = (square_x - mean_x * mean_x) + (square_y - mean_y * mean_y)
    structure = (2 * (product - mean_x * mean_y) + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return luminance, structure


def _mean_similarity(output: Tensor, gt: Tensor, with_luminance: bool = True) -> Tensor:
    """Return the mean of SSIM, or of its contrast and structure alone, for each sample."""

    def similarity(output: Tensor, gt: Tensor) -> Tensor:
        luminance, structure = _similarity(output, gt)
        return luminance * structure if with_luminance else structure

    if torch.is_grad_enabled():
        return similarity(output, gt).flatten(1).mean(1)
    return mean_of_map(similarity, output, gt, margin=SSIM_WINDOW - 1)  # validated images may be large


def _similarity(output: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    position = torch.arange(SSIM_WINDOW, dtype=output.dtype, device=output.device) - SSIM_WINDOW // 2
    window = torch.softmax(-(position**2) / (2 * SSIM_SIGMA**2), 0)  # a Gaussian whose sum is 1
    maps = [output, gt, output * output, gt * gt, output * gt]
    return ssim_factors(_windowed(torch.cat(maps), window).chunk(len(maps)))


def _mirror(images: Tensor, dim: int) -> Tensor:
    """Return the images extended by 3 pixels at both ends of a dimension, by reflection.

    `F.pad` does the same, but its backward on a GPU is not deterministic.
    """
    side, size = _LDL_WINDOW // 2, images.shape[dim]
    before, after = images.narrow(dim, 1, side).flip(dim), images.narrow(dim, size - 1 - side, side).flip(dim)
    return torch.cat([before, images, after], dim)


def _blur(images: Tensor) -> Tensor:
    """Return the images blurred with Burt and Adelson's window of 5; borders are replicated."""
    window = constant((0.05, 0.25, 0.4, 0.25, 0.05), images.dtype, images.device)
    return _windowed(F.pad(images, (2, 2, 2, 2), mode="replicate"), window)


def _windowed(images: Tensor, window: Tensor) -> Tensor:
    """Return the weighted means under a separable window, at the positions where it is inside the image."""
    planes = images.flatten(0, 1)[:, None]
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return planes.view(*images.shape[:2], *planes.shape[-2:])
