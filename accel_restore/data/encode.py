"""Encode restored pixels as PNG, JPEG, WebP, TIFF, NumPy or OpenEXR file, with the metadata of the original.

PNG and TIFF files are assembled here from encoded parts, because no library writes 16-bit colour with EXIF.
"""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from accel_restore.data import decode_exr, decode_npy
from accel_restore.data.decode_pillow import open_image
from accel_restore.data.exif import ICC, MARK, XMP, Density, Tiff, renewed
from accel_restore.data.metadata import XMP_KEYWORD, About, read_tags, renewed_xmp
from accel_restore.data.pixels import KINDS, is_float
from accel_restore.data.png_chunks import SIGNATURE, exif_and_xmp, read_chunks

SUFFIXES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".npy": "NPY",
    ".exr": "OpenEXR",
}  # fmt: skip
# The kinds of pixels that a format holds; from 8 to 32 bits.
_KINDS = {
    "JPEG": KINDS[:1], "WEBP": KINDS[:1], "PNG": KINDS[:2], "TIFF": KINDS, "NPY": KINDS, "OpenEXR": KINDS[2:],
}  # fmt: skip
_ANY_CHANNELS = ("TIFF", "NPY", "OpenEXR")  # others hold gray and RGB

_STRIP_BYTES = 2**18
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels
_EXR_MARK = "processingSoftware"
_BYTE, _SHORT, _LONG, _UNDEFINED = 1, 3, 4, 7  # types of TIFF
_PER_INCH = Fraction(254, 100)


def holds_channels(format: str, channels: int) -> bool:
    """Return whether a format holds images with this number of channels."""
    return channels in (1, 3) or format in _ANY_CHANNELS


def written_kind(kind: np.dtype, format: str) -> np.dtype:
    """Return the kind that a format stores pixels of this kind as.

    It is the same one if the format holds it, else the deepest: 8 or 16 bits, or float32.
    """
    return kind if kind in _KINDS[format] else _KINDS[format][-1]


def written_suffix(suffix: str, kind: np.dtype | None, channels: int) -> str:
    """Return the suffix of a restored file: that of the original, or .png or .tif if its format cannot hold the output.

    `kind` is that of the output; None: that of the original, which its format holds.
    """
    format = SUFFIXES.get(suffix.lower())
    format = format if format and holds_channels(format, channels) else None
    if format and (kind is None or is_float(written_kind(kind, format)) == is_float(kind)):
        return suffix
    return ".png" if holds_channels("PNG", channels) and not (kind and is_float(kind)) else ".tif"


def read_mark(file: Path) -> str | None:
    """Return the mark that `encode` wrote into this file; None for other files."""
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
            if start.startswith(SIGNATURE):
                exif, tags = exif_and_xmp(list(read_chunks(opened, without_pixels=True)))[0], Image.Exif()
                tags.load(exif or b"")
                return tags.get(MARK)
            if start.startswith(decode_npy.SIGNATURE):
                return decode_npy.read_note(opened)
            if start.startswith(decode_exr.SIGNATURE):
                return decode_exr.read_text(opened, _EXR_MARK)
            if start.startswith((b"II*\0", b"MM\0*")):
                return read_tags(opened).get(MARK)
        with open_image(file, start, SUFFIXES.values()) as image:
            return image.getexif().get(MARK)
    except Exception:  # not a file of `encode`, whatever it is
        return None


def encode(pixels: np.ndarray, format: str, about: About, mark: str, quality: int = 95) -> bytes:
    """Return an image file of pixels (H, W, C), of a kind that the format holds; `mark` names its origin.

    `about` holds what the format can hold; see `fitted`. `quality` applies to JPEG, which keeps colours at full
    resolution, and to WebP, which is lossless at 100.

    Raises: ValueError or OSError if the format cannot store the pixels.
    """
    size = (pixels.shape[1], pixels.shape[0])
    if max(size) > _MAX_SIDE.get(format, max(size)):
        raise ValueError(f"a {format} has at most {_MAX_SIDE[format]:,} pixels a side; use the suffix .png or .tif")
    if format == "NPY":
        return decode_npy.encode(pixels, mark)
    if format == "OpenEXR":
        return decode_exr.encode(pixels, about.exr, about.exr_channels, (_EXR_MARK, mark))
    exif = renewed(about.exif, size, about.density, mark, adds_density=format in ("TIFF", "WEBP"))
    xmp = renewed_xmp(about.xmp, size) if about.xmp is not None else b""
    if format == "PNG":
        return _png(pixels, exif.finish(), xmp, about)
    if format == "TIFF":
        return _tiff(pixels, exif, xmp, about.icc)
    options: dict[str, Any] = {"subsampling": 0} if format == "JPEG" else {"lossless": quality == 100, "exact": True}
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.save(
        buffer, format, exif=b"Exif\0\0" + exif.finish(), xmp=xmp, icc_profile=about.icc, quality=quality, **options
    )
    return _with_jfif_density(buffer.getvalue(), about.density) if format == "JPEG" else buffer.getvalue()


