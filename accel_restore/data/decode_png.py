"""PNG files: every chunk's checksum is checked, and the compressed pixels must have the size that the header names.

Pillow ignores checksums of pixels and refuses large texts. libpng is given the chunks that describe pixels, no others.
Source: PNG (Third Edition), W3C 2025.
"""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np

from accel_restore.data.image_formats import Content, Header, ImageError, damaged, data_of, make_header, opened
from accel_restore.data.orientation import orientation_of
from accel_restore.data.png_chunks import SIGNATURE, exif_and_xmp, read_chunks

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_MODES = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MOST = 1032  # bytes that one byte of Deflate can become
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


class _Layout(NamedTuple):
    """The fields of IHDR."""

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filter: int
    interlaced: int


def read_png_header(content: Content, max_pixels: int) -> Header:
    """Return the header of a PNG; the pixels are skipped.

    Raises: ImageError for files that are damaged, too large, or hold several images.
    """
    with opened(content) as file:
        chunks = list(read_chunks(file, without_pixels=True))
    layout = _layout(chunks)
    frames = next((struct.unpack(">I", body[:4])[0] for kind, body in chunks if kind == b"acTL" and len(body) == 8), 1)
    if frames > 1:
        raise ImageError(f"contains {frames} images; save the one that you want as a separate file")
    if unknown := [kind for kind, _ in chunks if kind[:1].isupper() and kind not in _PIXEL_CHUNKS]:
        raise ImageError(f"has pixels of a private PNG variant (chunk {unknown[0]!r}); save it again as plain PNG")
    mode = "black and white" if layout.depth == 1 and layout.colour == 0 else _MODES[layout.colour]
    bits = 16 if layout.depth == 16 else 8
    orientation = orientation_of(*exif_and_xmp(chunks))
    return make_header((layout.height, layout.width), bits, mode, "PNG", orientation, max_pixels)


def _layout(chunks: list[tuple[bytes, bytes]]) -> _Layout:
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise damaged("it does not start with a header")
    layout = _Layout(*struct.unpack(">IIBBBBB", chunks[0][1]))
    is_known = layout.depth in _DEPTHS.get(layout.colour, ()) and (layout.compression, layout.filter) == (0, 0)
    if not (layout.width and layout.height and is_known and layout.interlaced < 2):
        raise damaged("its header is invalid")
    return layout


def read_png_pixels(content: Content) -> np.ndarray:
    """Return the pixels (H, W) or (H, W, 2 to 4) as stored, with the alpha channel if there is transparency.

    Raises: ImageError for damaged files.
    """
    import imagecodecs

    chunks = list(read_chunks(io.BytesIO(data_of(content)), without_pixels=False))
    layout = _layout(chunks)
    compressed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    parts = [(kind, body) for kind, body in chunks if kind in _PIXEL_CHUNKS and kind not in (b"IDAT", b"IEND")]
    parts += [(b"IDAT", compressed), (b"IEND", b"")]
    plain = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        for kind, body in parts
    )
    size = _raw_size(layout)
    is_short = size > _MOST * len(compressed)  # without memory for pixels that are not there
    if is_short or len(imagecodecs.deflate_decode(compressed, out=bytearray(size))) != size:
        raise damaged("it holds fewer pixels than its header names")
    return imagecodecs.png_decode(SIGNATURE + plain)


def _raw_size(layout: _Layout) -> int:
    """The number of bytes that IDAT holds: one for each row, and the row's pixels in whole bytes."""
    bits = layout.depth * _CHANNELS[layout.colour]
    passes = _PASSES if layout.interlaced else ((0, 0, 1, 1),)
    total = 0
    for top, left, row_step, column_step in passes:
        rows, columns = -((top - layout.height) // row_step), -((left - layout.width) // column_step)
        total += rows * (1 + (columns * bits + 7) // 8) if rows > 0 and columns > 0 else 0
    return total
