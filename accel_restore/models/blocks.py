"""What the models share: one check of constructor arguments, one initialised convolution, bicubic enlarging.

Shapes: (B, F, H, W) features in, (B, F', H', W') out.
"""

from torch import Tensor, nn
from torch.nn import functional as F


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raises ValueError naming the argument, its value and what is allowed, unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}")


def is_count(value: object, least: int = 1) -> bool:
    """True for a whole number of at least `least`; True and False are no numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def upscale(images: Tensor, scale: int) -> Tensor:
    """The images, `scale` times as high and wide by bicubic interpolation: what super-resolution is measured against.

    Shapes: (B, C, H, W) to (B, C, H * scale, W * scale), not clamped.
    Source: Keys 1981 with a = -0.5, as MATLAB's imresize (`antialias` chooses it; it is -0.75 otherwise).
    """
    return images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bicubic", antialias=True)


def conv(
    in_features: int, out_features: int, kernel: int = 3, *, stride: int = 1, gain: float = 1.0, bias: bool = False
) -> nn.Conv2d:
    """A convolution that keeps the size (divided by its stride), He-normal times `gain`, with a zero bias or none.

    Source: He et al. 2015 (fan-in, ReLU): the signal keeps its variance through a stack without normalisation.
    """
    layer = nn.Conv2d(in_features, out_features, kernel, stride, padding=(kernel - stride + 1) // 2, bias=bias)
    nn.init.normal_(layer.weight, std=gain * (2.0 / (in_features * kernel**2)) ** 0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
