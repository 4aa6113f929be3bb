"""Find nearly equal pictures from thumbnails of 1 KB, for example validation images that are also in training.

Found: copies that are flipped, rotated by 90°, brightened, compressed, resized, noisy, or cropped by up to about 5 % of
a side. Not found: small crops of a larger picture, pictures of one colour, and a scene photographed twice.

Small sets are compared picture by picture. In large ones only pictures of equal hashes are, so that the time grows with
the number of pictures, not with its square; of copies whose coarse waves correlate by 0.9, this misses about one in 20.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 32  # cells of a thumbnail
MIN_CORRELATION = 0.86  # of details; 19 of 20 copies cropped by 5 % reach 0.9
_MIN_WAVES = 0.75  # correlation of coarse waves, a fast first test
_MIN_UNCROPPED = 0.4  # correlation of details before the crop is known
_MAX_COPIES = 4  # reported for one picture; comparing crops takes milliseconds
_MARGIN = 0.08  # a copy must correlate more by this than the picture does with itself, displaced
_EXACT = 5000**2  # comparisons; more are done by hashes
_TABLES, _IN_BUCKET = 24, 16  # hash tables, pictures of one bucket that are compared
_FREQUENCIES = 8
_BLOCK = 1024


def luma(image: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma (H, W) of a float image (H, W, 3), or the mean of other numbers of channels."""
    return image @ np.array([0.299, 0.587, 0.114], np.float32) if image.shape[2] == 3 else image.mean(2)


def shrink(image: np.ndarray) -> np.ndarray:
    """Return the means of SIDE x SIDE cells of an image (H, W) of any proportions."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((SIDE, SIDE), Image.Resampling.BOX))


def thumbnail(cells: np.ndarray) -> bytes:
    """Return cells as 8-bit gray values, stretched to the full range; empty if all cells are equal."""
    least, most = float(cells.min()), float(cells.max())
    if most - least < 1 / 255:
        return b""
    return np.round((cells - least) * (255 / (most - least))).astype(np.uint8).tobytes()


def near_duplicates(train: Sequence[bytes], val: Sequence[bytes] | None = None) -> list[tuple[int, int, float]]:
    """Return (train index, val index, similarity) of thumbnails of the same picture, the most similar first.

    At most the best 4 for each val image. Without `val`, the pairs (i, j), i < j, within `train`.
    """
    train_at, train_cells = _unpack(train)
    val_at, val_cells = (train_at, train_cells) if val is None else _unpack(val)
    if not len(train_cells) or not len(val_cells):
        return []
    val_details = _unit(_normalised(details(val_cells)))
    found = []
    for similarity, j, i, turn in _candidates(train_cells, val_cells, val_details, within=val is None):
        if similarity < MIN_CORRELATION:
            similarity = _cropped_similarity(train_cells[i], turns(val_cells[j])[turn])
        if similarity >= max(MIN_CORRELATION, _self_similarity(val_details[j]) + _MARGIN):
            found.append((int(train_at[i]), int(val_at[j]), similarity))
    return sorted(found, key=lambda match: -match[2])


def _candidates(
    train_cells: np.ndarray, val_cells: np.ndarray, val_details: np.ndarray, within: bool
) -> list[tuple[float, int, int, int]]:
    """Return (correlation of details, val place, train place, turn) of the best candidates for each val image."""
    best, found, count = np.zeros((0, 4)), [], 0
    for one, other, turn in _matches(train_cells, val_cells):
        if within:
            one, other, turn = (values[one < other] for values in (one, other, turn))
        needed, row = np.unique(one, return_inverse=True)
        seen = _unit(_normalised(details(train_cells[needed])))
        similarity = [_turned_products(seen[row[k]], val_details[other[k]], turn[k]) for k in _chunks(len(one))]
        new = np.stack([np.concatenate([np.zeros(0), *similarity]), other, one, turn], axis=1)
        found.append(new[new[:, 0] > _MIN_UNCROPPED])
        count += len(found[-1])
        if count > max(2**16, len(best)):  # sorting at doubled sizes keeps the time near linear
            best, found, count = _best([best, *found]), [], 0
    return [(float(similarity), int(j), int(i), int(turn)) for similarity, j, i, turn in _best([best, *found])]


def _best(found: list[np.ndarray]) -> np.ndarray:
    """Return the rows of `_candidates` with the highest correlations for each val image."""
    best = np.concatenate(found)
    best = best[np.lexsort((-best[:, 0], best[:, 1]))]
    return best[np.arange(len(best)) - np.searchsorted(best[:, 1], best[:, 1]) < _MAX_COPIES]


def _matches(train_cells: np.ndarray, val_cells: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield train places, val places and turns of pictures whose coarse waves correlate."""
    val_waves = [waves.reshape(len(val_cells), -1) for waves in _turned_waves(_waves(val_cells))]
    if len(train_cells) * len(val_cells) > _EXACT:
        waves = np.concatenate([_waves(cells).reshape(len(cells), -1) for cells in _blocks(train_cells)])
        yield from _hashed_matches(waves, val_waves)
        return
    for number, cells in enumerate(_blocks(train_cells)):
        one, other, turn = _wave_matches(_waves(cells).reshape(len(cells), -1), val_waves)
        yield number * _BLOCK + one, other, turn


