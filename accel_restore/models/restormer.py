"""Restormer, a transformer with attention between channels.

Shapes: B batch, C image channels, H x W any image size, F = width features at the finest of 4 levels, S the factor
        by which the output is larger; level i = 1 ... 4 works at H / 2^(i-1), W / 2^(i-1).

    input (B, C, H, W) -> pad H, W to multiples of 8 -> patch_embed (B, F, ...)
        encoder_level1, 2, 3:   blocks[i-1] blocks of F * 2^(i-1) features = skip_i; down
        latent:                 blocks[3] blocks of 8F
        decoder_level3, 2:      up, with skip_i, reduce_chan_leveli, blocks[i-1] blocks of F * 2^(i-1)
        decoder_level1:         up, with skip_1, blocks[0] blocks of 2F; refinement: refinement_blocks more
    -> output (B, C * S^2, ...) -> pixel shuffle, crop (B, C, H * S, W * S) -> + input, enlarged
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import ChannelNorm, is_count, is_counts, pad_to_multiple, require, skip, tail, upscale

EPS = 1e-5


class BiasFreeNorm(nn.Module):
    """Divides the features of every pixel by their standard deviation, (B, F, H, W) to the same; their mean stays."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised features."""
        variance = x.var(1, keepdim=True, correction=0)
        return x * (variance + EPS).rsqrt() * self.weight[:, None, None]


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "with_bias": lambda features: ChannelNorm(features, eps=EPS),
    "bias_free": BiasFreeNorm,
}


def named(**modules: nn.Module) -> nn.Sequential:
    """Return the modules in sequence, under the names that they have in the published weights."""
    return nn.Sequential(OrderedDict(modules))


def pointwise(in_features: int, out_features: int, bias: bool) -> nn.Conv2d:
    """Return a 1 x 1 convolution."""
    return nn.Conv2d(in_features, out_features, 1, bias=bias)


def depthwise(features: int, bias: bool) -> nn.Conv2d:
    """Return a 3 x 3 convolution of each feature separately."""
    return nn.Conv2d(features, features, 3, padding=1, groups=features, bias=bias)


