"""What an image file says of its pixels: EXIF data, colour, density, XMP; read for a new file of the same picture.

Kept is what describes the pixels, or who made them and when, and still holds for the restored picture: it is upright,
so its orientation is 1; it has `scale` times as many pixels on the same paper, so its density is `scale` times higher.
Left out are thumbnails, the places and sizes of the original, and what the new format has no place for.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from accel_restore.data.exif import XMP, Density, Tiff, exif_of_tiff, renewed
from accel_restore.data.image_formats import DAMAGE, FORMATS

Chunks = list[tuple[bytes, bytes]]  # name and body of a PNG's

_PNG_COLOUR = (b"mDCV", b"cLLI", b"cICP", b"sRGB", b"gAMA", b"cHRM")
_PNG_OTHER = (b"IHDR", b"PLTE", b"tRNS", b"IEND", b"iCCP", b"eXIf", b"pHYs", b"bKGD", b"hIST", b"sBIT")
_XMP_KEYWORD = b"XML:com.adobe.xmp\0"
_SRGB_PRIMARIES, _SRGB_TRANSFERS = (1, 2), (1, 2, 13)  # codes of H.273; 2: unspecified
_MAX_XMP = 2**24  # bytes, after decompression
_MAX_JPEG = 63_000  # bytes of EXIF or XMP; a segment of a JPEG has 65,533, and `renewed` appends to EXIF


@dataclass(frozen=True)
class About:
    """The metadata of an image file, true of its upright pixels."""

    exif: bytes | None = None  # as in the file, but for a TIFF only what is not its layout
    icc: bytes | None = None
    xmp: bytes | None = None
    density: Density | None = None
    colour: dict[bytes, bytes] = field(default_factory=dict)  # PNG chunks
    left_out: tuple[str, ...] = ()  # what the original has besides, in words


def read_about(data: bytes, channels: int, orientation: int = 1, scale: int = 1) -> About:
    """Return the metadata of an image file's bytes, for a new file of `channels` that is `scale` times as large.

    `orientation` is that of the original, which has been applied. Nothing is decoded. Damaged parts are left out.
    """
    left_out: list[str] = []
    with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        chunks = list(_chunks(data)) if image.format == "PNG" else []
        exif, xmp = _exif_of(image, data, chunks, left_out), _xmp_of(image, chunks, left_out)
        icc = image.info.get("icc_profile") or None
        if icc and icc[16:20] != (b"GRAY" if channels == 1 else b"RGB "):
            left_out.append(f"a profile of other colours than {'gray' if channels == 1 else 'RGB'}")
            icc = None
        density = _density_of(image, chunks, exif)
        left_out += _others(image, chunks)
        colour = _colour_of(image, chunks, data)
    if density is not None:
        x, y = (density.y, density.x) if orientation >= 5 else (density.x, density.y)
        factor = 1 if density.unit == 1 else scale
        density = Density(x * factor, y * factor, density.unit)
    return About(exif, icc, xmp, density, colour, tuple(dict.fromkeys(left_out)))


def fitted(about: About, format: str) -> About:
    """Return the part of the metadata that a format can hold; `left_out` names the rest."""
    changes: dict = {}
    left_out = list(about.left_out)
    if format != "PNG" and about.colour:
        changes["colour"] = {}
        # A profile comes before sRGB, gAMA and cHRM; and pictures that name no colours are taken for sRGB.
        is_said = about.colour.keys() <= {b"sRGB", b"gAMA", b"cHRM"} and (about.icc or b"sRGB" in about.colour)
        left_out += [] if is_said else [f"{', '.join(name.decode() for name in about.colour)} (PNG only)"]
    if format == "JPEG":
        for name, content in (("EXIF", about.exif), ("XMP", about.xmp)):
            if content is not None and len(content) > _MAX_JPEG:
                changes[name.lower()] = None
                left_out.append(f"{name} (too large for a JPEG)")
    return replace(about, **changes, left_out=tuple(left_out))


def _exif_of(image: ImageFile, data: bytes, chunks: Chunks, left_out: list[str]) -> bytes | None:
    """Return the file's EXIF data; None if there is none, or if it is damaged."""
    try:
        if image.format == "TIFF":
            exif, others = exif_of_tiff(data)
            left_out += others
            return exif
        exif = next((body for name, body in chunks if name == b"eXIf"), None) or image.info.get("exif")
        if not exif and (text := image.info.get("Raw profile type exif")):  # ImageMagick's PNG, before there was eXIf
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        if not exif:
            return None
        exif = exif.removeprefix(b"Exif\0\0")
        if renewed(exif, (1, 1), None, "").is_damaged:
            left_out.append("damaged EXIF values")
    except DAMAGE as error:
        left_out.append(f"damaged EXIF data ({error})")
        return None
    return exif


def _xmp_of(image: ImageFile, chunks: Chunks, left_out: list[str]) -> bytes | None:
    """Return the file's XMP in UTF-8; None if there is none, or if it has another encoding."""
    xmp = image.info.get("xmp")
    if isinstance(image, TiffImageFile):
        xmp = image.tag_v2.get(XMP)
    for name, body in chunks:
        if name == b"iTXt" and body.startswith(_XMP_KEYWORD):
            xmp = _text_of(body)
    if not xmp:
        return None
    if not isinstance(xmp, bytes) or b"<rdf:RDF" not in xmp:
        left_out.append("XMP that cannot be read")
        return None
    return xmp.rstrip(b"\0")


