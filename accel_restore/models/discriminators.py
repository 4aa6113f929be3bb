"""Discriminators: networks that tell gt from the output of the model. They map images to logits, without a sigmoid.

Shapes: images (B, C, H, W) in [0, 1] to logits (B, ...), of which there may be one per image, patch or pixel. A high
        logit stands for gt.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import is_count, require
from .spectral_norm import SpectralConv2d

_SLOPE = 0.2  # of the leaky ReLUs, in all three papers


class UNetSN(nn.Module):
    """A U-Net with spectral norm: one logit per pixel.

    `skip` adds the features of the way down on the way up. Names of weights are those of BasicSR.

    Shapes: (B, C, H, W) to (B, 1, H, W), H and W at least 8.
    Raises: ValueError for an argument out of range.
    Source: Wang et al., "Real-ESRGAN: training real-world blind super-resolution with pure synthetic data", 2021;
        Schönfeld et al., "A U-Net based discriminator for generative adversarial networks", 2020. Deviation: sides that
        are not multiples of 8 are accepted, by enlarging features to the size of the skip.
    """

    smallest_side = 8

    def __init__(self, *, channels: int = 3, width: int = 64, skip: bool = True) -> None:
        super().__init__()
        _check(channels, width)
        require(isinstance(skip, bool), "skip", skip, "true or false")
        self.skip = skip

        def normed(before: int, after: int, kernel: int = 3, stride: int = 1) -> SpectralConv2d:
            return SpectralConv2d(width * before, width * after, kernel, stride=stride, padding=1, bias=False)

        self.conv0 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv1, self.conv2, self.conv3 = normed(1, 2, 4, 2), normed(2, 4, 4, 2), normed(4, 8, 4, 2)
        self.conv4, self.conv5, self.conv6 = normed(8, 4), normed(4, 2), normed(2, 1)
        self.conv7, self.conv8 = normed(1, 1), normed(1, 1)
        self.conv9 = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = _leaky(self.conv0(images))
        skips = []
        for down in (self.conv1, self.conv2, self.conv3):
            skips.append(x)
            x = _leaky(down(x))
        for up in (self.conv4, self.conv5, self.conv6):
            skip = skips.pop()
            x = _leaky(up(F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)))
            if self.skip:
                x = x + skip
        return self.conv9(_leaky(self.conv8(_leaky(self.conv7(x)))))


class Patch(nn.Module):
    """PatchGAN: one logit for each 70x70 patch of the image, in steps of 8 pixels.

    `norm` is "spectral", in the three layers where the paper has batch norm, or "none".

    Shapes: (B, C, H, W) to (B, 1, H // 8 - 2, W // 8 - 2), H and W at least 24.
    Raises: ValueError for an argument out of range.
    Source: Isola et al., "Image-to-image translation with conditional adversarial networks" (pix2pix), 2017. Deviation:
        the paper's batch norm is left out, as its statistics would depend on gradient accumulation and on the number
        of ranks; the network sees the image alone, without the input.
    """

    smallest_side = 24

    def __init__(self, *, channels: int = 3, width: int = 64, norm: Literal["spectral", "none"] = "spectral") -> None:
        super().__init__()
        _check(channels, width)
        require(norm in ("spectral", "none"), "norm", norm, "spectral or none")
        widths = [channels, width, 2 * width, 4 * width, 8 * width, 1]
        self.convs = nn.ModuleList(
            _conv(before, after, 4, stride, norm if 0 < place < 4 else "none")
            for place, (before, after, stride) in enumerate(zip(widths, widths[1:], (2, 2, 2, 1, 1), strict=False))
        )
        for conv in self.convs:
            if isinstance(conv, nn.Conv2d):  # the scale of the others has no influence
                nn.init.normal_(conv.weight, std=0.02)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for conv in self.convs[:-1]:
            x = _leaky(conv(x))
        return self.convs[-1](x)


class VGG(nn.Module):
    """A stack of convolutions and two linear layers: one logit per image, for images of one size.

    Each stage halves the image, until its side is 4 to 7 pixels: five stages for 128 pixels, six for 256. `norm` is
    "batch" as in the paper, "spectral" or "none". Batch norm takes its statistics from the images of one forward, so
    the run depends on gradient accumulation and on the number of ranks. Names of weights are those of BasicSR.

    Shapes: (B, C, size, size) to (B, 1), size at least 8.
    Raises: ValueError for an argument out of range, and for images of another size.
    Source: Wang et al., "ESRGAN: enhanced super-resolution generative adversarial networks", 2018; Ledig et al.,
        "Photo-realistic single image super-resolution using a generative adversarial network", 2017.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        size: int = 128,
        width: int = 64,
        norm: Literal["batch", "spectral", "none"] = "batch",
    ) -> None:
        super().__init__()
        _check(channels, width)
        require(is_count(size, 8), "size", size, "a whole number of at least 8")
        require(norm in ("batch", "spectral", "none"), "norm", norm, "batch, spectral or none")
        self.size, self.stages = size, size.bit_length() - 3
        before = channels
        for stage in range(self.stages):
            after = width * min(2**stage, 8)
            self._add(f"{stage}_0", before, after, norm if stage else "first")
            self._add(f"{stage}_1", after, after, norm)
            before = after
        self.linear1 = nn.Linear(before * (size >> self.stages) ** 2, 100)
        self.linear2 = nn.Linear(100, 1)

    def _add(self, name: str, before: int, after: int, norm: str) -> None:
        """Add a convolution: 3x3 at the start of a stage, and 4x4 with stride 2 at its end."""
        kernel, stride = (3, 1) if name.endswith("0") else (4, 2)
        setattr(self, f"conv{name}", _conv(before, after, kernel, stride, norm))
        if norm == "batch":
            setattr(self, f"bn{name}", nn.BatchNorm2d(after))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            height, width = images.shape[-2:]
            raise ValueError(
                f"this discriminator is for images of {self.size}x{self.size} pixels, not {height}x{width}"
            )
        x = images
        for name in (f"{stage}_{place}" for stage in range(self.stages) for place in (0, 1)):
            x = self.get_submodule(f"conv{name}")(x)
            x = _leaky(self.get_submodule(f"bn{name}")(x) if hasattr(self, f"bn{name}") else x)
        return self.linear2(_leaky(self.linear1(x.flatten(1))))


def _check(channels: int, width: int) -> None:
    require(is_count(channels), "channels", channels, "a whole number of at least 1")
    require(is_count(width), "width", width, "a whole number of at least 1")


def _conv(before: int, after: int, kernel: int, stride: int, norm: str) -> nn.Conv2d | SpectralConv2d:
    """Return a convolution with padding 1; it has a bias unless a batch norm follows."""
    if norm == "spectral":
        return SpectralConv2d(before, after, kernel, stride=stride, padding=1)
    return nn.Conv2d(before, after, kernel, stride, padding=1, bias=norm != "batch")


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE)