def _with_jfif_density(file: bytes, density: Density | None) -> bytes:
    """Return a JPEG of Pillow's, whose first segment is JFIF's, with a density."""
    if density is None:
        return file
    if density.unit == 3 and not density.x.denominator == density.y.denominator == 1:
        (x, y), unit = density.times(_PER_INCH), 1
    else:
        (x, y), unit = density.times(1), density.unit - 1
    return file[:13] + struct.pack(">BHH", unit, x, y) + file[18:] if max(x, y) < 2**16 and min(x, y) > 0 else file


def _png(pixels: np.ndarray, exif: bytes, xmp: bytes, about: About) -> bytes:
    import imagecodecs

    plane = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    data = imagecodecs.png_encode(np.ascontiguousarray(plane), level=6)
    start = 8 + 25  # after the signature and the header
    chunks = [(name, body) for name, body in about.colour.items() if name != b"sRGB" or not about.icc]
    if about.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(about.icc)))
    if about.density is not None:
        is_metric = about.density.unit != 1
        x, y = about.density.times((Fraction(1), 100 / _PER_INCH, Fraction(100))[about.density.unit - 1])
        if min(x, y) > 0 and max(x, y) < 2**31:
            chunks.append((b"pHYs", struct.pack(">IIB", x, y, is_metric)))
    chunks.append((b"eXIf", exif))
    if xmp:
        chunks.append((b"iTXt", XMP_KEYWORD + bytes(5) + xmp))
    added = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return bytes(data[:start] + added + data[start:])


def _tiff(pixels: np.ndarray, exif: Tiff, xmp: bytes, icc: bytes | None) -> bytes:
    """A TIFF whose first directory is the EXIF data's. EXIF data has TIFF's format, so only the pixels are added.

    Source: TIFF 6.0, Adobe 1992: strips, deflated (compression 8 of its supplement 2); integers as horizontal
    differences.
    """
    height, width, channels = pixels.shape
    rows = max(1, _STRIP_BYTES // (width * channels * pixels.itemsize))
    differences = pixels.copy()
    if not is_float(pixels.dtype):
        differences[:, 1:] -= pixels[:, :-1]  # modulo 2^bits, as the format defines
    stored = differences.astype(pixels.dtype.newbyteorder(exif.order))
    strips = [zlib.compress(stored[top : top + rows].tobytes()) for top in range(0, height, rows)]
    if sum(map(len, strips)) + len(exif.data) + 2**24 >= 2**32:
        raise ValueError("a TIFF holds at most 4 GB; use the suffix .png")
    offsets = [exif.append(strip) for strip in strips]
    short = {
        "BitsPerSample": [8 * pixels.itemsize] * channels, "Compression": [8],
        "PhotometricInterpretation": [2 if channels == 3 else 1], "SamplesPerPixel": [channels],
        "Predictor": [1 if is_float(pixels.dtype) else 2],
        **({"SampleFormat": [3] * channels} if is_float(pixels.dtype) else {}),
        **({} if channels in (1, 3) else {"ExtraSamples": [0] * (channels - 1)}),  # of no specified meaning
    }  # fmt: skip
    long = {
        "ImageWidth": [width], "ImageLength": [height], "RowsPerStrip": [rows], "StripOffsets": offsets,
        "StripByteCounts": [len(strip) for strip in strips],
    }  # fmt: skip
    for kind, layout in ((_SHORT, short), (_LONG, long)):
        exif.first |= {ExifTags.Base[name].value: exif.store(kind, values) for name, values in layout.items()}
    for tag, kind, content in ((XMP, _BYTE, xmp), (ICC, _UNDEFINED, icc)):
        if content:
            exif.first[tag] = exif.store(kind, content)
    return exif.finish()
