"""The fixed images with which models are tried."""

import torch
from torch import Tensor

from accel_restore.models import ImageSpec


def probe_image(channels: int, batch: int = 1, height: int = 17, width: int = 13) -> Tensor:
    """Return the fixed images (batch, channels, height, width) with which models are tried."""
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def fits(output: object, image: Tensor, images: ImageSpec) -> bool:
    """Return whether a model's output for `image` is a tensor of the shape that `images` gives."""
    batch, _, height, width = image.shape
    shape = (batch, images.channels, height * images.scale, width * images.scale)
    return isinstance(output, Tensor) and output.shape == shape
