"""The losses that are plain formulas: (output, gt) of shape (B, C, H, W) in [0, 1] → (B,), smaller is better.

They take images of any size unless `smallest_side` says how many pixels they need.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SCALE_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, from the finest scale to the coarsest


def l1(output: Tensor, gt: Tensor) -> Tensor:
    """The mean absolute error of each sample."""
    return (output - gt).abs().flatten(1).mean(1)


def mse(output: Tensor, gt: Tensor) -> Tensor:
    """The mean squared error of each sample."""
    return (output - gt).square().flatten(1).mean(1)


def charbonnier(output: Tensor, gt: Tensor, *, eps: float = 1e-3) -> Tensor:
    """The mean of sqrt(error² + eps²) of each sample: l1 that is smooth around zero, and never below eps.

    Source: Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed imaging", 1994;
    eps = 1e-3 as in Lai et al., LapSRN, 2017.
    """
    return ((output - gt).square() + eps**2).sqrt().flatten(1).mean(1)


def psnr(output: Tensor, gt: Tensor, *, to_y: bool = False) -> Tensor:
    """The negative PSNR in dB of each sample, of its luma with `to_y`: about -30 for a good output, -80 at best.

    Source: Chen et al., "Simple baselines for image restoration" (NAFNet), 2022; HINet, 2021. 1e-8 is added to the
    squared error, as there.
    """
    error = output - gt
    if to_y:
        if output.shape[1] != 3:
            raise ValueError("to_y needs colour images (data.channels=3); gray ones are luma already")
        weights = _constant((65.481 / 255, 128.553 / 255, 24.966 / 255), error.dtype, error.device)  # BT.601, 16–235
        error = (error * weights.view(3, 1, 1)).sum(1)
    return 10 * torch.log10(error.square().flatten(1).mean(1) + 1e-8)


def ssim(output: Tensor, gt: Tensor) -> Tensor:
    """1 - SSIM of each sample: Gaussian window 11, sigma 1.5, its valid region, the mean over channels.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    similarity, _ = _similarity_maps(output, gt)
    return 1 - similarity.flatten(1).mean(1)


ssim.smallest_side = _SSIM_WINDOW


def ms_ssim(output: Tensor, gt: Tensor) -> Tensor:
    """1 - MS-SSIM of each sample, over five scales: needs images of 176 pixels, so that the coarsest holds a window.

    Source: Wang et al., "Multiscale structural similarity for image quality assessment", 2003. As there, windows lie
    inside of the image at every scale (torchmetrics pads the coarsest). Scales are means of 2×2 pixels; an odd last row
    or column is left out. A scale whose factor falls below 1e-4, which may be negative and has no real power, counts as
    1e-4 and has no gradient.
    """
    product = torch.ones((), dtype=output.dtype, device=output.device)
    for scale, exponent in enumerate(_SCALE_EXPONENTS, 1):
        similarity, structure = _similarity_maps(output, gt)
        factor = structure if scale < len(_SCALE_EXPONENTS) else similarity  # luminance counts at the coarsest alone
        product = product * factor.flatten(1).mean(1).clamp(min=1e-4) ** exponent
        output, gt = F.avg_pool2d(output, 2), F.avg_pool2d(gt, 2)
    return 1 - product


ms_ssim.smallest_side = _SSIM_WINDOW * 2 ** (len(_SCALE_EXPONENTS) - 1)


def fft(output: Tensor, gt: Tensor, *, norm: str = "backward") -> Tensor:
    """The mean absolute difference of the 2-D Fourier transforms of each sample, over real and imaginary parts.

    With `norm: backward` the transform is a plain sum over pixels, so that the value grows with the square root of
    their number, and the weight 0.1 of the paper holds; with `ortho` it is of the size of an l1 on any image.
    Source: Cho et al., "Rethinking coarse-to-fine approach in single image deblurring" (MIMO-UNet), 2021; of one scale.
    """
    difference = torch.fft.fft2(output - gt, norm=norm)  # the transform is linear
    return torch.view_as_real(difference).abs().flatten(1).mean(1)


def gradient(output: Tensor, gt: Tensor) -> Tensor:
    """The mean absolute error of the differences between neighbours, across plus down, of each sample.

    Source: Mathieu et al., "Deep multi-scale video prediction beyond mean square error", 2016; here the differences
    keep their signs, so that an edge of the wrong direction is an error.
    """
    error = output - gt
    return sum(error.diff(dim=side).abs().flatten(1).mean(1) for side in (-1, -2))


gradient.smallest_side = 2


def edge(output: Tensor, gt: Tensor, *, eps: float = 1e-3) -> Tensor:
    """The charbonnier loss of the Laplacian of each sample: what remains of an image without its half-size version.

    Source: Zamir et al., "Multi-stage progressive image restoration" (MPRNet), 2021, where its weight is 0.05 beside
    charbonnier; the pyramid of Burt and Adelson, 1983.
    """
    error = output - gt  # the Laplacian is linear
    half = torch.zeros_like(error)
    half[..., ::2, ::2] = 4 * _blur(error)[..., ::2, ::2]
    return charbonnier(error, _blur(half), eps=eps)


def _blur(images: Tensor) -> Tensor:
    """The images under Burt and Adelson's window of 5, their borders repeated outwards."""
    window = _constant((0.05, 0.25, 0.4, 0.25, 0.05), images.dtype, images.device)
    return _windowed(F.pad(images, (2, 2, 2, 2), mode="replicate"), window)


@lru_cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A vector that is made once: to copy it to a GPU means to wait for all that the GPU has to do."""
    return torch.tensor(values, dtype=dtype, device=device)


def _windowed(images: Tensor, window: Tensor) -> Tensor:
    """The weighted means under a separable window, where it lies inside of the image."""
    planes = images.flatten(0, 1)[:, None]
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return planes.view(*images.shape[:2], *planes.shape[-2:])


def _similarity_maps(output: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM under each window, and its part without the luminance (contrast and structure)."""
    position = torch.arange(_SSIM_WINDOW, dtype=output.dtype, device=output.device) - _SSIM_WINDOW // 2
    window = torch.softmax(-(position**2) / (2 * _SSIM_SIGMA**2), 0)  # a Gaussian whose sum is 1
    maps = [output, gt, output * output, gt * gt, output * gt]
    mean_o, mean_g, square_o, square_g, product = _windowed(torch.cat(maps), window).chunk(len(maps))
    variances = (square_o - mean_o * mean_o) + (square_g - mean_g * mean_g)
    structure = (2 * (product - mean_o * mean_g) + 0.03**2) / (variances + 0.03**2)
    luminance = (2 * mean_o * mean_g + 0.01**2) / (mean_o * mean_o + mean_g * mean_g + 0.01**2)
    return luminance * structure, structure
