"""UNet, the default model: a plain module that knows nothing of training, devices or processes.

Shapes: B batch, C image channels, H x W image size, s the total stride, F_i = width * multipliers[i] features of level i.

    input (B, C, H, W) -> pad to multiples of s -> head (B, F_0, H/stem, W/stem) -> levels down and up -> tail -> + input
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(in_features: int, out_features: int, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A bias-free convolution with He initialisation times `gain`."""
    layer = nn.Conv2d(in_features, out_features, kernel, stride, padding=(kernel - stride) // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


class Block(nn.Module):
    """Residual block x + conv(relu(conv(x))); the sum keeps the dtype of x, whatever autocast makes of the convolutions."""

    def __init__(self, features: int, gain: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(features, features), nn.ReLU(inplace=True), conv(features, features, gain=gain))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Up(nn.Module):
    """Doubles height and width with a transposed 2 x 2 convolution."""


class UNet(nn.Module):
    """Bias-free residual UNet."""

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        blocks: int | Sequence[int] = 2,
        stem: int = 1,
    ) -> None:
        super().__init__()
        n = len(multipliers)
        blocks = [blocks] * n if isinstance(blocks, int) else list(blocks)
        feats = [width * m for m in multipliers]
        gain = (2 * sum(blocks)) ** -0.5
        self.stride = stem * 2 ** (n - 1)
        run = lambda i: nn.Sequential(*(Block(feats[i], gain) for _ in range(blocks[i])))
        self.head = conv(channels, feats[0], 3 if stem == 1 else stem, stem)
        self.encoder = nn.ModuleList(run(i) for i in range(n))
        self.decoder = nn.ModuleList(run(i) for i in range(n - 1))
        self.down = nn.ModuleList(conv(feats[i], feats[i + 1], 2, 2) for i in range(n - 1))
        self.up = nn.ModuleList(nn.ConvTranspose2d(feats[i + 1], feats[i], 2, 2, bias=False) for i in range(n - 1))
        if stem == 1:
            self.tail = conv(feats[0], channels, gain=0.01)
        else:
            self.tail = nn.Sequential(conv(feats[0], channels * stem**2, gain=0.01), nn.PixelShuffle(stem))

    def forward(self, input: Tensor) -> Tensor:
        h, w = input.shape[-2:]
        dtype = input.dtype
        pad = (0, -w % self.stride, 0, -h % self.stride)
        mode = "reflect" if pad[1] < w and pad[3] < h else "replicate"
        x = F.pad(input, pad, mode=mode) if any(pad) else input
        x = self.head(x).to(dtype)
        skips = []
        for level, down in zip(self.encoder[:-1], self.down):
            x = level(x)
            skips.append(x)
            x = down(x).to(dtype)
        x = self.encoder[-1](x)
        for level, up, skip in zip(reversed(self.decoder), reversed(self.up), reversed(skips)):
            x = level(skip + up(x))
        return input + self.tail(x)[..., :h, :w].to(dtype)
