"""Decide which image of a pair was made from the other, by blur, noise or JPEG compression.

A degradation leaves a proof that an enhancement does not leave: the degraded image can be computed from the clean one
up to white noise or the rounding of JPEG, but not the other way round. If neither image can be computed from the other,
as for rain, underwater or low-light photographs, nothing is decided.

Images are luma (H, W) in 8-bit levels.
"""

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

_MIN_SIDE = 64  # pixels
_REACH = 7  # pixels; covers a Gaussian blur of sigma 3
_SAMPLES = 3000  # equations for the (2 reach + 1)² = 225 unknowns of a filter
_SIGMAS = (0.7, 1.4, 2.8, 5.6)  # between the bands of frequencies, the finest first
_WHITE = 1.5  # standard deviation of white noise over its part in the finest band
_ROUNDING = 1 / 12  # variance of rounding to 8 bits
_TILE = 16
_SHARPER = 1.1  # larger gains of fine over coarse structure are no measurement error
_SOFTER = 1.25  # the same, where the filter is not exact: reduced and enlarged images
_STEPS = np.arange(4, 130)  # of JPEG's quantization, in levels
_MIN_STEPS = 4  # coefficients with a visible step that prove compression
_MIN_VALUES = 16  # blocks in which a coefficient is not 0


def find_direction(input: np.ndarray, gt: np.ndarray) -> int:
    """Return 1 if gt is a degraded version of the input, -1 if the input is one of gt, 0 if it cannot be decided."""
    if min(gt.shape) < _MIN_SIDE:
        return 0
    residuals = _residual(input, gt), _residual(gt, input)
    bands = [_bands(image) for image in (input, gt)]
    forward = _is_filtered(bands[0], bands[1], residuals[0])
    backward = _is_filtered(bands[1], bands[0], residuals[1])
    if forward == backward:
        forward = not forward and _is_softened(bands[0], bands[1], residuals)
        backward = not backward and _is_softened(bands[1], bands[0], residuals[::-1])
    forward, backward = forward or _is_compressed(input, gt), backward or _is_compressed(gt, input)
    return int(forward) - int(backward)


def _residual(source: np.ndarray, result: np.ndarray) -> float:
    """Return the standard deviation of `result` minus its best prediction by a filter of `source`."""
    windows = sliding_window_view(source, (2 * _REACH + 1, 2 * _REACH + 1))
    rows, columns = windows.shape[:2]
    chosen = np.random.default_rng(0).choice(rows * columns, min(_SAMPLES, rows * columns), replace=False)
    down, right = np.divmod(chosen, columns)
    near = windows[down, right].reshape(len(chosen), -1).astype(np.float64)
    wanted = result[down + _REACH, right + _REACH].astype(np.float64)
    near -= near.mean(0)
    wanted -= wanted.mean()
    products = near.T @ near
    products[np.diag_indices_from(products)] += len(chosen) * _ROUNDING  # no filter amplifies what rounding destroyed
    error = wanted - near @ np.linalg.solve(products, near.T @ wanted)
    return float(np.sqrt(np.square(error).sum() / max(len(chosen) - near.shape[1], 1)))


def _bands(image: np.ndarray) -> list[np.ndarray]:
    smooth = [image, *(gaussian_filter(image, sigma, truncate=3.0) for sigma in _SIGMAS)]
    return [fine - coarse for fine, coarse in pairwise(smooth)]


def _is_filtered(source: list[np.ndarray], result: list[np.ndarray], residual: float) -> bool:
    """Whether a filter that does not sharpen, and the white noise of the result, explain the result.

    The noise is measured in flat areas, so what the filter misses at edges is not taken for noise.
    """
    noise = _WHITE * np.sqrt(np.quantile(_tile_means(np.square(result[0])), 0.1))
    return residual <= 1.15 * noise + 0.3 and _gain(source, result) <= _SHARPER


def _is_softened(source: list[np.ndarray], result: list[np.ndarray], residuals: tuple[float, ...]) -> bool:
    """Whether the result has less fine structure, and follows from the source far better than the source from it."""
    return residuals[0] < residuals[1] / 2 and _gain(result, source) > _SOFTER


