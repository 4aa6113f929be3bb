"""Find pictures that are nearly the same from thumbnails of one kilobyte: what validation must not share with training.

Found: flips and turns by 90°, changes of brightness and contrast, compression, resizing, noise, cuts of up to some
5 % of a side. Not found: cut-outs of a larger picture, pictures of even colour, and a scene shot twice.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 32  # of a thumbnail
SAME = 0.86  # correlation of details: of 19 in 20 copies cut by 5 % it is above 0.9
_ALIKE, _TURNED, _UNCUT = 0.85, 0.75, 0.4  # what copies pass before the turn is known, before the cut is known
_MARGIN = 0.08  # by which a copy must be more alike than the picture displaced
_FREQUENCIES = 8
_BLOCK = 1024


def luma(image: np.ndarray) -> np.ndarray:
    """The brightness (H, W) of an image (H, W, C), C 1 or 3, by the weights of BT.601."""
    return image[..., 0] if image.shape[2] == 1 else image @ np.array([0.299, 0.587, 0.114], np.float32)


def shrink(brightness: np.ndarray) -> np.ndarray:
    """The means of SIDE x SIDE cells of an image (H, W), whatever its proportions."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(brightness)).resize((SIDE, SIDE), Image.Resampling.BOX))


def thumbnail(cells: np.ndarray) -> bytes:
    """8-bit grey values of `shrink`'s cells, stretched to the full range; empty where they are all the same."""
    least, most = float(cells.min()), float(cells.max())
    if most - least < 1 / 255:
        return b""
    return np.round((cells - least) * (255 / (most - least))).astype(np.uint8).tobytes()


def near_duplicates(train: Sequence[bytes], val: Sequence[bytes] | None = None) -> list[tuple[int, int, float]]:
    """(train index, val index, similarity up to 1) of thumbnails that show the same picture, best first.

    Without `val`, the pairs (i, j), i < j, within `train`.
    """
    train_at, train_cells = _unpacked(train)
    val_at, val_cells = (train_at, train_cells) if val is None else _unpacked(val)
    if not len(train_cells) or not len(val_cells):
        return []
    val_waves, val_details = _waves(val_cells), _even(details(val_cells))
    val_keys = _turnless(val_waves)
    found = []
    for start in range(0, len(train_cells), _BLOCK):
        cells = train_cells[start : start + _BLOCK]
        waves = _waves(cells)
        one, other = np.nonzero(_turnless(waves) @ val_keys.T > _ALIKE)
        if val is None:
            one, other = one[later := start + one < other], other[later]
        for i, j, turn in _turned(waves, val_waves, one, other):
            turned = turns(cells[i])[turn]
            similarity = _correlation(_even(details(turned)), val_details[j])
            if _UNCUT < similarity < SAME:
                similarity = _similarity(turned, val_cells[j])
            if similarity >= max(SAME, _elsewhere(val_details[j]) + _MARGIN):
                found.append((int(train_at[start + i]), int(val_at[j]), similarity))
    return sorted(found, key=lambda match: -match[2])


def details(cells: np.ndarray) -> np.ndarray:
    """What is left of cells (..., H, W) without their slow changes, by which all skies are alike."""
    cells = cells.astype(np.float32)
    return gaussian_filter(cells, 0.7, axes=(-2, -1)) - gaussian_filter(cells, 2.5, axes=(-2, -1))


def turns(cells: np.ndarray) -> list[np.ndarray]:
    """The eight flips and turns of a square; the first is the square itself."""
    return [np.rot90(side, quarter) for side in (cells, cells[:, ::-1]) for quarter in range(4)]


