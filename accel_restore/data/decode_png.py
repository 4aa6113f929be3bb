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
_PALETTE = 3  # colour type
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
    dtype = "uint16" if layout.depth == 16 else "uint8"
    orientation = orientation_of(*exif_and_xmp(chunks))
    return make_header((layout.height, layout.width), dtype, mode, "PNG", orientation, max_pixels)


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

    libpng is given plain gray or RGB, so that it neither warns on the terminal nor fills in missing colours.

    Raises: ImageError for damaged files.
    """
    chunks = list(read_chunks(io.BytesIO(data_of(content)), without_pixels=False))
    layout, first = _layout(chunks), dict(reversed(chunks))  # of each kind
    compressed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    rows = _unpacked(compressed, _raw_size(layout))
    transparent = _transparent(layout, first.get(b"tRNS", b""))
    pixels = _interlaced(layout, rows, transparent) if layout.interlaced else _decoded(layout, compressed, transparent)
    if layout.colour == _PALETTE:
        scale = 255 // (2**layout.depth - 1) if layout.depth < 8 else 1
        return _coloured(pixels // scale, first.get(b"PLTE", b""), first.get(b"tRNS", b""))
    return pixels


def _unpacked(compressed: bytes, size: int) -> memoryview:
    """Inflate all rows; a bomb takes no memory."""
    import imagecodecs

    rows = bytearray(size) if size <= _MOST * len(compressed) else None
    try:
        if rows is None or len(imagecodecs.deflate_decode(compressed, out=rows)) != size:
            raise damaged("it holds fewer pixels than its header names")
    except imagecodecs.DeflateError:
        if len(zlib.decompressobj().decompress(compressed, size + 1)) > size:
            raise damaged("it holds more pixels than its header names") from None
        raise
    return memoryview(rows)


def _transparent(layout: _Layout, chunk: bytes) -> bytes:
    """The transparent gray or colour of a chunk tRNS, in the bits of a pixel; empty if there is none."""
    if len(chunk) != {0: 2, 2: 6}.get(layout.colour):
        return b""
    return b"".join((value & (2**layout.depth - 1)).to_bytes(2) for (value,) in struct.iter_unpack(">H", chunk))


def _decoded(layout: _Layout, compressed: bytes, transparent: bytes) -> np.ndarray:
    """The pixels of rows that are not interlaced; indices of a palette as gray."""
    import imagecodecs

    colour = 0 if layout.colour == _PALETTE else layout.colour
    parts = [(b"IHDR", struct.pack(">IIBBBBB", layout.width, layout.height, layout.depth, colour, 0, 0, 0))]
    parts += [(b"tRNS", transparent)] if transparent else []
    parts += [(b"IDAT", compressed), (b"IEND", b"")]
    plain = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        for kind, body in parts
    )
    return imagecodecs.png_decode(SIGNATURE + plain)


def _interlaced(layout: _Layout, rows: memoryview, transparent: bytes) -> np.ndarray:
    """The pixels of an interlaced image: each pass is an image of its own."""
    pixels, start = None, 0
    for top, left, row_step, column_step in _PASSES:
        height, width = -((top - layout.height) // row_step), -((left - layout.width) // column_step)
        if height <= 0 or width <= 0:
            continue
        part = layout._replace(width=width, height=height, interlaced=0)
        size = _raw_size(part)
        image = _decoded(part, zlib.compress(rows[start : start + size], 1), transparent)
        image = image.reshape(height, width, -1)
        if pixels is None:  # the first pass is never empty
            pixels = np.empty((layout.height, layout.width, image.shape[2]), image.dtype)
        pixels[top::row_step, left::column_step] = image
        start += size
    assert pixels is not None
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _coloured(indices: np.ndarray, palette: bytes, alpha: bytes) -> np.ndarray:
    """The colours of indices, with an alpha channel if `alpha` names that of some colours."""
    if not palette or len(palette) % 3 or len(palette) > 3 * 256:
        raise damaged("its palette is missing or has a wrong length")
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    if indices.max() >= len(colours):
        raise damaged(f"a pixel has the colour {indices.max()} of a palette of {len(colours)}")
    if 0 < len(alpha) <= len(colours):
        values = np.frombuffer(alpha.ljust(len(colours), b"\xff"), np.uint8)
        colours = np.concatenate([colours, values[:, None]], axis=1)
    return colours[indices]


def _raw_size(layout: _Layout) -> int:
    """The number of bytes that IDAT holds: one for each row, and the row's pixels in whole bytes."""
    bits = layout.depth * _CHANNELS[layout.colour]
    passes = _PASSES if layout.interlaced else ((0, 0, 1, 1),)
    total = 0
    for top, left, row_step, column_step in passes:
        rows, columns = -((top - layout.height) // row_step), -((left - layout.width) // column_step)
        total += rows * (1 + (columns * bits + 7) // 8) if rows > 0 and columns > 0 else 0
    return total
