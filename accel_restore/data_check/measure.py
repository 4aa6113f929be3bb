"""Measurements of one pair of images, which `findings` compares over a whole set.

Images are float32 arrays (H, W, C) in [0, 1]. PSNR and levels are measured on whole images, everything else on the luma
of the central CROP x CROP pixels.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy import fft
from scipy.ndimage import gaussian_filter

from accel_restore.data_check.direction import find_direction
from accel_restore.data_check.near_duplicates import details, luma, shrink, thumbnail, turns
from accel_restore.data_check.overlaps import corners
from accel_restore.models.blocks import upscale

CROP = 448
REACH = 16  # largest displacement in pixels that is searched for, in each direction
_MIN_SIDE = 48  # pixels; in smaller images, a single blurred edge looks like a shift
_SMOOTH = partial(gaussian_filter, truncate=3.0)
_BAND = 0.111  # share of white noise's variance that passes the difference of Gaussians with sigma 0.7 and 2
_SIGNIFICANT = 6.0  # standard deviations; the best of 33 x 33 places sometimes exceeds 4 by chance


class Traits(NamedTuple):
    """Differences between input and gt; each changes its sign if the pair is swapped."""

    noise: float  # in flat areas: root of the difference of variances, in 8-bit levels
    detail: float  # fine structure, as the logarithm of a ratio, like level and contrast
    level: float
    contrast: float
    warmth: float  # logarithm of the ratio of red to blue
    skewness: float  # of input - gt: rain and haze brighten
    blocks: float  # steps at the borders of JPEG blocks


@dataclass(frozen=True, slots=True)
class PairFacts:
    """Measurements of a pair, about 5 KB; without an input, those of the input are NaN or empty.

    Units: levels and standard deviations in [0, 1], PSNR in dB, shifts in pixels of gt.
    """

    gt_mean: float
    gt_std: float
    thumbnail: bytes  # of gt, for `near_duplicates`
    corners: bytes  # of gt, for `overlaps`
    gt_hash: bytes
    gt_colour: float  # mean distance of the channels; 0 for gray
    input_mean: float = np.nan
    input_std: float = np.nan
    input_hash: bytes = b""
    input_colour: float = np.nan
    psnr: float = np.nan  # of the enlarged input; inf if it equals gt
    shift: tuple[int, int] = (0, 0)  # of the input against gt: down, right
    gain: float = 0.0  # of PSNR by undoing the shift, with brightness and contrast fitted
    offset: tuple[float, float] = (np.nan, np.nan)  # sub-pixel shift, significant or not; NaN without structure
    similarity: float = np.nan  # correlation of the coarse structure of input and gt; NaN without structure
    turned: bool = False  # the input resembles gt only after a flip or rotation
    gt_noisier: bool = False  # gt is the input plus noise
    direction: int = 0  # see `find_direction`
    traits: Traits | None = None


def examine_pair(input: np.ndarray | None, gt: np.ndarray, scale: int = 1) -> PairFacts:
    """Measure a pair whose gt is `scale` times as large as its input, or a clean image alone."""
    gray = luma(gt)
    cells = shrink(gray)
    facts = PairFacts(float(gt.mean()), float(gt.std()), thumbnail(cells), corners(gray), _hash(gt), _colour(gt))
    if input is None:
        return facts
    enlarged = enlarge(input, scale)
    is_compared = enlarged.shape == gt.shape  # otherwise input and gt have different numbers of channels
    error = float(np.square(enlarged - gt).mean(dtype=np.float64)) if is_compared else np.nan
    centre, gt_centre = _centre(enlarged), _centre(gt)
    similarity, turned = _similarity(shrink(luma(input)), cells)
    shift, gain, offset = displacement(luma(centre), luma(gt_centre), scale)
    traits, gt_noisier = _compared(centre, gt_centre) if scale == 1 else (None, False)
    return replace(
        facts,
        input_mean=float(input.mean()),
        input_std=float(input.std()),
        input_hash=_hash(input),
        input_colour=_colour(input),
        psnr=float(-10 * np.log10(error)) if error else np.inf,
        shift=shift,
        gain=gain,
        offset=offset,
        similarity=similarity,
        turned=turned,
        gt_noisier=gt_noisier,
        direction=find_direction(255 * luma(centre), 255 * luma(gt_centre)) if scale == 1 else 0,
        traits=traits,
    )


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Return an image (H, W, C), `scale` times as high and wide by bicubic interpolation."""
    if scale == 1:
        return image
    images = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return upscale(images, scale)[0].permute(1, 2, 0).numpy()


