"""Parts that the models share: checks of arguments, padding, bicubic enlarging, convolutions and a norm.

Shapes: (B, F, H, W) features in, (B, F', H', W') out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError with the argument, its value and what is allowed, unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}")


def is_count(value: object, least: int = 1) -> bool:
    """Return whether `value` is a whole number of at least `least`; booleans do not count as numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_counts(value: object) -> bool:
    """Return whether `value` is a non-empty list of whole numbers, each at least 1."""
    return isinstance(value, Sequence) and len(value) > 0 and all(map(is_count, value))


def pad_to_multiple(x: Tensor, multiple: int, zeros: bool = False) -> Tensor:
    """Return `x` (B, C, H, W) padded at the bottom and right, so that both sides are multiples of `multiple`.

    Padding is by reflection, by replication where `x` is too small for that, or with zeros.
    """
    height, width = x.shape[-2:]
    if torch.compiler.is_exporting():
        padded = [(side + multiple - 1) // multiple * multiple for side in (height, width)]
        return F.pad(x, (0, padded[1] - width, 0, padded[0] - height)) if zeros else _mirrored(x, *padded)
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    mode = "constant" if zeros else "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)


def _mirrored(x: Tensor, padded_height: int, padded_width: int) -> Tensor:
    """Return what `pad_to_multiple` returns, without a branch: sizes are symbols while a model is exported."""
    places = [
        (torch.arange(padded, device=x.device), side - 1)
        for padded, side in ((padded_height, x.shape[-2]), (padded_width, x.shape[-1]))
    ]
    mirrored = [last - (place - last).abs() for place, last in places]  # negative where the image is too small
    fits = (mirrored[0].min() >= 0) & (mirrored[1].min() >= 0)
    rows, columns = (
        torch.where(fits, mirror, place.clamp(max=last)) for mirror, (place, last) in zip(mirrored, places, strict=True)
    )
    return x.index_select(-2, rows).index_select(-1, columns)


def upscale(images: Tensor, scale: int) -> Tensor:
    """Return the images enlarged by bicubic interpolation, the baseline of super-resolution.

    Shapes: (B, C, H, W) to (B, C, H * scale, W * scale), not clamped.
    Source: Keys 1981 with a = -0.5, as MATLAB's imresize (selected by `antialias`; a is -0.75 otherwise).
    """
    return images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bicubic", antialias=True)


def conv(
    in_features: int, out_features: int, kernel: int = 3, *, stride: int = 1, gain: float = 1.0, bias: bool = False
) -> nn.Conv2d:
    """Return a convolution that keeps the image size, divided by its stride.

    Weights are He-normal times `gain`; biases start at zero.

    Source: He et al. 2015 (fan-in, ReLU): the variance is preserved through a stack without normalisation.
    """
    layer = nn.Conv2d(in_features, out_features, kernel, stride, padding=(kernel - stride + 1) // 2, bias=bias)
    nn.init.normal_(layer.weight, std=gain * (2.0 / (in_features * kernel**2)) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ChannelMix(nn.Conv2d):
    """A 1 x 1 convolution to another number of channels, each at first the mean of the input's.

    It has the precision of its input, also under autocast, as a skip connection without parameters has.
    """

    def __init__(self, input_channels: int, channels: int) -> None:
        super().__init__(input_channels, channels, 1, bias=False)
        nn.init.constant_(self.weight, 1 / input_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return images (B, channels, H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


def skip(input_channels: int, channels: int) -> nn.Module:
    """Return the skip connection from the (enlarged) input to the output, which has parameters only if they differ."""
    return nn.Identity() if input_channels == channels else ChannelMix(input_channels, channels)


def tail(features: int, channels: int, scale: int, bias: bool) -> nn.Conv2d:
    """Return the last convolution of a published network: `channels` features for each of scale x scale output pixels.

    The initial values are the published ones. For super-resolution they are a tenth of that, so that training starts
    near bicubic enlarging.
    """
    layer = nn.Conv2d(features, channels * scale**2, 3, padding=1, bias=bias)
    if scale > 1:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(0.1)
    return layer


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of the features of every pixel, (B, F, H, W) to the same; makes no copy if channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised features."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
