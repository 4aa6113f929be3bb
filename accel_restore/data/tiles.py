"""Lossless tiles of decoded images, as compact stores hold them. A crop decodes only the tiles that it touches.

A tile is a checksum (CRC-32), a byte that says its mode, and the differences of neighbouring values in Rice codes
(imagecodecs' `rcomp`, the code of FITS files). They adapt to every 32 values without a table, so that small tiles cost
little. All arithmetic is on unsigned integers that wrap; floats are taken by their bits.
"""

import zlib
from collections.abc import Iterator

import numpy as np

_BLOCK = 32  # values with one Rice parameter
_CHECKSUM = 4  # bytes at the start of a tile
# The byte after it: whether differences between rows and between channels were taken (those between columns are
# part of the code); whether both bytes of uint16 are equal, and one is left out, as in 8-bit images next to 16-bit
# ones; and, from bit 4 on, the number of lower bits of uint16 that are 0 and left out, as in images of 12 bits.
_ROWS, _CHANNELS, _BYTE_TWICE, _SHIFT = 1, 2, 4, 4


class DamagedTileError(ValueError):
    """A tile is not what was written."""


def tile_side(channels: int, dtype: np.dtype) -> int:
    """Return the height and width of tiles in pixels.

    A crop of 256 x 256 decodes 1.6 times its pixels from tiles of 64, and 2.2 times from tiles of 128. A tile of fewer
    than 8 KB is slow, because the calls take as long as the decoding.
    """
    return 128 if channels * dtype.itemsize <= 2 else 64


def encode_tiles(image: np.ndarray, side: int) -> tuple[bytes, np.ndarray]:
    """Return the tiles of an image (H, W, C), row by row in one piece, and the offset at which each of them ends."""
    height, width, _ = image.shape
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    codes = [_encode(image[top : top + side, left : left + side]) for top, left in corners]
    return b"".join(codes), np.cumsum([len(code) for code in codes], dtype=np.int64)


def touched_tiles(
    size: tuple[int, int], side: int, top: int, left: int, crop: tuple[int, int]
) -> Iterator[tuple[int, slice, slice]]:
    """Yield (number, rows, columns) of each tile of an image of `size` that a crop with this corner and size touches.

    Rows and columns are those of the tile's pixels in the image.
    """
    (height, width), bottom, right = size, top + crop[0], left + crop[1]
    per_row = -(-width // side)
    for row in range(top // side, -(-bottom // side)):
        for column in range(left // side, -(-right // side)):
            rows = slice(row * side, min((row + 1) * side, height))
            yield row * per_row + column, rows, slice(column * side, min((column + 1) * side, width))


def body_of_tile(code: np.ndarray) -> bytes:
    """Return a tile without its checksum. Raises: DamagedTileError."""
    body = code[_CHECKSUM:].tobytes()
    if not body or zlib.crc32(body) != int.from_bytes(code[:_CHECKSUM].tobytes(), "little"):
        raise DamagedTileError("the checksum of a tile differs")
    return body


def decode_tile(out: np.ndarray, code: np.ndarray, size: tuple[int, int], top: int, left: int) -> None:
    """Copy the part of a tile of `size` with its corner at (top, left) into `out` (h, w, C).

    Raises: DamagedTileError.
    """
    from imagecodecs import delta_decode, rcomp_decode  # not needed by raw stores

    body = body_of_tile(code)
    mode = body[0]
    result = out.view(_unsigned(out.dtype))
    if mode & _BYTE_TWICE:
        result = np.empty(out.shape, np.uint8)
    planes = np.empty((out.shape[2], *size), result.dtype)
    values = planes.reshape(-1).view(f"i{planes.itemsize}")
    rcomp_decode(body[1:], shape=values.shape, dtype=values.dtype, nblock=_BLOCK, out=values)
    if mode & _ROWS:
        delta_decode(planes, axis=1, out=planes)
    part = planes[:, top : top + out.shape[0], left : left + out.shape[1]]
    for channel, reference in _order(out.shape[2]):
        if reference is None or not mode & _CHANNELS:
            result[..., channel] = part[channel]
        else:
            np.add(part[channel], result[..., reference], out=result[..., channel])
    if mode & _BYTE_TWICE:
        np.multiply(result, 257, out=out.view(_unsigned(out.dtype)), dtype=np.uint16)
    elif mode >> _SHIFT:
        np.left_shift(result, mode >> _SHIFT, out=result)


def _encode(tile: np.ndarray) -> bytes:
    from imagecodecs import delta_encode, rcomp_encode

    values, mode = _without_unused_bits(tile.view(_unsigned(tile.dtype)))
    plain = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    across = plain.copy()
    for channel, reference in reversed(_order(len(plain))):
        if reference is not None:
            across[channel] -= across[reference]
    choices = {
        mode | _CHANNELS | _ROWS: delta_encode(across, axis=1),
        mode | _CHANNELS: across,
        mode | _ROWS: delta_encode(plain, axis=1),
        mode: plain,
    }
    mode = min(choices, key=lambda each: _cost(choices[each]))
    chosen = np.ascontiguousarray(choices[mode])
    body = bytes([mode]) + rcomp_encode(chosen.reshape(-1).view(f"i{chosen.itemsize}"), nblock=_BLOCK)
    return zlib.crc32(body).to_bytes(_CHECKSUM, "little") + body


def _cost(planes: np.ndarray) -> int:
    """What grows with the length of the code: the sum of logarithms of the differences in every eighth row.

    The bits of a float, read as an integer, are its logarithm but for a factor and an error of a few percent.
    """
    sample = planes[:, ::-8]
    differences = (sample[..., 1:] - sample[..., :-1]).view(f"i{planes.itemsize}").astype(np.float32)
    return int((np.abs(differences) + 1).view(np.int32).sum(dtype=np.int64))


def _without_unused_bits(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The values of a tile without the bits of uint16 that say nothing, and the mode that brings them back."""
    if values.dtype != np.uint16:
        return values, 0
    if (values >> 8 == values & 255).all():
        return values.astype(np.uint8), _BYTE_TWICE
    used = int(np.bitwise_or.reduce(values, axis=None))
    shift = (used & -used).bit_length() - 1
    return values >> shift, shift << _SHIFT


def _order(channels: int) -> list[tuple[int, int | None]]:
    """Channels in the order of decoding, each with the one that is subtracted from it: green, or the previous one."""
    if channels == 3:
        return [(1, None), (0, 1), (2, 1)]
    return [(channel, channel - 1 if channel else None) for channel in range(channels)]


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"u{dtype.itemsize}")
