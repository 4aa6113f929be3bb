"""Find pictures that are nearly the same from thumbnails of one kilobyte: what validation must not share with training.

Found: flips and turns by 90°, changes of brightness and contrast, compression, resizing, noise, cuts of up to some
5 % of a side. Not found: cut-outs of a larger picture, pictures of even colour, and a scene shot twice.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 32  # of a thumbnail
SAME = 0.86  # correlation of details; 19 of 20 copies cut by 5 % reach 0.9
_ALIKE, _UNCUT = 0.75, 0.4  # what copies pass: with their coarse waves, and with their details before the cut is known
_MOST = 4  # copies of one picture that are told; comparing cuts takes milliseconds
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

    Of each val image at most the best 4. Without `val`, the pairs (i, j), i < j, within `train`.
    """
    train_at, train_cells = _unpacked(train)
    val_at, val_cells = (train_at, train_cells) if val is None else _unpacked(val)
    if not len(train_cells) or not len(val_cells):
        return []
    val_details = _unit(_even(details(val_cells)))
    found = []
    for likeness, j, i, turn in _candidates(train_cells, val_cells, val_details, within=val is None):
        if likeness < SAME:
            likeness = _similarity(train_cells[i], turns(val_cells[j])[turn])
        if likeness >= max(SAME, _elsewhere(val_details[j]) + _MARGIN):
            found.append((int(train_at[i]), int(val_at[j]), likeness))
    return sorted(found, key=lambda match: -match[2])


def _candidates(
    train_cells: np.ndarray, val_cells: np.ndarray, val_details: np.ndarray, within: bool
) -> list[tuple[float, int, int, int]]:
    """(correlation of details, val place, train place, turn) of the most likely copies of each val image."""
    val_waves = [waves.reshape(len(val_cells), -1) for waves in _turned_waves(_waves(val_cells))]
    best = np.zeros((0, 4))
    for start in range(0, len(train_cells), _BLOCK):
        cells = train_cells[start : start + _BLOCK]
        one, other, turn = _alike(_waves(cells).reshape(len(cells), -1), val_waves)
        if within:
            one, other, turn = (values[start + one < other] for values in (one, other, turn))
        needed, row = np.unique(one, return_inverse=True)
        seen = _unit(_even(details(cells[needed])))
        likeness = [_turned_products(seen[row[k]], val_details[other[k]], turn[k]) for k in _chunks(len(one))]
        new = np.stack([np.concatenate([np.zeros(0), *likeness]), other, start + one, turn], axis=1)
        best = np.concatenate([best, new[new[:, 0] > _UNCUT]])
        best = best[np.lexsort((-best[:, 0], best[:, 1]))]
        best = best[np.arange(len(best)) - np.searchsorted(best[:, 1], best[:, 1]) < _MOST]
    return [(float(likeness), int(j), int(i), int(turn)) for likeness, j, i, turn in best]


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


def _alike(waves: np.ndarray, val_waves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places (i, j) where waves agree with those of val in some turn, and the best turn of each."""
    agreement = waves @ val_waves[0].T
    for turned in val_waves[1:]:
        np.maximum(agreement, waves @ turned.T, out=agreement)
    one, other = np.nonzero(agreement > _ALIKE)
    turn = np.zeros(len(one), int)
    for k in _chunks(len(one)):
        products = [np.einsum("nw,nw->n", waves[one[k]], turned[other[k]]) for turned in val_waves]
        turn[k] = np.argmax(products, axis=0)
    return one, other, turn


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)]


def _turned_products(cells: np.ndarray, val_cells: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """The products (N,) of cells (N, SIDE, SIDE) with those of val, each brought into its turn."""
    products = np.zeros(len(cells))
    for number in range(8):
        k = np.flatnonzero(turn == number)
        turned = np.rot90(val_cells[k] if number < 4 else val_cells[k][:, :, ::-1], number % 4, axes=(1, 2))
        products[k] = (cells[k] * turned).sum((1, 2))
    return products


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


def _unit(cells: np.ndarray) -> np.ndarray:
    """Cells (N, SIDE, SIDE) of norm 1, whose products are correlations; details have no mean to speak of."""
    return cells / np.maximum(np.linalg.norm(cells, axis=(1, 2), keepdims=True), 1e-6)
