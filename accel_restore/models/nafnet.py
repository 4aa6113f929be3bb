"""NAFNet, a restoration network without activation functions.

Shapes: B batch, C image channels, H x W any image size, L = number of encoder_blocks, F_i = width * 2^i features of
        level i, which works at H_i = H / 2^i, W_i = W / 2^i, S the factor by which the output is larger.

    input (B, C, H, W) -> pad H, W to multiples of 2^L -> intro (B, F_0, H_0, W_0)
        level i on the way down:  encoder_blocks[i] blocks = skip_i; down         -> (B, F_i+1, H_i+1, W_i+1)
        the last level, L:        middle_blocks blocks
        level i on the way up:    up, + skip_i, decoder_blocks[L-1-i] blocks      -> (B, F_i, H_i, W_i)
    -> ending (B, C * S^2, H_0, W_0) -> pixel shuffle, crop (B, C, H * S, W * S) -> + input, enlarged
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import ChannelNorm, is_count, is_counts, pad_to_multiple, require, skip, tail, upscale


def gate(x: Tensor) -> Tensor:
    """Return the product of both halves of the features, (B, 2F, H, W) to (B, F, H, W); it replaces an activation."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """Two residual branches, spatial and per pixel, each multiplied by a learned factor that starts at zero.

    The factors are float32, and so are the products with them. The sums therefore keep the dtype of x under autocast.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        wide = 2 * features
        self.norm1 = ChannelNorm(features, eps=1e-6)
        self.conv1 = nn.Conv2d(features, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(features, features, 1))
        self.conv3 = nn.Conv2d(features, features, 1)
        self.norm2 = ChannelNorm(features, eps=1e-6)
        self.conv4 = nn.Conv2d(features, wide, 1)
        self.conv5 = nn.Conv2d(features, features, 1)
        self.beta = nn.Parameter(torch.zeros(1, features, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        y = gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(y * self.sca(y)) * self.beta
        return x + self.conv5(gate(self.conv4(self.norm2(x)))) * self.gamma


class NAFNet(nn.Module):
    """A UNet of blocks without activation functions: the output is the (enlarged) input plus a learned correction.

    `encoder_blocks` and `decoder_blocks` are the numbers of blocks per level, in the order of computation: finest first
    in the encoder, coarsest first in the decoder. The default is the network published for SIDD at width 32. The one
    for GoPro is `encoder_blocks: [1, 1, 1, 28], middle_blocks: 1, decoder_blocks: [1, 1, 1, 1]`.

    Shapes: (B, C, H, W) to (B, C, H * scale, W * scale) of the same dtype, H and W at least 1.
    Raises: ValueError for an argument out of range.
    Source: Chen et al. 2022, "Simple Baselines for Image Restoration". At scale 1 the names and shapes of the
        parameters, the arithmetic (including zero padding) and the initial values equal the published networks, so
        their weights load. Channel attention uses means over the whole image, not the local means (TLC) with which the
        authors test the GoPro networks. Deviations: the residual stream keeps the input's dtype under autocast, as in
        the UNet (rounding it to bfloat16 made no difference beyond chance in 760 steps of a small network); for
        super-resolution the tail is ESPCN's (Shi et al. 2016) and the input is enlarged by bicubic interpolation.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        scale: int = 1,
        input_channels: int | None = None,
        width: int = 32,
        encoder_blocks: Sequence[int] = (2, 2, 4, 8),
        middle_blocks: int = 12,
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        require(is_count(channels), "channels", channels, "a whole number of at least 1")
        inputs = channels if input_channels is None else input_channels
        require(is_count(inputs), "input_channels", inputs, "a whole number of at least 1")
        require(is_count(scale), "scale", scale, "a whole number of at least 1")
        require(is_count(width), "width", width, "a whole number of at least 1")
        few = is_counts(encoder_blocks) and len(encoder_blocks) <= 8
        require(few, "encoder_blocks", encoder_blocks, "a list of 1 to 8 whole numbers, one per level")
        require(is_count(middle_blocks), "middle_blocks", middle_blocks, "a whole number of at least 1")
        levels = len(encoder_blocks)
        as_many = is_counts(decoder_blocks) and len(decoder_blocks) == levels
        require(
            as_many, "decoder_blocks", decoder_blocks, f"a list of {levels} whole numbers, as many as encoder_blocks"
        )

        features = [width * 2**i for i in range(levels + 1)]

        def level(size: int, depth: int) -> nn.Sequential:
            return nn.Sequential(*(NAFBlock(size) for _ in range(depth)))

        def up(size: int) -> nn.Sequential:  # to half the features at twice the size
            return nn.Sequential(nn.Conv2d(size, 2 * size, 1, bias=False), nn.PixelShuffle(2))

        self.scale, self.stride = scale, 2**levels
        self.intro = nn.Conv2d(inputs, width, 3, padding=1)
        self.encoders = nn.ModuleList(map(level, features[:-1], encoder_blocks))
        self.downs = nn.ModuleList(nn.Conv2d(size, 2 * size, 2, stride=2) for size in features[:-1])
        self.middle_blks = level(features[-1], middle_blocks)
        self.ups = nn.ModuleList(up(size) for size in features[:0:-1])
        self.decoders = nn.ModuleList(map(level, features[-2::-1], decoder_blocks))
        self.ending = tail(width, channels, scale, bias=True)
        self.skip = skip(inputs, channels)
        self.shuffle = nn.PixelShuffle(scale) if scale > 1 else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Return the restored images, (B, C, H * scale, W * scale)."""
        height, width = (side * self.scale for side in input.shape[-2:])
        dtype = input.dtype
        x = self.intro(pad_to_multiple(input, self.stride, zeros=True)).to(dtype)
        skips = []
        for level, down in zip(self.encoders, self.downs, strict=True):
            skips.append(level(x))
            x = down(skips[-1]).to(dtype)
        x = self.middle_blks(x)
        for up, level in zip(self.ups, self.decoders, strict=True):
            x = level(skips.pop() + up(x).to(dtype))
        return self.skip(upscale(input, self.scale)) + self.shuffle(self.ending(x))[..., :height, :width].to(dtype)