def displacement(
    input: np.ndarray, gt: np.ndarray, scale: int = 1
) -> tuple[tuple[int, int], float, tuple[float, float]]:
    """Return the (down, right) shift of the input against gt, the PSNR gained by undoing it, and the sub-pixel shift.

    The first two are (0, 0) and 0 unless the shift is significant and costs PSNR. Only a band of frequencies is
    correlated, so slow changes of brightness and the noise of single pixels have no influence. The gain must also show
    in smoothed images: for uneven motion blur, the place of the best correlation is not that of the highest PSNR.

    Shapes: both (H, W).
    """
    if min(gt.shape) < _MIN_SIDE:
        return (0, 0), 0.0, (np.nan, np.nan)
    reach = min(REACH, min(gt.shape) // 4)
    fine = 1.5 * max(1.0, scale / 2)  # sigma in pixels; an enlarged input has no finer structure
    bands = [_SMOOTH(image, fine) - _SMOOTH(image, 4 * max(1.0, scale / 2)) for image in (input, gt)]
    found = _correlations(bands[0], bands[1], reach)
    row, column = divmod(int(found.argmax()), found.shape[1])
    place, shift = (row, column), (row - reach, column - reach)
    offset = (shift[0] + _vertex(found[:, column], row), shift[1] + _vertex(found[row], column))
    peak, here = (min(float(found[at]), 0.9999) for at in (place, (reach, reach)))
    count = (gt.shape[0] - 2 * reach) * (gt.shape[1] - 2 * reach) / (2 * np.pi * fine**2)  # independent pixels
    if shift == (0, 0) or max(map(abs, offset)) < 0.75 or peak < 0.2 or not _stands_out(peak, here, count):
        return (0, 0), 0.0, offset if peak >= 0.2 else (np.nan, np.nan)
    gain = _gain(input, gt, shift, reach)
    smoothed = _gain(_SMOOTH(input, 1.5), _SMOOTH(gt, 1.5), shift, reach)
    return (shift, gain, offset) if gain >= 0.1 and smoothed >= 0.5 else ((0, 0), 0.0, offset)


def _stands_out(peak: float, here: float, count: float) -> bool:
    """Whether the correlation `peak` at another place is significantly higher than `here`, without displacement.

    Source: Fisher's z-transformation; two near places share noise to the degree that they share structure.
    """
    lost = 1 - here / peak
    deviation = np.sqrt(2 * min(max(lost, 1e-3), 1.0) / max(count - 3, 1.0))
    return lost >= 0.01 and np.arctanh(peak) - np.arctanh(max(here, -0.9999)) > _SIGNIFICANT * deviation


def _correlations(input: np.ndarray, gt: np.ndarray, reach: int) -> np.ndarray:
    """Return the correlation of gt, without a border of `reach`, with the input at each displacement up to `reach`.

    Shapes: both (H, W); (2 reach + 1, 2 reach + 1), where the centre is no displacement.
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
    """Return the sums of `values` (H, W) in all windows of a size."""
    height, width = window
    total = np.pad(values.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    rows = total[height:] - total[:-height]
    return rows[:, width:] - rows[:, :-width]


def _vertex(line: np.ndarray, middle: int) -> float:
    """Return the place, from -0.5 to 0.5, of the vertex of the parabola through a maximum and its neighbours.

    0 at either end of the line.
    """
    if not 0 < middle < len(line) - 1:
        return 0.0
    before, top, after = line[middle - 1 : middle + 2]
    bend = before + after - 2 * top
    return float((before - after) / (2 * bend)) if bend < 0 else 0.0


def _gain(input: np.ndarray, gt: np.ndarray, shift: tuple[int, int], reach: int) -> float:
    """Return the PSNR in dB gained by undoing the shift, with brightness and contrast fitted in both places."""
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


def _similarity(input: np.ndarray, gt: np.ndarray) -> tuple[float, bool]:
    """Return the correlation of the details of two sets of cells, and whether it is high only after a flip or turn."""
    one, other = details(input), details(gt)
    if other.std() < max(1.5 / 255, one.std() / 2):  # too little structure against the noise
        return np.nan, False
    similarity = _correlation(one, other)
    return similarity, similarity < 0.4 and max(_correlation(turned, other) for turned in turns(one)) > 0.7


def _compared(input: np.ndarray, gt: np.ndarray) -> tuple[Traits, bool]:
    """Return the traits of a pair of equal size, and whether gt is the input plus noise.

    The fine band of frequencies is divided by the contrast, so that a dark image does not look free of noise.

    Shapes: both (H, W, C).
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
    excess = _shrunken_median(variances[0] * contrast[0] ** 2 - variances[1] * contrast[1] ** 2) / _BAND
    difference = input - gt
    difference -= difference.mean()
    traits = Traits(
        noise=float(np.sign(excess) * np.sqrt(abs(excess)) * 255),
        detail=float(np.log(energy[0] / energy[1]) / 2),
        level=float(np.log((input.mean() + 0.02) / (gt.mean() + 0.02))),
        contrast=float(np.log(contrast[0] / contrast[1])),
        warmth=warmth,
        skewness=float(
            np.clip((difference * difference * difference).mean() / max(difference.std(), 1e-4) ** 3, -3, 3)
        ),
        blocks=_steps(input) - _steps(gt),
    )
    # Noise in gt alone keeps the slope of gt against the input at 1 and lowers the slope of the input against gt.
    # A blurred input raises the first above 1; compression lowers both.
    slope, inverse = shared / energy[0], shared / energy[1]
    visible = noise[1] * contrast[1] > 1.5 / 255 * np.sqrt(_BAND)
    noisier = noise[1] + 0.003 > 1.5 * (noise[0] + 0.003)
    return traits, bool(visible and noisier and 0.92 < slope < 1.1 and slope - inverse > 0.07)


def _shrunken_median(values: np.ndarray) -> float:
    """Return the median, moved towards 0 by two of its standard errors."""
    middle = float(np.median(values))
    error = 1.25 * 1.4826 * float(np.median(np.abs(values - middle))) / np.sqrt(len(values))
    return float(np.sign(middle)) * max(abs(middle) - 2 * error, 0.0)


def _warmth(image: np.ndarray) -> float:
    return float(np.log((image[..., 0].mean() + 0.02) / (image[..., -1].mean() + 0.02)))


def _colour(image: np.ndarray) -> float:
    """Return the mean distance between the largest and the smallest channel of about 256 x 256 pixels."""
    rows, columns = (max(1, side // 256) for side in image.shape[:2])
    return float(np.ptp(image[::rows, ::columns], axis=2).mean())


def _tiles(image: np.ndarray, side: int = 8) -> np.ndarray:
    """Return the tiles (N, side²) of an image (H, W)."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.swapaxes(1, 2).reshape(rows * columns, side * side)


def _steps(image: np.ndarray) -> float:
    """Return the log ratio of steps between neighbours at every eighth pixel to steps elsewhere, over both axes."""
    result = 0.0
    for axis in (0, 1):
        steps = np.abs(np.diff(image, axis=axis)).mean(1 - axis)
        border = np.arange(len(steps)) % 8 == 7
        result += float(np.log((steps[border].mean() + 0.002) / (steps[~border].mean() + 0.002)))
    return result


def _centre(image: np.ndarray) -> np.ndarray:
    """Return the central CROP x CROP pixels, aligned with JPEG blocks."""
    top, left = (max(0, side - CROP) // 16 * 8 for side in image.shape[:2])
    return image[top : top + CROP, left : left + CROP]


def _hash(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, key=str(image.shape).encode()).digest()