def _gain(source: list[np.ndarray], result: list[np.ndarray]) -> float:
    """Return the largest factor by which the result's structure exceeds that of the source, against the coarsest band.

    It is the slope of a regression: independent noise in the source lowers it, and noise in the result has no effect.
    Tile by tile, so that tone curves and haze have little.
    """
    products = np.stack([_tile_means(one * other) for one, other in zip(source, result, strict=True)])
    energy = np.stack([_tile_means(np.square(one)) for one in source])
    structure = energy[-1] * _tile_means(np.square(result[-1]))
    rich = structure >= np.median(structure)
    slopes = np.median(products[:, rich] / np.maximum(energy[:, rich], 1e-3), axis=1)
    return float(slopes[:-1].max() / max(slopes[-1], 1e-3))


def _tile_means(image: np.ndarray) -> np.ndarray:
    rows, columns = image.shape[0] // _TILE, image.shape[1] // _TILE
    return image[: rows * _TILE, : columns * _TILE].reshape(rows, _TILE, columns, _TILE).mean((1, 3)).ravel()


def _is_compressed(source: np.ndarray, result: np.ndarray) -> bool:
    """Whether the result is the source with the DCT coefficients of its JPEG blocks rounded to multiples of a step.

    Rounding errors fill the interval of one step evenly and never leave it; noise of the same strength does.
    """
    return any(_is_rounded(_blocks(source, grid), _blocks(result, grid)) for grid in {(0, 0), _grid(result)})


def _is_rounded(source: np.ndarray, result: np.ndarray) -> bool:
    errors, outside, count = [], 0, 0
    for number in range(1, 36):  # the coefficient of the mean is left out, and the finest ones are mostly 0
        step = _step(np.abs(result[:, number]))
        if step:
            kept = np.abs(result[:, number]) >= step / 2
            error = source[kept, number] - result[kept, number]
            errors.append(error / step)
            outside += int((np.abs(error) > step / 2 + 1).sum())
            count += 1
    if count < _MIN_STEPS:
        return False
    shares = np.concatenate(errors)
    return bool(0.24 < np.sqrt(np.square(shares).mean()) < 0.34 and outside < 0.02 * len(shares))  # 1/√12 = 0.289


def _step(values: np.ndarray) -> int:
    """Return the largest step that divides all `values` other than 0, or 0."""
    places = np.minimum(np.round(2 * values).astype(int), _COSINES.shape[1] - 1)
    counts = np.bincount(places, minlength=_COSINES.shape[1])
    number = _KEPT @ counts
    found = (number >= _MIN_VALUES) & (_COSINES @ counts > 0.7 * number)
    return int(_STEPS[found].max()) if found.any() else 0


_LEVELS = np.arange(1025) / 2
_KEPT = ((_STEPS[:, None] / 2 <= _LEVELS) & (_LEVELS < 512)).astype(float)  # (steps, levels)
_COSINES = np.cos(2 * np.pi * _LEVELS / _STEPS[:, None]) * _KEPT
_ZIGZAG = sorted(range(64), key=lambda place: (place // 8 + place % 8, place))  # by frequency


def _blocks(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the DCT coefficients (N, 64) of the 8 x 8 blocks that start at `grid`, the lowest frequency first."""
    image = image[grid[0] :, grid[1] :]
    rows, columns = image.shape[0] // 8, image.shape[1] // 8
    blocks = image[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).swapaxes(1, 2)
    return dctn(blocks, axes=(2, 3), norm="ortho").reshape(-1, 64)[:, _ZIGZAG]


def _grid(image: np.ndarray) -> tuple[int, int]:
    """Return where the first JPEG block starts, (row, column): the largest steps are between blocks."""
    starts = []
    for axis in (0, 1):
        steps = np.abs(np.diff(image, axis=axis)).mean(1 - axis)
        steps = steps[: len(steps) // 8 * 8].reshape(-1, 8).mean(0)
        starts.append((int(steps.argmax()) + 1) % 8)
    return starts[0], starts[1]
