"""The degradations of `registry.DEGRADATIONS`: pure functions of one image and its keyed draws.

Images are (C, H, W) of any size and device, nominally in [0, 1]. Values may overshoot: only jpeg and quantize clip and
round. Images have any number of channels; jpeg and noise of the luma need 1 or 3. A range is a number or a pair
[low, high] that is drawn from uniformly for each sample. Borders are mirrored.
"""

import io
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from accel_restore.data.degradations.noise import normals, to_device
from accel_restore.data.degradations.pipeline import OF_BATCH, Size, Steps, numbers, one_of
from accel_restore.utils.rng import KeyedRandom, Range, ends

Amount = Annotated[Range, numbers(0)]
Positive = Annotated[Range, numbers(0, above=True)]
Fraction = Annotated[Range, numbers(0, 1)]
Pixels = Annotated[Range, numbers(0, 200)]
Degrees = Annotated[Range, numbers(-360, 360)]
Probability = Annotated[float, numbers(0, 1, pair=False)]
Quality = Annotated[Range, numbers(1, 100, whole=True)]
Method = Annotated[str | Sequence[str], one_of("area", "bilinear", "bicubic", several=True)]


def gaussian_noise(image: Tensor, random: KeyedRandom, *, sigma: Amount = 25, gray: Probability = 0.0) -> Tensor:
    """Add white Gaussian noise.

    Units: sigma in 8-bit levels; gray: probability that all channels share the noise.
    Source: the protocol of the published gray and colour denoising tables (Zhang et al., DnCNN, 2017).
    """
    strength = random.uniform(sigma) / 255
    return image + random.normal(image[:1] if random.chance(gray) else image, strength)


def _gaussian_noise_of_batch(
    images: Tensor, randoms: Sequence[KeyedRandom], *, sigma: Range = 25, gray: float = 0.0
) -> Tensor:
    """`gaussian_noise` of images (B, C, H, W), each with its own draws; the same on any device."""
    device, dtype = images.device, images.dtype
    strengths = to_device([random.uniform(sigma) / 255 for random in randoms], device, dtype)
    shared = [random.chance(gray) for random in randoms]
    keys = to_device([random.signed() for random in randoms], device, torch.int64)
    noise = normals(keys, images.shape[1:], dtype)
    if any(shared):
        noise = torch.where(to_device(shared, device, torch.bool).view(-1, 1, 1, 1), noise[:, :1], noise)
    return images + strengths.view(-1, 1, 1, 1) * noise


OF_BATCH[gaussian_noise] = _gaussian_noise_of_batch


def poisson_noise(
    image: Tensor, random: KeyedRandom, *, peak: Positive = 256, strength: Amount = 1.0, gray: Probability = 0.0
) -> Tensor:
    """Add photon noise: white noise that grows with the square root of the light.

    Units: peak: photons at white; strength: factor on the noise; gray: probability that all channels share the noise of
    their luma.
    Source: Wang et al., Real-ESRGAN, 2021; here with `strength`, and a peak of 256 for 8-bit images.
    """
    if gray:
        _require_colours(image)
    photons, factor = random.uniform(peak), random.uniform(strength)
    light = (_luma(image) if random.chance(gray) else image).clamp(min=0)
    counted = torch.poisson(light * photons, generator=random.generator(image.device)) / photons
    return image + factor * (counted - light)


def speckle(image: Tensor, random: KeyedRandom, *, sigma: Amount = 0.1, gray: Probability = 0.0) -> Tensor:
    """Multiply by 1 plus white Gaussian noise.

    Units: sigma relative to the light; gray: probability that all channels share the noise.
    """
    strength = random.uniform(sigma)
    return image + image * random.normal(image[:1] if random.chance(gray) else image, strength)


def jpeg(image: Tensor, random: KeyedRandom, *, quality: Quality = 50) -> Tensor:
    """Clip, round to 8 bits and compress as JPEG with colours at half the resolution.

    Units: quality from 1 to 100, as in libjpeg.
    """
    _require_colours(image)
    levels = _levels(image).to("cpu", torch.uint8).movedim(0, 2)
    file = io.BytesIO()
    Image.fromarray(levels.squeeze(2).numpy()).save(file, "JPEG", quality=random.integer(*_whole_ends(quality)))
    coded = torch.from_numpy(np.array(Image.open(file))).view(levels.shape).movedim(2, 0)
    return coded.to(image.device, image.dtype, memory_format=torch.contiguous_format) / 255


jpeg.__dict__["on_host"] = True  # works only on the CPU


def quantize(image: Tensor, random: KeyedRandom) -> Tensor:
    """Clip to [0, 1] and round to 8 bits, as in a file."""
    return _levels(image) / 255


