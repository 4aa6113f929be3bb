"""The fixed images with which models are tried."""

import torch
from torch import Tensor


def probe_image(channels: int, batch: int = 1, height: int = 17, width: int = 13) -> Tensor:
    """Return the fixed images (batch, channels, height, width) with which models are tried."""
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def fits(output: object, image: Tensor, scale: int) -> bool:
    """Return whether a model's output is a tensor (B, C, H * scale, W * scale) for images (B, C, H, W)."""
    batch, channels, height, width = image.shape
    return isinstance(output, Tensor) and output.shape == (batch, channels, height * scale, width * scale)
