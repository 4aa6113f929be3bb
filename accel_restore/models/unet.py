"""UNet, the default model.

Shapes: B batch, C image channels, H x W any image size, L levels, F_i = width * multipliers[i] features of level i,
        which works at H_i = H / 2^i, W_i = W / 2^i, S the factor by which the output is larger.

    input (B, C, H, W) -> pad H, W to multiples of 2^(L-1) -> head (B, F_0, H_0, W_0)
        level i on the way down:  blocks[i] residual blocks = skip_i; down        -> (B, F_i+1, H_i+1, W_i+1)
        the last level:           blocks[L-1] residual blocks
        level i on the way up:    up, + skip_i, blocks[i] residual blocks         -> (B, F_i, H_i, W_i)
    -> tail (B, C * S^2, H_0, W_0) -> pixel shuffle, crop (B, C, H * S, W * S) -> + input, enlarged
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from .blocks import conv, is_count, is_counts, pad_to_multiple, require, skip, upscale

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}
LINEAR = 0.5**0.5  # the gain of a convolution without an activation around it, relative to He's


class Block(nn.Module):
    """A residual block x + conv(activation(conv(x))); the sum keeps the dtype of x under autocast."""

    def __init__(self, features: int, gain: float, bias: bool, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(features, features, bias=bias),
            ACTIVATIONS[activation](),
            conv(features, features, gain=gain, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        return x + self.body(x).to(x.dtype)


class UNet(nn.Module):
    """A residual UNet without normalisation: the output is the (enlarged) input plus a learned correction.

    `multipliers` has one entry per level, finest first. `blocks` is the number of residual blocks of a level, on the
    way down and again on the way up: one number for all levels, or one per level. `activation` is "relu" or "gelu".
    With "relu" and without `bias`, twice the input gives twice the output, so noise of untrained strength is removed
    too.

    Measured, with one run each. `bias`: +0.2 dB where the noise always has the same strength (sigma 25, 855 steps),
    -0.08 dB where it varies (sigma 0 to 55, 570 steps). "gelu": +0.1 dB (sigma 25, gray, 855 steps), -0.1 to -0.2 dB in
    shorter runs of the blind recipe and the demo. On CPUs in bf16, 24 features cost about as much as 32.

    Shapes: (B, C, H, W) to (B, C, H * scale, W * scale) of the same dtype, H and W at least 1.
    Raises: ValueError for an argument out of range.
    Source: Ronneberger et al. 2015 (the shape); DRUNet, Zhang et al. 2021 (residual blocks, strided and transposed 2 x
        2 convolutions, added skips); Mohan et al. 2020 (no bias); Hendrycks, Gimpel 2016 (GELU). Deviations: no noise
        map; the residual stream keeps the input's dtype under autocast (rounding it to bfloat16 cost 0.13 dB in 1500
        steps without biases, and nothing in 855 steps of configs/denoise_gray25.yaml); the last convolution of each
        block is scaled down by the number of blocks and the tail nearly to zero, so that a new network is close to the
        identity and yet every weight has a gradient at step 1; biases start at zero; for super-resolution the tail is
        ESPCN's (Shi et al. 2016) and the input is enlarged by bicubic interpolation.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        scale: int = 1,
        input_channels: int | None = None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        blocks: int | Sequence[int] = 2,
        bias: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        require(is_count(channels), "channels", channels, "a whole number of at least 1")
        inputs = channels if input_channels is None else input_channels
        require(is_count(inputs), "input_channels", inputs, "a whole number of at least 1")
        require(is_count(scale), "scale", scale, "a whole number of at least 1")
        require(is_count(width), "width", width, "a whole number of at least 1")
        require(is_counts(multipliers), "multipliers", multipliers, "a list of whole numbers >= 1, one per level")
        depths = [blocks] * len(multipliers) if isinstance(blocks, int) else blocks
        require(
            is_counts(depths) and len(depths) == len(multipliers),
            "blocks",
            blocks,
            f"a whole number of at least 1, or a list of {len(multipliers)} of them, one per level of multipliers",
        )
        require(isinstance(bias, bool), "bias", bias, "true or false")
        require(
            isinstance(activation, str) and activation in ACTIVATIONS,
            "activation",
            activation,
            " or ".join(map(repr, ACTIVATIONS)),
        )

        features = [width * multiplier for multiplier in multipliers]
        steps = list(pairwise(features))  # the (finer, coarser) features at each change of level
        gain = (2 * sum(depths) - depths[-1]) ** -0.5  # all blocks together add the variance of one (relu)

        def level(size: int, depth: int) -> nn.Sequential:
            return nn.Sequential(*(Block(size, gain, bias, activation) for _ in range(depth)))

        self.scale, self.stride = scale, 2 ** len(steps)
        self.head = conv(inputs, features[0], gain=LINEAR, bias=bias)
        self.encoder = nn.ModuleList(map(level, features, depths))
        self.down = nn.ModuleList(conv(fine, coarse, 2, stride=2, gain=LINEAR, bias=bias) for fine, coarse in steps)
        ups = [nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=bias) for fine, coarse in steps]
        for up in ups:
            nn.init.normal_(up.weight, std=up.in_channels**-0.5)  # an output pixel sees one tap of the kernel
            if up.bias is not None:
                nn.init.zeros_(up.bias)
        self.up = nn.ModuleList(ups)
        self.decoder = nn.ModuleList(map(level, features[:-1], depths[:-1]))
        self.tail = conv(features[0], channels * scale**2, gain=0.01, bias=bias)
        self.skip = skip(inputs, channels)
        self.shuffle = nn.PixelShuffle(scale) if scale > 1 else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Return the restored images, (B, C, H * scale, W * scale)."""
        height, width = (side * self.scale for side in input.shape[-2:])
        dtype = input.dtype
        x = self.head(pad_to_multiple(input, self.stride)).to(dtype)
        skips = []
        for level, down in zip(self.encoder[:-1], self.down, strict=True):
            skips.append(level(x))
            x = down(skips[-1]).to(dtype)
        x = self.encoder[-1](x)
        for level, up in zip(reversed(self.decoder), reversed(self.up), strict=True):
            x = level(skips.pop() + up(x).to(dtype))
        return self.skip(upscale(input, self.scale)) + self.shuffle(self.tail(x))[..., :height, :width].to(dtype)