def _hashed_matches(
    waves: np.ndarray, val_waves: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the same as `_matches` among pictures that share a bucket in one of several hash tables."""
    bits = max(1, int(np.log2(len(waves))) - 3)  # about 8 pictures in a bucket
    planes = np.random.default_rng(0).normal(size=(_TABLES, waves.shape[1], bits)).astype(np.float32)
    powers = 1 << np.arange(bits)
    tables = []
    for plane in planes:
        keys = (waves @ plane > 0) @ powers
        order = np.argsort(keys, kind="stable")
        tables.append((plane, order, keys[order]))
    found = [np.zeros((3, 0), int)]
    for turn, turned in enumerate(val_waves):
        for start in range(0, len(turned), _BLOCK):
            part = turned[start : start + _BLOCK]
            near = [
                _bucket_matches(waves, part, order, keys, (part @ plane > 0) @ powers) for plane, order, keys in tables
            ]
            one, other = np.unique(np.concatenate(near, axis=1), axis=1)
            found.append(np.stack([one, start + other, np.full(len(one), turn)]))
    matches = np.concatenate(found, axis=1)
    matches = matches[:, np.argsort(matches[0], kind="stable")]  # so that the details of each wave are computed once
    for k in _chunks(matches.shape[1], 16 * _BLOCK):
        one, other, turns = matches[:, k]
        yield one, other, turns


def _bucket_matches(
    waves: np.ndarray, part: np.ndarray, order: np.ndarray, keys: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Return the places (2, N) of waves and of `part` that correlate, of at most 16 waves per bucket.

    `order` sorts the waves by key, `keys` are sorted, and `wanted` are the keys of `part`.
    """
    first, stop = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, "right")
    place = first[:, None] + np.arange(_IN_BUCKET)
    row, column = np.nonzero(place < stop[:, None])
    one = order[place[row, column]]
    alike = np.einsum("nw,nw->n", waves[one], part[row]) > _MIN_WAVES
    return np.stack([one[alike], row[alike]])


def _blocks(cells: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(cells), _BLOCK):
        yield cells[start : start + _BLOCK]


def details(cells: np.ndarray) -> np.ndarray:
    """Return cells (..., H, W) without slow changes, which would make all skies alike."""
    cells = cells.astype(np.float32)
    return gaussian_filter(cells, 0.7, axes=(-2, -1)) - gaussian_filter(cells, 2.5, axes=(-2, -1))


def turns(cells: np.ndarray) -> list[np.ndarray]:
    """Return the 8 flips and rotations of a square; the first is the square itself."""
    return [np.rot90(side, quarter) for side in (cells, cells[:, ::-1]) for quarter in range(4)]


