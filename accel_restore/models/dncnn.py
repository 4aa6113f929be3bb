"""DnCNN, the classic residual denoiser.

Shapes: B batch, C image channels, H x W any image size (nothing is down-sampled), F = width features, S the factor
        by which the output is larger.

    x = input (B, C, H, W) enlarged to (B, C, H * S, W * S)
    x -> conv (F) -> relu -> [conv (F) -> norm -> relu] x (depth - 2) -> conv (C) = noise
    output (B, C, H * S, W * S) = x - noise
"""

from torch import Tensor, nn

from .blocks import conv, is_count, require, skip, upscale

NORMS = ("none", "batch")


class DnCNN(nn.Module):
    """A plain stack of 3 x 3 convolutions that predicts the noise; the output is the (enlarged) input minus it.

    Shapes: (B, C, H, W) to (B, C, H * scale, W * scale) of the same dtype, H and W at least 1.
    Raises: ValueError for an argument out of range.
    Source: Zhang et al. 2017, "Beyond a Gaussian Denoiser" (width 64; depth 17, and 20 for the blind models). As there,
        the first and last convolutions have a bias and those before a batch normalisation have none. Deviations:
        `norm` is "none" by default, because batch statistics depend on the number of processes, and then every
        convolution has a bias; weights are He-normal and the last ones scaled down, so that training without a norm
        starts near the identity.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        scale: int = 1,
        input_channels: int | None = None,
        depth: int = 17,
        width: int = 64,
        norm: str = "none",
    ) -> None:
        super().__init__()
        require(is_count(channels), "channels", channels, "a whole number of at least 1")
        inputs = channels if input_channels is None else input_channels
        require(is_count(inputs), "input_channels", inputs, "a whole number of at least 1")
        require(is_count(scale), "scale", scale, "a whole number of at least 1")
        require(is_count(depth, 2), "depth", depth, "a whole number of at least 2")
        require(is_count(width), "width", width, "a whole number of at least 1")
        require(norm in NORMS, "norm", norm, " or ".join(repr(name) for name in NORMS))
        self.scale, self.skip = scale, skip(inputs, channels)
        layers: list[nn.Module] = [conv(inputs, width, bias=True), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers.append(conv(width, width, bias=norm == "none"))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
        self.body = nn.Sequential(*layers, conv(width, channels, gain=0.1, bias=True))

    def forward(self, input: Tensor) -> Tensor:
        """Return the restored images, (B, C, H * scale, W * scale)."""
        x = upscale(input, self.scale)
        return self.skip(x) - self.body(x).to(x.dtype)