def gaussian_blur(
    image: Tensor,
    random: KeyedRandom,
    *,
    sigma: Pixels = 1.5,
    sigma_y: Annotated[Range | None, numbers(0, 200)] = None,
    angle: Degrees = 0,
    beta: Positive = 1.0,
    profile: Annotated[str, one_of("gaussian", "plateau")] = "gaussian",
    radius: Annotated[Range | None, numbers(1, 100, whole=True)] = None,
) -> Tensor:
    """Blur by a Gaussian or one of its generalisations, where d² is the squared distance in units of sigma.

    Units: sigma in pixels along `angle` (degrees, counter-clockwise from horizontal), sigma_y across it (None: sigma);
    profile: gaussian is exp(−d^(2 beta) / 2), plateau is 1 / (1 + d^(2 beta)); radius of the kernel in pixels (None:
    four sigma).
    Source: Liu et al., "Estimating generalized Gaussian blur kernels", 2020, as in Wang et al., Real-ESRGAN, 2021.
    """
    along = max(random.uniform(sigma), 1e-3)
    across = along if sigma_y is None else max(random.uniform(sigma_y), 1e-3)
    exponent = random.uniform(beta)
    reach = math.ceil(4 * max(along, across)) if radius is None else random.integer(*_whole_ends(radius))
    x, y = _grid(reach, random.uniform(angle))
    distance = ((x / along).square() + (y / across).square()) ** exponent
    kernel = (-distance / 2).exp() if profile == "gaussian" else 1 / (1 + distance)
    if sigma_y is None and exponent == 1 and profile == "gaussian":  # separable
        return _filtered(_filtered(image, kernel.sum(0, keepdim=True)), kernel.sum(1, keepdim=True))
    return _filtered(image, kernel)


def motion_blur(image: Tensor, random: KeyedRandom, *, length: Pixels = 15, angle: Degrees = (0, 180)) -> Tensor:
    """Blur along a straight line.

    Units: length in pixels; angle in degrees, counter-clockwise from horizontal.
    """
    return _filtered(image, _line(random.uniform(length), random.uniform(angle)))


def sinc(
    image: Tensor,
    random: KeyedRandom,
    *,
    cutoff: Annotated[Range, numbers(0, 1, above=True)] = 0.5,
    radius: Annotated[Range, numbers(1, 100, whole=True)] = 10,
) -> Tensor:
    """Remove the frequencies above a circular cut-off: edges ring and overshoot.

    Units: cutoff as a fraction of the highest frequency, half a period per pixel; radius of the kernel in pixels.
    Source: Wang et al., Real-ESRGAN, 2021.
    """
    omega, reach = math.pi * random.uniform(cutoff), random.integer(*_whole_ends(radius))
    distance = torch.hypot(*_grid(reach, 0.0))
    kernel = omega * torch.special.bessel_j1(omega * distance) / (2 * math.pi * distance)
    kernel[reach, reach] = omega**2 / (4 * math.pi)  # the limit at distance 0
    return _filtered(image, kernel)


def resize(
    image: Tensor,
    random: KeyedRandom,
    *,
    scale: Annotated[Range, numbers(0, 16, above=True)] = (0.5, 1.5),
    method: Method = ("area", "bilinear", "bicubic"),
    base: Annotated[str, one_of("image", "input")] = "image",
    size: Size,
) -> Tensor:
    """Resize, antialiased when reducing; from a list of methods, one is drawn.

    Units: scale: new side / side of the image, or with `base: input` / side of the final input.
    """
    factor = random.uniform(scale)
    height, width = size if base == "input" else image.shape[1:]
    return _resized(image, (max(1, round(height * factor)), max(1, round(width * factor))), _drawn(method, random))


