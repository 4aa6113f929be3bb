"""The chunks of a PNG file: their checksums, texts, EXIF data and XMP.

Source: PNG (Third Edition), W3C 2025.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from accel_restore.data.image_formats import ImageError, damaged

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_STARTS = (b"Exif", b"II", b"MM")
_MAX_TEXT = 2**26  # bytes of an inflated text or profile; Pillow's limit for all texts of a file
_BLOCK = 2**20
_CUT = "it ends before its last chunk"


def read_chunks(file: BinaryIO, without_pixels: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the content of each chunk up to IEND, for `without_pixels` without those of IDAT.

    Raises: ImageError if a checksum is wrong, or if the file is cut. A cut in the pixels that are left out is no error.
    """
    file.seek(len(SIGNATURE))
    kind, is_skipping = b"", False
    while kind != b"IEND":
        start = file.read(8)
        if is_skipping and len(start) < 8:
            return
        if len(start) < 8:
            raise damaged(_CUT)
        length, kind = struct.unpack(">I4s", start)
        is_skipping = without_pixels and kind == b"IDAT"
        if is_skipping:
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
            raise damaged(_CUT)
        blocks.append(block)
        length -= len(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def exif_and_xmp(chunks: list[tuple[bytes, bytes]]) -> tuple[bytes | None, bytes | None]:
    """Return the EXIF data and the XMP: of eXIf and Adobe's text, or of texts that ImageMagick writes."""
    exif = next((body for kind, body in chunks if kind == b"eXIf"), None)
    texts = dict(text for kind, body in chunks if (text := text_of(kind, body)) is not None)
    app1 = raw_profile(texts.get(b"Raw profile type APP1")) or b""  # EXIF data or XMP
    exif = exif or raw_profile(texts.get(b"Raw profile type exif")) or (app1 if app1.startswith(_EXIF_STARTS) else None)
    xmp = texts.get(b"XML:com.adobe.xmp") or raw_profile(texts.get(b"Raw profile type xmp"))
    return exif, xmp or (app1 if not app1.startswith(_EXIF_STARTS) else None) or None


def text_of(kind: bytes, body: bytes) -> tuple[bytes, bytes] | None:
    """Return keyword and text of a text chunk, or name and content of a profile; None for other chunks.

    Raises: ImageError if it is too large.
    """
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


def raw_profile(text: bytes | None) -> bytes | None:
    """Return the content of ImageMagick's raw profile: a name, a length, and hexadecimal digits; None if damaged."""
    try:
        return None if text is None else bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        return None
