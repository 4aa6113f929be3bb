"""What one pair of images tells about itself: the measurements that `findings` compares over a whole set.

Arrays are float32 of shape (H, W, C) in [0, 1]. A pair is measured on its whole for PSNR and levels, and on the centre
of its brightness, CROP pixels wide, for everything else.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter

from accel_restore.data_check.near_duplicates import details, luma, shrink, thumbnail, turns

CROP = 448
REACH = 16  # pixels of displacement that are looked for, in each direction
_LEAST = 48  # pixels of a side; on less, the path of one blurred edge passes for a shift
_SMOOTH = partial(gaussian_filter, truncate=3.0)
_BAND = 0.111  # of the variance of white noise, what passes the differences of Gaussians 0.7 and 2
_CERTAIN = 6.0  # standard deviations: the best of 33 x 33 places exceeds four by chance now and then


class Traits(NamedTuple):
    """By how much the input has more of something than gt: each changes its sign where a pair is swapped."""

    noise: float  # in flat areas, root of the difference of variances, in 8-bit levels
    detail: float  # of fine structure; this, level and contrast as logarithms of ratios
    level: float
    contrast: float
    warmth: float  # logarithm of the ratios of red to blue
    lean: float  # skewness of input - gt: rain and haze brighten
    blocks: float  # steps at the borders of JPEG's blocks


@dataclass(frozen=True, slots=True)
class PairFacts:
    """What is kept of a pair (some 2 KB); without an input, what concerns it is nan or empty.

    Units: levels and deviations in [0, 1], dB, pixels of gt.
    """

    gt_mean: float
    gt_std: float
    thumbnail: bytes  # of gt, for `near_duplicates`
    gt_hash: bytes
    input_mean: float = np.nan
    input_std: float = np.nan
    input_hash: bytes = b""
    psnr: float = np.nan  # of the input, enlarged by bicubic interpolation where it is smaller; inf where equal
    shift: tuple[int, int] = (0, 0)  # by how much the input lies lower and further right than gt
    gain: float = 0.0  # of PSNR, brightness and contrast fitted, if it were moved back
    offset: tuple[float, float] = (np.nan, np.nan)  # the shift, certain or not, with fractions; nan without structure
    likeness: float = np.nan  # correlation of the coarse structure of input and gt; nan where there is none
    turned: bool = False  # the input is like gt only when it is mirrored or turned
    gt_noisier: bool = False  # gt is the input plus noise
    traits: Traits | None = None


def examine_pair(input: np.ndarray | None, gt: np.ndarray, scale: int = 1) -> PairFacts:
    """The facts of a pair whose gt is `scale` times larger than its input, or of a clean image alone."""
    cells = shrink(luma(gt))
    facts = {
        "gt_mean": float(gt.mean()),
        "gt_std": float(gt.std()),
        "thumbnail": thumbnail(cells),
        "gt_hash": _hash(gt),
    }
    if input is None:
        return PairFacts(**facts)
    enlarged = input if scale == 1 else _enlarged(input, *gt.shape[:2])
    error = float(np.square(enlarged - gt).mean(dtype=np.float64))
    facts |= {
        "input_mean": float(input.mean()),
        "input_std": float(input.std()),
        "input_hash": _hash(input),
        "psnr": float(-10 * np.log10(error)) if error else np.inf,
    }
    centres = _centre(enlarged), _centre(gt)
    facts["likeness"], facts["turned"] = _likeness(shrink(luma(input)), cells)
    facts["shift"], facts["gain"], facts["offset"] = displacement(*map(luma, centres), scale)
    if scale == 1:
        facts["traits"], facts["gt_noisier"] = _compared(*centres)
    return PairFacts(**facts)


def displacement(
    input: np.ndarray, gt: np.ndarray, scale: int = 1
) -> tuple[tuple[int, int], float, tuple[float, float]]:
    """The (down, right) shift of the input against gt, the PSNR gained by undoing it, and the shift with fractions.

    (0, 0) and 0 unless the shift is certain and matters. Correlating a band of the frequencies leaves no place to
    slow changes of brightness, nor to the noise of single pixels; the gain must show in smoothed pixels too, as
    the best place of a picture blurred by an uneven movement is not where its structure correlates best.

    Shapes: (H, W), of both.
    """
    if min(gt.shape) < _LEAST:
        return (0, 0), 0.0, (np.nan, np.nan)
    reach = min(REACH, min(gt.shape) // 4)
    fine = 1.5 * max(1.0, scale / 2)  # standard deviation in pixels; an enlarged input has nothing finer
    bands = [_SMOOTH(image, fine) - _SMOOTH(image, 4 * max(1.0, scale / 2)) for image in (input, gt)]
    found = _correlations(*bands, reach)
    place = np.unravel_index(found.argmax(), found.shape)
    shift = (int(place[0]) - reach, int(place[1]) - reach)
    offset = tuple(step + _vertex(found, place, axis) for axis, step in enumerate(shift))
    peak, here = (min(float(found[at]), 0.9999) for at in (place, (reach, reach)))
    count = (gt.shape[0] - 2 * reach) * (gt.shape[1] - 2 * reach) / (2 * np.pi * fine**2)  # independent pixels
    if shift == (0, 0) or max(map(abs, offset)) < 0.75 or peak < 0.2 or not _stands_out(peak, here, count):
        return (0, 0), 0.0, offset if peak >= 0.2 else (np.nan, np.nan)
    gain = _gain(input, gt, shift, reach)
    smoothed = _gain(_SMOOTH(input, 1.5), _SMOOTH(gt, 1.5), shift, reach)
    return (shift, gain, offset) if gain >= 0.1 and smoothed >= 0.5 else ((0, 0), 0.0, offset)


def _stands_out(peak: float, here: float, count: float) -> bool:
    """Whether the correlation `peak` at another place exceeds that of `here` by more than chance and sliding edges.

    Source: Fisher's transformation; the noise of two near places is shared in so far as their structure is.
    """
    lost = 1 - here / peak
    deviation = np.sqrt(2 * min(max(lost, 1e-3), 1.0) / max(count - 3, 1.0))
    return lost >= 0.01 and np.arctanh(peak) - np.arctanh(max(here, -0.9999)) > _CERTAIN * deviation


def _correlations(input: np.ndarray, gt: np.ndarray, reach: int) -> np.ndarray:
    """The correlation of gt, cut by `reach`, with the input at each displacement up to `reach`.

    Shapes: (H, W) of both; (2 reach + 1, 2 reach + 1), no displacement in the middle.
    """
    height, width = gt.shape
    part = gt[reach : height - reach, reach : width - reach]
    part = part - part.mean()
    input = input - input.mean()
    size = [fft.next_fast_len(side, True) for side in input.shape]
    product = fft.irfft2(fft.rfft2(input, size) * np.conj(fft.rfft2(part, size)), size)
    product = product[: 2 * reach + 1, : 2 * reach + 1]
    sums, squares = (_window_sums(values, part.shape) for values in (input, input**2))
    energy = np.maximum(squares - sums**2 / part.size, 0) * np.square(part).sum(dtype=np.float64)
    return np.where(energy > (part.size * 1e-6) ** 2, product / np.sqrt(np.maximum(energy, 1e-20)), 0.0)


def _window_sums(values: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The sums of `values` (H, W) in all windows of a size."""
    height, width = window
    total = np.pad(values.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    rows = total[height:] - total[:-height]
    return rows[:, width:] - rows[:, :-width]


def _vertex(values: np.ndarray, place: tuple, axis: int) -> float:
    """Where, from -0.5 to 0.5, the parabola through a maximum and its neighbours peaks; 0 at the border."""
    line = np.moveaxis(values, axis, 0)[:, place[1 - axis]]
    middle = place[axis]
    if not 0 < middle < len(line) - 1:
        return 0.0
    before, top, after = line[middle - 1 : middle + 2]
    bend = before + after - 2 * top
    return float((before - after) / (2 * bend)) if bend < 0 else 0.0


def _gain(input: np.ndarray, gt: np.ndarray, shift: tuple[int, int], reach: int) -> float:
    """The PSNR in dB that is gained by moving the input back, brightness and contrast fitted at both places."""
    height, width = gt.shape
    part = gt[reach : height - reach, reach : width - reach]
    errors = []
    for down, right in ((0, 0), shift):
        seen = input[reach + down : height - reach + down, reach + right : width - reach + right]
        errors.append(1 - max(_correlation(seen, part), 0.0) ** 2)
    return float(10 * np.log10(max(errors[0], 1e-9) / max(errors[1], 1e-9)))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = np.sqrt(np.square(one).sum(dtype=np.float64) * np.square(other).sum(dtype=np.float64))
    return float((one * other).sum(dtype=np.float64) / size) if size > 0 else 0.0


def _likeness(input: np.ndarray, gt: np.ndarray) -> tuple[float, bool]:
    """The correlation of the details of two shrunken images, and whether it takes a flip or a turn to be high."""
    one, other = details(input), details(gt)
    if other.std() < max(1.5 / 255, one.std() / 2):  # noise would decide
        return np.nan, False
    likeness = _correlation(one, other)
    return likeness, likeness < 0.4 and max(_correlation(turned, other) for turned in turns(one)) > 0.7


def _compared(input: np.ndarray, gt: np.ndarray) -> tuple[Traits, bool]:
    """Traits of a pair of equal size, (H, W, C), and whether gt is the input plus noise.

    The fine band of frequencies is measured in units of the contrast, that darkness may not pass for a lack of noise.
    """
    warmth = _warmth(input) - _warmth(gt)
    input, gt = luma(input), luma(gt)
    smooth = [_SMOOTH(image, 2) for image in (input, gt)]
    contrast = [float(image.std()) + 0.004 for image in smooth]
    one, other = (
        (_SMOOTH(image, 0.7) - slow) / scale for image, slow, scale in zip((input, gt), smooth, contrast, strict=True)
    )
    activity = _tiles(smooth[0] / contrast[0] + smooth[1] / contrast[1]).std(1)
    flattest = np.argsort(activity)[: max(4, len(activity) // 5)]
    variances = [np.square(_tiles(fine)[flattest]).mean(1) for fine in (one, other)]
    noise = [float(np.sqrt(np.median(variance))) for variance in variances]
    energy = [float(np.square(fine).mean()) + 1e-8 for fine in (one, other)]
    shared = float((one * other).mean())
    excess = _certain(variances[0] * contrast[0] ** 2 - variances[1] * contrast[1] ** 2) / _BAND
    difference = input - gt
    difference -= difference.mean()
    traits = Traits(
        noise=float(np.sign(excess) * np.sqrt(abs(excess)) * 255),
        detail=float(np.log(energy[0] / energy[1]) / 2),
        level=float(np.log((input.mean() + 0.02) / (gt.mean() + 0.02))),
        contrast=float(np.log(contrast[0] / contrast[1])),
        warmth=warmth,
        lean=float(np.clip((difference * difference * difference).mean() / max(difference.std(), 1e-4) ** 3, -3, 3)),
        blocks=_steps(input) - _steps(gt),
    )
    # Noise in gt alone leaves the slope of gt on the input at 1 and lowers that of the input on gt. A blurred input
    # has the first above 1; compression lowers both.
    slope, inverse = shared / energy[0], shared / energy[1]
    visible = noise[1] * contrast[1] > 1.5 / 255 * np.sqrt(_BAND)
    noisier = noise[1] + 0.003 > 1.5 * (noise[0] + 0.003)
    return traits, bool(visible and noisier and 0.92 < slope < 1.1 and slope - inverse > 0.07)


def _certain(values: np.ndarray) -> float:
    """The median, brought nearer to 0 by two of its standard errors."""
    middle = float(np.median(values))
    error = 1.25 * 1.4826 * float(np.median(np.abs(values - middle))) / np.sqrt(len(values))
    return float(np.sign(middle)) * max(abs(middle) - 2 * error, 0.0)


def _warmth(image: np.ndarray) -> float:
    return float(np.log((image[..., 0].mean() + 0.02) / (image[..., -1].mean() + 0.02)))


def _tiles(image: np.ndarray, side: int = 8) -> np.ndarray:
    """The tiles (N, side²) of an image (H, W)."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.swapaxes(1, 2).reshape(rows * columns, side * side)


def _steps(image: np.ndarray) -> float:
    """The logarithm of how much larger steps between neighbours are at every eighth pixel than elsewhere."""
    result = 0.0
    for axis in (0, 1):
        steps = np.abs(np.diff(image, axis=axis)).mean(1 - axis)
        border = np.arange(len(steps)) % 8 == 7
        result += float(np.log((steps[border].mean() + 0.002) / (steps[~border].mean() + 0.002)))
    return result


def _centre(image: np.ndarray) -> np.ndarray:
    """The middle CROP pixels of each side, cut at a border of JPEG's blocks."""
    top, left = (max(0, side - CROP) // 16 * 8 for side in image.shape[:2])
    return image[top : top + CROP, left : left + CROP]


def _enlarged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    planes = [Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(image.shape[2])]
    return np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes], axis=2)


def _hash(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image), digest_size=16, key=str(image.shape).encode()).digest()
