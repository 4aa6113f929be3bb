"""PSNR and SSIM of each image, and the protocol they are measured by: a score without its protocol means nothing."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

SSIM_WINDOW = 11


@dataclass(frozen=True)
class Protocol:
    """How scores are measured. Images are clamped to [0, 1] and not rounded to 8 bits; means are over images."""

    crop_border: int = 0
    y_channel: bool = False

    def describe(self) -> dict:
        """The protocol in full, as it is stored beside the scores."""
        return {
            **asdict(self),
            "range": "clamped to [0, 1], not quantised",
            "ssim": "gaussian window 11, sigma 1.5, K1 0.01, K2 0.03, valid region",
            "average": "per image",
        }

    def smallest_side(self, metrics: list[str]) -> int:
        """The least height and width, in pixels, of an image that can be scored."""
        return 2 * self.crop_border + (SSIM_WINDOW if "ssim" in metrics else 1)

    def prepare(self, images: Tensor) -> Tensor:
        """The part of images (B, C, H, W) that is scored."""
        border = self.crop_border
        images = images.clamp(0, 1)[..., border : images.shape[-2] - border, border : images.shape[-1] - border]
        return luma(images) if self.y_channel else images


def luma(images: Tensor) -> Tensor:
    """The Y of BT.601, 16–235 of 255, of RGB images (B, 3, H, W): (B, 1, H, W), as MATLAB's rgb2ycbcr."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return ((images * weights).sum(1, keepdim=True) + 16) / 255


def psnr(output: Tensor, gt: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB of each image (B, C, H, W) in [0, 1]: (B,), infinite for equal ones."""
    error = (output.double() - gt.double()).square().flatten(1).mean(1)
    return -10 * torch.log10(error)


def ssim(output: Tensor, gt: Tensor) -> Tensor:
    """The structural similarity of each image (B, C, H, W) in [0, 1]: shape (B,), the mean over channels.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # two seconds to import

    _, values = structural_similarity_index_measure(
        output.float(), gt.float(), data_range=1.0, kernel_size=SSIM_WINDOW, sigma=1.5, return_full_image=True
    )
    border = SSIM_WINDOW // 2  # there the window lies partly outside of the image
    return values[..., border:-border, border:-border].flatten(1).mean(1)


METRICS = {"psnr": psnr, "ssim": ssim}