def _text_of(chunk: bytes) -> bytes:
    """Return the text of an iTXt chunk; nothing if it is damaged or too long."""
    is_compressed, _, rest = chunk[len(_XMP_KEYWORD)], chunk[len(_XMP_KEYWORD) + 1], chunk[len(_XMP_KEYWORD) + 2 :]
    text = rest.split(b"\0", 2)[-1]  # after the language and the translated keyword
    try:
        return zlib.decompressobj().decompress(text, _MAX_XMP) if is_compressed else text
    except zlib.error:
        return b""


def renewed_xmp(xmp: bytes, size: tuple[int, int]) -> bytes:
    """Return XMP for new upright pixels of `size` (width, height)."""
    width, height = size
    values = {
        "tiff:Orientation": 1, "tiff:ImageWidth": width, "tiff:ImageLength": height,
        "exif:PixelXDimension": width, "exif:PixelYDimension": height,
    }  # fmt: skip
    for name, value in values.items():
        new = rb"\g<1>%d\g<2>" % value
        key = name.encode()
        xmp = re.sub(rb"(\b" + key + rb"\s*=\s*[\"'])[^\"']*([\"'])", new, xmp)
        xmp = re.sub(rb"(<" + key + rb"\b[^>]*>)[^<]*(</" + key + rb">)", new, xmp)
    xmp = re.sub(rb"<(xmp|xap):Thumbnails\b.*?</\1:Thumbnails>", b"", xmp, flags=re.DOTALL)
    return re.sub(rb"\s+xmpNote:HasExtendedXMP\s*=\s*[\"'][^\"']*[\"']", b"", xmp)  # its other parts are not kept


def _density_of(image: ImageFile, chunks: Chunks, exif: bytes | None) -> Density | None:
    """Return the density of the stored pixels, as the format states it; else as EXIF does."""
    found = None
    for name, body in chunks:
        if name == b"pHYs" and len(body) == 9:
            x, y, is_metric = struct.unpack(">IIB", body)
            found = (
                Density(Fraction(x, 100), Fraction(y, 100), 3) if is_metric else Density(Fraction(x), Fraction(y), 1)
            )
    if "jfif_density" in image.info:
        x, y = image.info["jfif_density"]
        found = Density(Fraction(x), Fraction(y), {1: 2, 2: 3}.get(image.info["jfif_unit"], 1))
    if _is_known(found):
        return found
    try:
        found = Tiff.parse(bytearray(exif)).density() if exif else None
    except ValueError:
        found = None
    if _is_known(found):
        return found
    if "dpi" in image.info and "jfif_density" not in image.info and not _lacks_density(image):
        try:
            x, y = (Fraction(float(side)).limit_denominator(1000) for side in image.info["dpi"])
        except (TypeError, ValueError, OverflowError):
            return None
        found = Density(x, y, 2)
    return found if _is_known(found) else None


def _lacks_density(image: ImageFile) -> bool:
    """Whether Pillow's `dpi` is a value that it makes up."""
    return isinstance(image, TiffImageFile) and 282 not in image.tag_v2


def _is_known(density: Density | None) -> bool:
    """Whether a density says something."""
    return density is not None and min(density.x, density.y) > 0 and (density.unit != 1 or density.x != density.y)


def _colour_of(image: ImageFile, chunks: Chunks, data: bytes) -> dict[bytes, bytes]:
    """Return what a file says of its colours, besides a profile, as chunks of a PNG."""
    if image.format == "AVIF" and (found := re.search(rb"colrnclx(..)(..)", data, re.DOTALL)):
        primaries, transfer = (int.from_bytes(code) for code in found.groups())
        if primaries not in _SRGB_PRIMARIES or transfer not in _SRGB_TRANSFERS:
            return {b"cICP": bytes([primaries & 255, transfer & 255, 0, 1])}
    return {name: body for name, body in chunks if name in _PNG_COLOUR}


def _others(image: ImageFile, chunks: Chunks) -> list[str]:
    """Return what else a file holds, in words."""
    known = {*_PNG_COLOUR, *_PNG_OTHER}
    found = [name.decode("latin-1") for name, body in chunks if name not in known and _XMP_KEYWORD not in body[:18]]
    if isinstance(image, JpegImageFile):
        segments = b"".join(name.encode() + body[:35] for name, body in image.applist)
        found += ["Photoshop's data (IPTC)"] if b"APP13Photoshop" in segments else []
        found += ["the rest of a long XMP"] if b"http://ns.adobe.com/xmp/extension/" in segments else []
        found += ["further pictures (MPO)"] if image.format == "MPO" else []
    return found + (["a comment"] if image.info.get("comment") else [])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and body of the chunks of a PNG, less its pixels."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name != b"IDAT":
            yield name, data[at + 8 : at + 8 + length]
        at += length + 12