def _unpack(thumbnails: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the thumbnails that are not empty, and their cells (N, SIDE, SIDE)."""
    kept = [index for index, packed in enumerate(thumbnails) if packed]
    cells = np.frombuffer(b"".join(thumbnails[index] for index in kept), np.uint8)
    return np.array(kept, int), cells.reshape(-1, SIDE, SIDE)


def _waves(cells: np.ndarray) -> np.ndarray:
    """Return the lowest cosine coefficients (N, 8, 8) of cells, of norm 1: no mean, fine waves raised to the coarse."""
    frequency = np.arange(_FREQUENCIES)
    basis = np.cos(np.pi / SIDE * frequency[:, None] * (np.arange(SIDE) + 0.5)).astype(np.float32)
    radius = np.hypot(frequency[:, None], frequency)
    waves = basis @ cells.astype(np.float32) @ basis.T * (radius * (radius < _FREQUENCIES)).astype(np.float32)
    return waves / np.maximum(np.linalg.norm(waves, axis=(1, 2), keepdims=True), 1e-6)


def _wave_matches(waves: np.ndarray, val_waves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the places (i, j) where waves correlate with those of val in some turn, and the best turn of each."""
    agreement = waves @ val_waves[0].T
    for turned in val_waves[1:]:
        np.maximum(agreement, waves @ turned.T, out=agreement)
    one, other = np.nonzero(agreement > _MIN_WAVES)
    turn = np.zeros(len(one), int)
    for k in _chunks(len(one)):
        products = [np.einsum("nw,nw->n", waves[one[k]], turned[other[k]]) for turned in val_waves]
        turn[k] = np.argmax(products, axis=0)
    return one, other, turn


def _chunks(count: int, size: int = _BLOCK) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _turned_products(cells: np.ndarray, val_cells: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Return the products (N,) of cells (N, SIDE, SIDE) with those of val, each flipped and rotated by its turn."""
    products = np.zeros(len(cells))
    for number in range(8):
        k = np.flatnonzero(turn == number)
        turned = np.rot90(val_cells[k] if number < 4 else val_cells[k][:, :, ::-1], number % 4, axes=(1, 2))
        products[k] = (cells[k] * turned).sum((1, 2))
    return products


def _turned_waves(waves: np.ndarray) -> list[np.ndarray]:
    """Return the waves of each of `turns`: a flip changes the sign of odd waves, a quarter turn also swaps the axes."""
    odd = (-1.0) ** np.arange(_FREQUENCIES, dtype=np.float32)
    down, across = odd[:, None], odd[None, :]
    swapped = waves.swapaxes(1, 2)
    sides = [(waves, swapped), (waves * across, swapped * down)]
    return [turned for side, turn in sides for turned in (side, turn * down, side * down * across, turn * across)]


def _cropped_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Return the best correlation of details of two thumbnails, either of which may be cropped by up to 10 % a side."""
    from skimage.feature import match_template  # the import takes 0.5 s

    best = 0.0
    for whole, part in ((one, other), (other, one)):
        centre = _normalised(details(part))[3:-3, 3:-3]
        if centre.std() == 0:
            return 0.0
        for side in (SIDE, SIDE + 2, SIDE + 4):
            enlarged = Image.fromarray(np.ascontiguousarray(whole)).resize((side, side))
            best = max(best, float(match_template(_normalised(details(np.asarray(enlarged))), centre).max()))
    return best


def _self_similarity(even: np.ndarray) -> float:
    """Return the correlation of a picture with itself, displaced: near 1 for grids, stripes and single edges."""
    from skimage.feature import match_template

    similarity = match_template(even, even[8:-8, 8:-8])  # displaced by up to 8 cells
    similarity[4:-4, 4:-4] = 0
    return float(similarity.max())


def _normalised(details: np.ndarray) -> np.ndarray:
    """Return details (..., H, W) of the same strength everywhere, so that no single edge outweighs the rest."""
    rounding = 2.0  # of 255; weaker details are not amplified
    return details / np.sqrt(gaussian_filter(details**2, 3, axes=(-2, -1)) + rounding**2)


def _unit(cells: np.ndarray) -> np.ndarray:
    """Return cells (N, SIDE, SIDE) of norm 1; products of details, which have nearly no mean, are correlations."""
    return cells / np.maximum(np.linalg.norm(cells, axis=(1, 2), keepdims=True), 1e-6)
