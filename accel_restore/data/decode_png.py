"""PNG files: every chunk's checksum is checked, and the compressed pixels must have the size that the header names.

Pillow ignores checksums of pixels, fills missing rows with zeros, and refuses large texts. libpng is given the chunks
that describe pixels, and no others.
Source: PNG (Third Edition), W3C 2025.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from accel_restore.data.image_formats import Content, Header, ImageError, damaged, data_of, make_header
from accel_restore.data.orientation import orientation_of

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_MODES = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_MAX_TEXT = 2**26  # bytes of an inflated text or profile; Pillow's limit for all texts of a file
_BLOCK = 2**20


class _Layout(NamedTuple):
    """The fields of IHDR."""

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filter: int
    interlaced: int


def read_chunks(file: BinaryIO, without_pixels: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the content of each chunk up to IEND, for `without_pixels` without those of IDAT.

    Raises: ImageError if the file is cut, or a checksum is wrong.
    """
    file.seek(len(_SIGNATURE))
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", _read(file, 8))
        if without_pixels and kind == b"IDAT":
            file.seek(length + 4, io.SEEK_CUR)
            continue
        content, checksum = _read(file, length), _read(file, 4)
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            raise damaged(f"the checksum of its chunk {kind.decode('ascii', 'replace')} is wrong")
        yield kind, content


def _read(file: BinaryIO, length: int) -> bytes:
    """`length` bytes; a false length of a small file takes little memory."""
    blocks = []
    while length:
        block = file.read(min(length, 2**24))
        if not block:
            raise damaged("it ends before its last chunk")
        blocks.append(block)
        length -= len(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def read_png_header(content: Content, max_pixels: int) -> Header:
    """Return the header of a PNG; the pixels are skipped.

    Raises: ImageError for files that are damaged, too large, or hold several images.
    """
    with ExitStack() as stack:
        file: BinaryIO = stack.enter_context(content.open("rb")) if isinstance(content, Path) else content
        chunks = list(read_chunks(file, without_pixels=True))
    layout = _layout(chunks)
    frames = next((struct.unpack(">I", body[:4])[0] for kind, body in chunks if kind == b"acTL" and len(body) == 8), 1)
    if frames > 1:
        raise ImageError(f"contains {frames} images; save the one that you want as a separate file")
    if unknown := [kind for kind, _ in chunks if kind[:1].isupper() and kind not in _PIXEL_CHUNKS]:
        raise ImageError(f"has pixels of a private PNG variant (chunk {unknown[0]!r}); save it again as plain PNG")
    mode = "black and white" if layout.depth == 1 and layout.colour == 0 else _MODES[layout.colour]
    bits = 16 if layout.depth == 16 else 8
    return make_header((layout.height, layout.width), bits, mode, "PNG", _orientation(chunks), max_pixels)


def _layout(chunks: list[tuple[bytes, bytes]]) -> _Layout:
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise damaged("it does not start with a header")
    layout = _Layout(*struct.unpack(">IIBBBBB", chunks[0][1]))
    if not layout.width or not layout.height or layout.depth not in _DEPTHS.get(layout.colour, ()):
        raise damaged(f"its header is invalid: {layout}")
    if layout.compression or layout.filter or layout.interlaced > 1:
        raise damaged(f"its header is invalid: {layout}")
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
    if len(imagecodecs.deflate_decode(compressed, out=bytearray(size))) != size:
        raise damaged("it holds fewer pixels than its header names")
    return imagecodecs.png_decode(_SIGNATURE + plain)


def _raw_size(layout: _Layout) -> int:
    """The number of bytes that IDAT holds: one for each row, and the row's pixels in whole bytes."""
    bits = layout.depth * _CHANNELS[layout.colour]
    passes = _PASSES if layout.interlaced else ((0, 0, 1, 1),)
    total = 0
    for top, left, row_step, column_step in passes:
        rows, columns = -((top - layout.height) // row_step), -((left - layout.width) // column_step)
        total += rows * (1 + (columns * bits + 7) // 8) if rows > 0 and columns > 0 else 0
    return total


def _orientation(chunks: list[tuple[bytes, bytes]]) -> int:
    """By the chunk eXIf, by EXIF data or XMP that ImageMagick stores as text, or by Adobe's XMP."""
    exif = next((body for kind, body in chunks if kind == b"eXIf"), None)
    texts = dict(text for kind, body in chunks if (text := _text(kind, body)) is not None)
    for keyword in (b"Raw profile type exif", b"Raw profile type APP1"):
        profile = _raw_profile(texts.get(keyword))
        exif = exif or (profile if profile is not None and profile.startswith((b"Exif", b"II", b"MM")) else None)
    xmp = texts.get(b"XML:com.adobe.xmp")
    for keyword in (b"Raw profile type xmp", b"Raw profile type APP1"):
        xmp = xmp or _raw_profile(texts.get(keyword))
    return orientation_of(exif, xmp)


def _text(kind: bytes, body: bytes) -> tuple[bytes, bytes] | None:
    """Keyword and text of a text chunk; None for other chunks. A profile's size is checked too."""
    keyword, _, rest = body.partition(b"\0")
    if kind == b"tEXt":
        return keyword, rest
    if kind in (b"zTXt", b"iCCP"):
        return keyword, _inflated(rest[1:])
    if kind == b"iTXt":
        text = rest[2:].split(b"\0", 2)[-1]
        return keyword, _inflated(text) if rest[:1] == b"\1" else text
    return None


def _inflated(compressed: bytes) -> bytes:
    stream, blocks, size = zlib.decompressobj(), [], 0
    try:
        while compressed and not stream.eof:
            blocks.append(stream.decompress(compressed, _BLOCK))
            size, compressed = size + len(blocks[-1]), stream.unconsumed_tail
            if size > _MAX_TEXT:
                raise ImageError(f"holds a text or profile of more than {_MAX_TEXT:,} bytes; save it again without it")
    except zlib.error:
        pass  # its checksum is right, so it was written like this, and pixels do not depend on it
    return b"".join(blocks)


def _raw_profile(text: bytes | None) -> bytes | None:
    """The content of ImageMagick's raw profile: a name, a length, and hexadecimal digits."""
    try:
        return None if text is None else bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError as error:
        raise damaged(f"a raw profile: {error}") from None
