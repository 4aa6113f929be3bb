"""Find overlapping crops of one photograph from about 40 corners per image, 68 bytes each.

Found: crops displaced by any number of pixels, also after compression, noise or a change of brightness, if they share
about a third of their area. Not found: crops that were flipped, rotated or resized by different factors.

Corners are looked up by hashes of their surroundings, so the time grows with the number of images, not with its square.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter

_MAX_PIXELS = 2**19  # larger images are reduced by a whole factor
_CORNERS = 48  # the strongest of an image
_APART = 7  # pixels between corners
_SIDE, _SPACING = 8, 3  # of the samples around a corner
_BORDER = _SIDE * _SPACING // 2
_SIGMA = 1.6  # removes the noise of single pixels
_LEAST = 0.3  # strength of a corner; squared levels per pixel
_CORNER = np.dtype([("place", np.int16, 2), ("around", np.int8, _SIDE**2)])
_TABLES, _BITS = 8, 20
_NEIGHBOURS = 6  # compared in one bucket of a table, which bounds the time
_SAME = 0.92  # correlation of the surroundings of one corner in two crops
_TOLERANCE = 1.5  # pixels between the displacements of corners
_MIN_SHARED = 6  # corners


def corners(image: np.ndarray) -> bytes:
    """Return places and surroundings of the strongest corners of a luma image (H, W) in [0, 1]."""
    factor = int(np.ceil(np.sqrt(image.size / _MAX_PIXELS)))
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    if min(rows, columns) <= 2 * _BORDER:
        return b""
    image = image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor).mean((1, 3))
    smooth = gaussian_filter(255 * image, _SIGMA, truncate=3.0)
    inner = (slice(_BORDER, -_BORDER),) * 2
    strength = _strength(smooth)
    peaks = (strength == maximum_filter(strength, _APART)) & (strength > _LEAST)
    down, right = np.nonzero(peaks[inner])
    strongest = np.argsort(-strength[inner][down, right], kind="stable")[:_CORNERS]
    found = np.zeros(len(strongest), _CORNER)
    found["place"] = factor * (np.stack([down, right], 1)[strongest] + _BORDER)
    steps = _SPACING * (np.arange(_SIDE) - _SIDE // 2) + _SPACING // 2
    at = found["place"] // factor
    around = smooth[at[:, 0, None, None] + steps[:, None], at[:, 1, None, None] + steps].reshape(-1, _SIDE**2)
    around -= around.mean(1, keepdims=True)
    around /= np.maximum(np.abs(around).max(1, keepdims=True), 1e-3)
    found["around"] = np.round(127 * around)
    return found.tobytes()


def _strength(smooth: np.ndarray) -> np.ndarray:
    """Return how much both directions of an image (H, W) vary around each pixel (Harris)."""
    down, right = np.gradient(smooth)
    squares = [gaussian_filter(product, 2.0, truncate=2.0) for product in (down * down, right * right, down * right)]
    return (squares[0] * squares[1] - squares[2] ** 2) / (squares[0] + squares[1] + 1e-3)


def overlaps(train: Sequence[bytes], val: Sequence[bytes]) -> dict[int, tuple[int, tuple[int, int]]]:
    """Return, for each val index that overlaps a training image, the train index and where it lies (down, right)."""
    image, found = _unpack([*train, *val])
    one, other = _same_corners(found["around"], image < len(train))
    if not len(one):
        return {}
    shifts = found["place"][one].astype(int) - found["place"][other]
    best: dict[int, tuple[int, int, tuple[int, int]]] = {}
    order = np.lexsort((image[one], image[other]))
    one, other, shifts = one[order], other[order], shifts[order]
    starts = np.flatnonzero(np.diff(image[other] * len(image) + image[one], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(one)], strict=True):
        if stop - start < _MIN_SHARED:
            continue
        count, shift = _shared(one[start:stop], other[start:stop], shifts[start:stop])
        j = int(image[other[start]]) - len(train)
        if count >= _MIN_SHARED and count > best.get(j, (0,))[0]:
            best[j] = count, int(image[one[start]]), shift
    return {j: (i, shift) for j, (_, i, shift) in best.items()}


def _unpack(packed: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of each corner, and the corners."""
    counts = [len(corners) // _CORNER.itemsize for corners in packed]
    return np.repeat(np.arange(len(packed)), counts), np.frombuffer(b"".join(packed), _CORNER)


def _same_corners(around: np.ndarray, in_train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of corners of train and of val whose surroundings are the same."""
    planes = np.random.default_rng(0).normal(size=(_TABLES, around.shape[1], _BITS)).astype(np.float32)
    powers = 1 << np.arange(_BITS)
    matches = [np.zeros((0, 2), int)]
    for table in planes:
        keys = np.concatenate([(part @ table > 0) @ powers for part in _parts(around)])
        order = np.lexsort((in_train, keys))
        for step in range(1, _NEIGHBOURS + 1):
            first, second = order[:-step], order[step:]  # val comes before train in a bucket
            kept = (keys[first] == keys[second]) & in_train[second] & ~in_train[first]
            first, second = first[kept], second[kept]
            alike = np.einsum("nd,nd->n", _unit(around[first]), _unit(around[second])) > _SAME
            matches.append(np.stack([second[alike], first[alike]], 1))
    one, other = np.unique(np.concatenate(matches), axis=0).T
    return one, other


def _parts(around: np.ndarray) -> Iterator[np.ndarray]:
    """Yield parts as float32; all of them at once would need 12 KB per image."""
    for start in range(0, max(len(around), 1), 2**16):
        yield around[start : start + 2**16].astype(np.float32)


def _unit(around: np.ndarray) -> np.ndarray:
    values = around.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-3)


def _shared(one: np.ndarray, other: np.ndarray, shifts: np.ndarray) -> tuple[int, tuple[int, int]]:
    """Return how many corners of two images agree in one displacement, and the displacement."""
    near = np.abs(shifts[:, None] - shifts).max(2) <= _TOLERANCE
    agreed = near[near.sum(1).argmax()]
    count = min(len(np.unique(one[agreed])), len(np.unique(other[agreed])))
    down, right = np.median(shifts[agreed], axis=0)
    return count, (round(down), round(right))