class Attention(nn.Module):
    """Attention between the channels of each head. Its cost is linear in the number of pixels, not quadratic."""

    def __init__(self, features: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = pointwise(features, 3 * features, bias)
        self.qkv_dwconv = depthwise(3 * features, bias)
        self.project_out = pointwise(features, features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        height, width = x.shape[-2:]
        parts = self.qkv_dwconv(self.qkv(x)).flatten(2).chunk(3, dim=1)
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in parts)  # (B, heads, F / heads, H * W)
        # Norms are sums over all pixels. They take the precision of x, as q and k have a lower one under autocast.
        q, k = F.normalize(q.to(x.dtype), dim=-1), F.normalize(k.to(x.dtype), dim=-1)
        weights = (q @ k.mT * self.temperature).softmax(dim=-1)  # (B, heads, F / heads, F / heads)
        return self.project_out((weights @ v).flatten(1, 2).unflatten(2, (height, width)))


class FeedForward(nn.Module):
    """A layer on the features of a pixel and its neighbours; one half is gated by the GELU of the other."""

    def __init__(self, features: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.project_in = pointwise(features, 2 * hidden, bias)
        self.dwconv = depthwise(2 * hidden, bias)
        self.project_out = pointwise(hidden, features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward layer. Each is added to its input, in the dtype of the input."""

    def __init__(self, features: int, heads: int, expansion: float, bias: bool, layer_norm: str) -> None:
        super().__init__()
        self.norm1 = named(body=NORMS[layer_norm](features))
        self.attn = Attention(features, heads, bias)
        self.norm2 = named(body=NORMS[layer_norm](features))
        self.ffn = FeedForward(features, int(features * expansion), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        x = x + self.attn(self.norm1(x)).to(x.dtype)
        return x + self.ffn(self.norm2(x)).to(x.dtype)


def down(features: int) -> nn.Sequential:
    """Return a layer to twice the features at half the size."""
    return named(body=nn.Sequential(nn.Conv2d(features, features // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)))


def up(features: int) -> nn.Sequential:
    """Return a layer to half the features at twice the size."""
    return named(body=nn.Sequential(nn.Conv2d(features, 2 * features, 3, padding=1, bias=False), nn.PixelShuffle(2)))


class Restormer(nn.Module):
    """A UNet of transformer blocks: the output is the (enlarged) input plus a learned correction.

    `blocks` and `heads` have one entry per level, finest first. The default is the network published for deraining and
    deblurring. The networks for denoising have `layer_norm: bias_free`.

    Shapes: (B, C, H, W) to (B, C, H * scale, W * scale) of the same dtype, H and W at least 1.
    Raises: ValueError for an argument out of range.
    Source: Zamir et al. 2022, "Restormer: Efficient Transformer for High-Resolution Image Restoration". At scale 1 the
        names and shapes of the parameters, the arithmetic and the initial values equal the published networks (except
        the one for dual-pixel images), so their weights load. Deviations: any image size is accepted, and padded here
        by reflection rather than by the caller; the residual stream and the normalisation of the attention keep the
        input's dtype under autocast, as in the UNet (rounding them to bfloat16 made no difference beyond chance in 475
        steps of a small network); for super-resolution the tail is ESPCN's (Shi et al. 2016) and the input is enlarged
        by bicubic interpolation.
    """

    def __init__(  # noqa: PLR0913  # the configuration keys
        self,
        *,
        channels: int = 3,
        scale: int = 1,
        input_channels: int | None = None,
        width: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion: float = 2.66,
        bias: bool = False,
        layer_norm: str = "with_bias",
    ) -> None:
        super().__init__()
        four = "a list of 4 whole numbers >= 1, one per level"
        require(is_count(channels), "channels", channels, "a whole number of at least 1")
        inputs = channels if input_channels is None else input_channels
        require(is_count(inputs), "input_channels", inputs, "a whole number of at least 1")
        require(is_count(scale), "scale", scale, "a whole number of at least 1")
        require(is_count(width) and width % 2 == 0, "width", width, "an even whole number of at least 2")
        require(is_counts(blocks) and len(blocks) == 4, "blocks", blocks, four)
        require(is_count(refinement_blocks), "refinement_blocks", refinement_blocks, "a whole number of at least 1")
        require(is_counts(heads) and len(heads) == 4, "heads", heads, four)
        sizes = [width * 2**i for i in range(4)]
        shares = all(size % number == 0 for size, number in zip(sizes, heads, strict=True))
        require(shares, "heads", heads, f"divisors of the features of the levels, {sizes}")
        number = isinstance(ffn_expansion, int | float) and not isinstance(ffn_expansion, bool)
        require(number and 1 <= ffn_expansion <= 16, "ffn_expansion", ffn_expansion, "a number from 1 to 16")
        require(isinstance(bias, bool), "bias", bias, "true or false")
        require(layer_norm in NORMS, "layer_norm", layer_norm, " or ".join(map(repr, NORMS)))

        def level(index: int, depth: int, features: int) -> nn.Sequential:
            rest = heads[index], ffn_expansion, bias, layer_norm
            return nn.Sequential(*(TransformerBlock(features, *rest) for _ in range(depth)))

        self.scale = scale
        self.patch_embed = named(proj=nn.Conv2d(inputs, width, 3, padding=1, bias=False))
        self.encoder_level1 = level(0, blocks[0], sizes[0])
        self.down1_2 = down(sizes[0])
        self.encoder_level2 = level(1, blocks[1], sizes[1])
        self.down2_3 = down(sizes[1])
        self.encoder_level3 = level(2, blocks[2], sizes[2])
        self.down3_4 = down(sizes[2])
        self.latent = level(3, blocks[3], sizes[3])
        self.up4_3 = up(sizes[3])
        self.reduce_chan_level3 = pointwise(sizes[3], sizes[2], bias)
        self.decoder_level3 = level(2, blocks[2], sizes[2])
        self.up3_2 = up(sizes[2])
        self.reduce_chan_level2 = pointwise(sizes[2], sizes[1], bias)
        self.decoder_level2 = level(1, blocks[1], sizes[1])
        self.up2_1 = up(sizes[1])
        self.decoder_level1 = level(0, blocks[0], sizes[1])  # the finest level is not reduced and keeps 2F
        self.refinement = level(0, refinement_blocks, sizes[1])
        self.output = tail(sizes[1], channels, scale, bias)
        self.skip = skip(inputs, channels)
        self.shuffle = nn.PixelShuffle(scale) if scale > 1 else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Return the restored images, (B, C, H * scale, W * scale)."""
        height, width = (side * self.scale for side in input.shape[-2:])
        dtype = input.dtype
        skip1 = self.encoder_level1(self.patch_embed(pad_to_multiple(input, 8)).to(dtype))
        skip2 = self.encoder_level2(self.down1_2(skip1).to(dtype))
        skip3 = self.encoder_level3(self.down2_3(skip2).to(dtype))
        x = self.latent(self.down3_4(skip3).to(dtype))
        x = self.reduce_chan_level3(torch.cat([self.up4_3(x).to(dtype), skip3], 1))
        x = self.decoder_level3(x.to(dtype))
        x = self.reduce_chan_level2(torch.cat([self.up3_2(x).to(dtype), skip2], 1))
        x = self.decoder_level2(x.to(dtype))
        x = self.decoder_level1(torch.cat([self.up2_1(x).to(dtype), skip1], 1))
        x = self.output(self.refinement(x))
        return self.skip(upscale(input, self.scale)) + self.shuffle(x)[..., :height, :width].to(dtype)
