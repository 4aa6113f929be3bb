"""Encode restored pixels as PNG, JPEG, WebP or TIFF, with the EXIF data and ICC profile of the original.

PNG and TIFF files are assembled here from encoded parts, because no library writes 16-bit colour with EXIF.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from accel_restore.data.image_formats import FORMATS

SUFFIXES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
DEEP = ("PNG", "TIFF")  # formats of 16 bits
MARK = 0x000B  # EXIF tag ProcessingSoftware

_ORIENTATION, _WIDTH, _HEIGHT, _ICC = 0x0112, 0xA002, 0xA003, 34675
# TIFF tags that describe how the pixels of the original are stored.
_LAYOUT = {*range(254, 267), 273, *range(277, 280), 284, 317, *range(320, 326), 330, *range(338, 348), *range(512, 533),
           _ICC}  # fmt: skip
_MAX_EXIF = 65_533  # bytes, in a JPEG
_STRIP_BYTES = 2**18


@dataclass(frozen=True)
class About:
    """The metadata of an image file."""

    exif: Image.Exif
    icc: bytes | None = None


def read_about(file: Path, channels: int) -> About:
    """Return the EXIF data and ICC profile of an image file, for a new file of its upright pixels.

    Outdated data is left out: the orientation, the thumbnail, and a gray profile for colour or the reverse. Unreadable
    EXIF data is left out too.
    """
    exif, icc = Image.Exif(), None
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        profile = image.info.get("icc_profile")
        if profile and profile[16:20] == (b"GRAY" if channels == 1 else b"RGB "):
            icc = profile
        try:
            found = image.getexif()
            groups = {group: dict(found.get_ifd(group)) for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
            kept = {tag: value for tag, value in found.items() if tag not in {*_LAYOUT, *groups}}
            kept |= {tag: values for tag, values in groups.items() if values}
            exif = _encodable(kept)
        except Exception:  # Pillow raises many kinds of exceptions for damaged EXIF data
            exif = Image.Exif()
    return About(exif, icc)


def _encodable(tags: dict) -> Image.Exif:
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    if _ORIENTATION in exif:
        exif[_ORIENTATION] = 1
    exif.tobytes()
    return exif


def read_mark(file: Path) -> str | None:
    """Return the mark that `encode` wrote into this file; None for other files."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # no pixel is read
    try:
        with Image.open(file, formats=list(SUFFIXES.values())) as image:
            if image.format == "PNG" and "exif" not in image.info:  # to look further, Pillow would decode the file
                return None
            return image.getexif().get(MARK)
    except Exception:  # not a file of `encode`, whatever it is
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def encode(pixels: np.ndarray, format: str, about: About, mark: str, quality: int = 95) -> bytes:
    """Return an image file of pixels (H, W, 1 or 3), uint8, or uint16 for PNG and TIFF; `mark` names its origin.

    `quality` applies to JPEG, which keeps colours at full resolution, and to WebP, which is lossless at 100.

    Raises: ValueError or OSError if the format cannot store the pixels.
    """
    exif = Image.Exif()
    exif.update(about.exif)
    exif[MARK] = mark
    inner = exif.get(ExifTags.IFD.Exif)
    if isinstance(inner, dict):
        size = {_WIDTH: pixels.shape[1], _HEIGHT: pixels.shape[0]}
        exif[ExifTags.IFD.Exif] = {**inner, **{tag: value for tag, value in size.items() if tag in inner}}
    if format == "PNG":
        return _png(pixels, exif.tobytes(), about.icc)
    if format == "TIFF":
        return _tiff(pixels, exif, about.icc)
    if len(exif.tobytes()) > _MAX_EXIF:
        exif = Image.Exif()
        exif[MARK] = mark
    options: dict[str, Any] = {"subsampling": 0} if format == "JPEG" else {"lossless": quality == 100, "exact": True}
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.save(buffer, format, exif=exif.tobytes(), icc_profile=about.icc, quality=quality, **options)
    return buffer.getvalue()


def _png(pixels: np.ndarray, exif: bytes, icc: bytes | None) -> bytes:
    import imagecodecs

    plane = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    data = imagecodecs.png_encode(np.ascontiguousarray(plane), level=6)
    start = 8 + 25  # after the signature and the header
    chunks = [(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))] if icc else []
    chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    added = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return bytes(data[:start] + added + data[start:])


def _tiff(pixels: np.ndarray, exif: Image.Exif, icc: bytes | None) -> bytes:
    """A TIFF whose first directory is the EXIF data's. EXIF data has TIFF's format, so only the pixels are added.

    Source: TIFF 6.0, Adobe 1992: strips, deflated (compression 8 of its supplement 2) with horizontal differences.
    """
    height, width, channels = pixels.shape
    rows = max(1, _STRIP_BYTES // (width * channels * pixels.itemsize))
    differences = pixels.copy()
    differences[:, 1:] -= pixels[:, :-1]  # modulo 2^bits, as the format defines
    stored = differences.astype(pixels.dtype.newbyteorder("<"))
    strips = [zlib.compress(stored[top : top + rows].tobytes()) for top in range(0, height, rows)]
    layout = {
        "ImageWidth": width, "ImageLength": height, "BitsPerSample": (8 * pixels.itemsize,) * channels,
        "Compression": 8, "PhotometricInterpretation": 1 if channels == 1 else 2, "SamplesPerPixel": channels,
        "RowsPerStrip": rows, "Predictor": 2, "StripByteCounts": tuple(map(len, strips)),
        "StripOffsets": tuple(np.cumsum([0, *map(len, strips[:-1])]).tolist()),  # from the end of the directory
    }  # fmt: skip
    for name, value in layout.items():
        exif[ExifTags.Base[name]] = value
    if icc:
        exif[_ICC] = icc
    exif.endian = "<"
    directory = exif.tobytes().removeprefix(b"Exif\0\0")  # Pillow adds the directory's length to the offsets
    size = len(directory) + sum(map(len, strips))
    if size >= 2**32:
        raise ValueError("a TIFF holds at most 4 GB; use the suffix .png")
    return directory + b"".join(strips)