def _unpacked(thumbnails: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The places of thumbnails that are not empty, and their cells (N, SIDE, SIDE)."""
    kept = [index for index, packed in enumerate(thumbnails) if packed]
    cells = np.frombuffer(b"".join(thumbnails[index] for index in kept), np.uint8)
    return np.array(kept, int), cells.reshape(-1, SIDE, SIDE)


def _waves(cells: np.ndarray) -> np.ndarray:
    """The lowest cosine waves (N, 8, 8) of cells, without the mean; the finer count as much as the coarse; norm 1."""
    frequency = np.arange(_FREQUENCIES)
    basis = np.cos(np.pi / SIDE * frequency[:, None] * (np.arange(SIDE) + 0.5)).astype(np.float32)
    radius = np.hypot(frequency[:, None], frequency)
    waves = basis @ cells.astype(np.float32) @ basis.T * (radius * (radius < _FREQUENCIES)).astype(np.float32)
    return waves / np.maximum(np.linalg.norm(waves, axis=(1, 2), keepdims=True), 1e-6)


def _turnless(waves: np.ndarray) -> np.ndarray:
    """Keys (N, 64) of norm 1 that no flip or turn changes: these change signs and swap the axes, nothing else.

    The product of two keys is never less than that of the waves in their best turn: no copy is lost.
    """
    size = np.abs(waves)
    upper, strictly = np.triu_indices(_FREQUENCIES), np.triu_indices(_FREQUENCIES, 1)
    larger, smaller = np.maximum(size, size.swapaxes(1, 2)), np.minimum(size, size.swapaxes(1, 2))
    return np.concatenate([larger[:, *upper], smaller[:, *strictly]], axis=1)


def _turned(waves: np.ndarray, val_waves: np.ndarray, one: np.ndarray, other: np.ndarray) -> list[tuple[int, int, int]]:
    """The candidates (i, j) whose waves agree in some turn, with the number of that turn in `turns`."""
    found = []
    for start in range(0, len(one), _BLOCK):
        i, j = one[start : start + _BLOCK], other[start : start + _BLOCK]
        agreement = np.stack([(turned * val_waves[j]).sum((1, 2)) for turned in _turned_waves(waves[i])])
        best, kept = agreement.argmax(0), agreement.max(0) > _TURNED
        found += list(zip(i[kept].tolist(), j[kept].tolist(), best[kept].tolist(), strict=True))
    return found


def _turned_waves(waves: np.ndarray) -> list[np.ndarray]:
    """The waves of each of `turns`: a flip changes the sign of odd waves, a quarter also swaps the axes."""
    odd = (-1.0) ** np.arange(_FREQUENCIES, dtype=np.float32)
    down, across = odd[:, None], odd[None, :]
    swapped = waves.swapaxes(1, 2)
    sides = [(waves, swapped), (waves * across, swapped * down)]
    return [turned for side, turn in sides for turned in (side, turn * down, side * down * across, turn * across)]


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The best correlation of the details of two thumbnails, either of which may be cut by up to 10 % of its sides."""
    from skimage.feature import match_template  # half a second to import

    best = 0.0
    for whole, part in ((one, other), (other, one)):
        centre = _even(details(part))[3:-3, 3:-3]
        if centre.std() == 0:
            return 0.0
        for side in (SIDE, SIDE + 2, SIDE + 4):
            enlarged = Image.fromarray(np.ascontiguousarray(whole)).resize((side, side))
            best = max(best, float(match_template(_even(details(np.asarray(enlarged))), centre).max()))
    return best


def _elsewhere(even: np.ndarray) -> float:
    """How like itself a picture is when displaced: near 1 for grids, stripes and lone edges, which prove nothing."""
    from skimage.feature import match_template

    likeness = match_template(even, even[8:-8, 8:-8])  # displaced by up to 8 cells
    likeness[4:-4, 4:-4] = 0
    return float(likeness.max())


def _even(details: np.ndarray) -> np.ndarray:
    """Details (..., H, W) brought to the same strength everywhere: a single strong edge would outweigh all the rest."""
    rounding = 2.0  # of 255: what is weaker must not be enlarged
    return details / np.sqrt(gaussian_filter(details**2, 3, axes=(-2, -1)) + rounding**2)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum() + 1e-12))