def downscale(image: Tensor, random: KeyedRandom, *, method: Method = "bicubic", size: Size) -> Tensor:
    """Resize to the final input, gt / data.scale; from a list of methods, one is drawn.

    Source: bicubic is MATLAB's imresize (Keys' kernel with a = −0.5, antialiased, mirrored borders), used for the
    published super-resolution tables, if the image's sides are multiples of the input's. Deviation: for 8-bit images
    MATLAB also rounds the result of the first of its two passes, which mostly changes the result by one level.
    """
    factors = [side // new for side, new in zip(image.shape[1:], size, strict=True)]
    if tuple(factor * new for factor, new in zip(factors, size, strict=True)) != tuple(image.shape[1:]):
        return _resized(image, size, _drawn(method, random))
    # `interpolate` ignores pixels beyond the border; its kernel reaches 2 new pixels.
    wide = _mirrored(image, [3 * factor for factor in factors], repeat_edge=True)
    return _resized(wide, (size[0] + 6, size[1] + 6), _drawn(method, random))[:, 3:-3, 3:-3]


def rain(
    image: Tensor,
    random: KeyedRandom,
    *,
    density: Fraction = 0.003,
    length: Pixels = 20,
    angle: Degrees = (70, 110),
    strength: Fraction = 0.7,
) -> Tensor:
    """Add bright streaks of one direction: noise, blurred along a line, in screen blending.

    Units: density: fraction of pixels with a drop; length in pixels; angle in degrees, counter-clockwise from
    horizontal; strength of the brightest streak, 1 is white.
    """
    part = random.uniform(density)
    draws = torch.empty_like(image[:1]).uniform_(generator=random.generator(image.device))
    drops = (1 - draws / max(part, 1e-9)).clamp(min=0)  # brightness uniform in (0, 1]
    line = _line(random.uniform(length), random.uniform(angle))
    streaks = (_filtered(drops, line) * line.sum() / line.max()).clamp(max=1)  # a single drop keeps its brightness
    return image + random.uniform(strength) * streaks * (1 - image)


def low_light(image: Tensor, random: KeyedRandom, *, gain: Positive = 0.5, gamma: Positive = 2.0) -> Tensor:
    """Reduce the light: gain · image^gamma; negative values become 0.

    Source: Lv et al., MBLLEN, 2018; it draws gain from [0.5, 1] and gamma from [1.5, 5].
    """
    return random.uniform(gain) * image.clamp(min=0) ** random.uniform(gamma)


def sequence(image: Tensor, random: KeyedRandom, *, of: Steps, size: Size) -> Tensor:
    """Apply all steps in order: a group, for use in another composition or with a probability."""
    for position, step in enumerate(of):
        image = step(image, random.split(position), size)
    return image


def random_order(image: Tensor, random: KeyedRandom, *, of: Steps, size: Size) -> Tensor:
    """Apply all steps in an order drawn for each sample."""
    for position in random.permutation(len(of)):
        image = of[position](image, random.split(position), size)
    return image


def choice(image: Tensor, random: KeyedRandom, *, of: Steps, weights: list[float] | None = None, size: Size) -> Tensor:
    """Apply one of the steps, drawn for each sample; weights: relative probabilities (None: equal)."""
    position = random.choice(range(len(of)), weights)
    return of[position](image, random.split(position), size)


def _whole_ends(span: Range) -> tuple[int, int]:
    low, high = ends(span)
    return int(low), int(high)


def _drawn(method: str | Sequence[str], random: KeyedRandom) -> str:
    return random.choice([method] if isinstance(method, str) else method)


def _levels(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round()


def _require_colours(image: Tensor) -> None:
    if len(image) not in (1, 3):
        raise ValueError(f"needs images of 1 or 3 channels, not {len(image)}")


def _luma(image: Tensor) -> Tensor:
    """(1, H, W): the BT.601 luma of a colour image, or the gray image itself."""
    if len(image) == 1:
        return image
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=image.dtype, device=image.device)
    return (image * weights.view(3, 1, 1)).sum(0, keepdim=True)


def _grid(radius: int, angle: float) -> tuple[Tensor, Tensor]:
    """Coordinates of each pixel of a (2 radius + 1)² kernel, along and across a direction; y points up."""
    places, turn = torch.arange(-radius, radius + 1, dtype=torch.float64), math.radians(angle)
    x, y = places[None, :], -places[:, None]
    return x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)


def _line(length: float, angle: float) -> Tensor:
    """The kernel of an antialiased line, one pixel wide: for odd lengths n at angle 0, n equal weights."""
    along, across = _grid(math.ceil((length + 1) / 2), angle)
    return ((length + 1) / 2 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp(min=0)


def _mirrored(image: Tensor, margins: list[int], repeat_edge: bool = False) -> Tensor:
    """The image with mirrored margins (rows, columns), which may be wider than the image."""
    for dim, margin in enumerate(margins, start=1):
        side = image.shape[dim]
        period = 2 * side if repeat_edge else max(2 * side - 2, 1)
        places = torch.arange(-margin, side + margin, device=image.device) % period
        image = image.index_select(dim, torch.minimum(places, period - repeat_edge - places))
    return image


def _filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Each channel convolved with a point-symmetric kernel of odd sides, scaled to a sum of 1."""
    kernel = (kernel / kernel.sum()).to(image.device, image.dtype)
    wide = _mirrored(image, [side // 2 for side in kernel.shape])
    return F.conv2d(wide[None], kernel.expand(len(image), 1, -1, -1), groups=len(image))[0]


def _resized(image: Tensor, size: Size, method: str) -> Tensor:
    if tuple(image.shape[1:]) == tuple(size):
        return image
    return F.interpolate(image[None], size, mode=method, antialias=method != "area")[0]
