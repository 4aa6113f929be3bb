"""Metadata of an image file (EXIF data, colour, density, XMP), read for a new file of the same picture.

Kept is what describes the pixels, or who made them and when, and still holds for the restored picture: it is upright,
so its orientation is 1; it has `scale` times as many pixels on the same paper, so its density is `scale` times higher.
Left out are thumbnails, the places and sizes of the original, and what the new format has no place for.
"""

import io
import re
import struct
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, BinaryIO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from accel_restore.data import decode_exr, decode_npy
from accel_restore.data.decode_jpeg import holds_more
from accel_restore.data.decode_pillow import open_image
from accel_restore.data.exif import ICC, XMP, Density, Tiff, exif_of_tiff, renewed
from accel_restore.data.image_formats import FORMATS
from accel_restore.data.png_chunks import SIGNATURE, exif_and_xmp, raw_profile, read_chunks, text_of

_EXIF, XMP_KEYWORD = b"Exif\0\0", b"XML:com.adobe.xmp"
_PNG_COLOUR = {b"mDCV": 24, b"cLLI": 8, b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}  # bytes
_PNG_OTHER = (b"IHDR", b"PLTE", b"tRNS", b"IEND", b"iCCP", b"eXIf", b"pHYs", b"bKGD", b"hIST", b"sBIT")
_SRGB_PRIMARIES, _SRGB_TRANSFERS = (1, 2), (1, 2, 13)  # codes of H.273; 2: unspecified
_KNOWN_SEGMENTS = ("APP0", "APP1", "APP2", "APP13", "APP14", "COM")
_BIG_TIFF = b"II+\0", b"MM\0+"
_SAMPLES_PER_PIXEL, _MOST_OF_PILLOW = 277, 4
_MAX_JPEG = 63_000  # bytes of EXIF or XMP; a segment of a JPEG has 65,533, and `renewed` appends to EXIF


@dataclass(frozen=True)
class About:
    """The metadata of an image file, true of its upright pixels."""

    exif: bytes | None = None  # as in the file, but for a TIFF only what is not its layout
    icc: bytes | None = None
    xmp: bytes | None = None
    density: Density | None = None
    colour: dict[bytes, bytes] = field(default_factory=dict)  # PNG chunks
    left_out: tuple[str, ...] = ()  # other metadata of the original, in words
    exr: dict[str, Any] = field(default_factory=dict)  # attributes of OpenEXR
    exr_channels: tuple[str, ...] = ()  # names


def read_about(data: bytes, channels: int, orientation: int = 1, scale: int = 1) -> About:
    """Return the metadata of an image file's bytes, for a new file of `channels` that is `scale` times as large.

    `orientation` is that of the original, which has been applied. Nothing is decoded. Damaged parts are left out.
    """
    try:
        about = _of_file(data)
    except Exception as error:  # Pillow raises exceptions of many kinds for damaged files
        return About(left_out=(f"damaged metadata ({error})",))
    return _renewed(about, channels, orientation, scale)


def _of_file(data: bytes) -> About:
    if data.startswith(SIGNATURE):
        return _of_png(data)
    if data.startswith(decode_npy.SIGNATURE):
        return About()
    if data.startswith(decode_exr.SIGNATURE):
        attributes, channels = decode_exr.read_attributes(io.BytesIO(data))
        return About(exr=attributes, exr_channels=channels)
    tags = foreign_tags(io.BytesIO(data))
    return _of_others(data) if tags is None else _of_tiff(data, tags)


def read_picture(image: Image.Image, channels: int, orientation: int = 1, scale: int = 1) -> About:
    """Return the metadata of a PIL image for a new one; see `read_about`."""
    try:
        about = _of_picture(image, image.getexif().tobytes() if isinstance(image, TiffImageFile) else None)
    except Exception:  # as above
        return About()
    return _renewed(about, channels, orientation, scale)


def _renewed(about: About, channels: int, orientation: int, scale: int) -> About:
    changes: dict = {}
    if about.icc and about.icc[16:20] != (b"GRAY" if channels == 1 else b"RGB "):
        what = f"a profile of other colours than {'gray' if channels == 1 else 'RGB'}"
        changes = {"icc": None, "left_out": (*about.left_out, what)}
    if about.density is not None:
        x, y = (about.density.y, about.density.x) if orientation >= 5 else (about.density.x, about.density.y)
        factor = 1 if about.density.unit == 1 else scale
        changes["density"] = Density(x * factor, y * factor, about.density.unit)
    return replace(about, **changes)


def fitted(about: About, format: str) -> About:
    """Return the part of the metadata that a format can hold; `left_out` names the rest."""
    changes: dict = {}
    left_out = list(about.left_out)
    if format != "PNG" and about.colour:
        changes["colour"] = {}
        # A profile comes before sRGB, gAMA and cHRM; and pictures that name no colours are taken for sRGB.
        is_said = about.colour.keys() <= {b"sRGB", b"gAMA", b"cHRM"} and (about.icc or b"sRGB" in about.colour)
        left_out += [] if is_said else [f"{', '.join(name.decode() for name in about.colour)} (PNG only)"]
    if about.exr and format != "OpenEXR":
        changes["exr"] = {}
        left_out.append(f"{', '.join(about.exr)} (OpenEXR only)")
    if format in ("NPY", "OpenEXR"):
        others = {"EXIF": about.exif, "a profile": about.icc, "XMP": about.xmp, "density": about.density}
        left_out += [name for name, content in others.items() if content]
    if format == "JPEG":
        for name, content in (("EXIF", about.exif), ("XMP", about.xmp)):
            if content is not None and len(content) > _MAX_JPEG:
                changes[name.lower()] = None
                left_out.append(f"{name} (too large for a JPEG)")
    return replace(about, **changes, left_out=tuple(left_out))


def _of_png(data: bytes) -> About:
    chunks = list(read_chunks(io.BytesIO(data), without_pixels=True))
    first = dict(reversed(chunks))  # of each name
    exif, xmp = exif_and_xmp(chunks)
    density = None
    if len(first.get(b"pHYs", b"")) == 9:
        x, y, is_metric = struct.unpack(">IIB", first[b"pHYs"])
        unit, per_unit = (3, 100) if is_metric else (1, 1)  # of metres, centimetres
        density = Density(Fraction(x, per_unit), Fraction(y, per_unit), unit)
    texts = [text for name, body in chunks if (text := text_of(name, body)) is not None and name != b"iCCP"]
    icc = text_of(b"iCCP", first[b"iCCP"]) if b"iCCP" in first else None
    known = {*_PNG_COLOUR, *_PNG_OTHER}
    others = [name.decode("latin-1") for name, body in chunks if name not in known and not _is_kept_text(body)]
    colour = {name: body for name, body in chunks if len(body) == _PNG_COLOUR.get(name)}
    others += [
        f"damaged {name.decode()}" for name, body in first.items() if len(body) != _PNG_COLOUR.get(name, len(body))
    ]
    named = dict(texts)
    for kind in ("exif", "APP1", "xmp", "icc"):
        profile_text = named.get(f"Raw profile type {kind}".encode())
        others += [f"damaged {kind.upper()} data"] if profile_text is not None and not raw_profile(profile_text) else []
    if b"iCCP" in first and not (icc and icc[1]):
        others.append("a damaged colour profile")
    others += [f"a raw profile ({kind})" for kind in ("iptc", "8bim") if f"Raw profile type {kind}".encode() in named]
    profile = icc[1] if icc and icc[1] else raw_profile(named.get(b"Raw profile type icc"))
    return _about(exif, xmp, profile, density, colour, others)


def _of_others(data: bytes) -> About:
    with open_image(io.BytesIO(data), data[:16], FORMATS) as image:
        exif, others = exif_of_tiff(data) if isinstance(image, TiffImageFile) else (None, [])
        about = _of_picture(image, exif)
        if isinstance(image, JpegImageFile):
            segments = b"".join(name.encode() + body[:35] for name, body in image.applist)
            others += [name for name, body in image.applist if name not in _KNOWN_SEGMENTS]
            others += ["FLIR's data"] if b"APP1FLIR" in segments else []
            others += ["Photoshop's data (IPTC)"] if b"APP13Photoshop" in segments else []
            others += ["the rest of a long XMP"] if b"http://ns.adobe.com/xmp/extension/" in segments else []
            behind = "further pictures (MPO)" if image.format == "MPO" else "data after the picture, such as a video"
            others += [behind] if holds_more(data) else []
        others += ["the colour profile of a BMP"] if data[:2] == b"BM" and data[70:74] in (b"DEBM", b"KNIL") else []
        others += ["a comment"] if image.info.get("comment") else []
        colour = _avif_colour(data) if image.format == "AVIF" else {}
    return replace(about, colour=colour, left_out=(*about.left_out, *dict.fromkeys(others)))


def _of_tiff(data: bytes, tags: ImageFileDirectory_v2) -> About:
    exif, others = exif_of_tiff(data)
    return _about(exif, tags.get(XMP), tags.get(ICC), None, {}, others)


def read_tags(file: BinaryIO) -> ImageFileDirectory_v2:
    """Return the tags of the first image of a TIFF.

    Raises: SyntaxError or others if it is damaged.
    """
    file.seek(0)
    start = file.read(16)
    tags = ImageFileDirectory_v2(start if start[:4] in _BIG_TIFF else start[:8])
    file.seek(tags.next)
    tags.load(file)
    return tags


def foreign_tags(file: BinaryIO) -> ImageFileDirectory_v2 | None:
    """Return the tags of a TIFF whose pixels Pillow does not know; None for other files."""
    file.seek(0)
    if file.read(4) not in (b"II*\0", b"MM\0*", *_BIG_TIFF):
        return None
    tags = read_tags(file)
    if tags.get(_SAMPLES_PER_PIXEL, 1) <= _MOST_OF_PILLOW:  # it logs an error for more
        with suppress(SyntaxError):
            file.seek(0)
            TiffImageFile(file)
            return None
    return tags


def _of_picture(image: Image.Image, tiff_exif: bytes | None) -> About:
    info, density = image.info, None
    exif = info.get("exif") or tiff_exif
    xmp = info.get("xmp") or info.get(XMP_KEYWORD.decode())
    if isinstance(image, TiffImageFile):
        xmp = image.tag_v2.get(XMP)
    if "jfif_density" in info:
        x, y = info["jfif_density"]
        density = Density(Fraction(x), Fraction(y), {1: 2, 2: 3}.get(info["jfif_unit"], 1))
    elif "dpi" in info and not (isinstance(image, TiffImageFile) and (exif or 282 not in image.tag_v2)):
        # Pillow makes up the density of a TIFF that names none.
        x, y = (Fraction(float(side)).limit_denominator(1000) for side in info["dpi"])
        density = Density(x, y, 2)
    return _about(exif, xmp, info.get("icc_profile"), density, {}, [])


def _about(
    exif: bytes | None, xmp: bytes | str | None, icc: bytes | None, density: Density | None, colour: dict, others: list
) -> About:
    """The parts that are sound; `others` is what else there is, in words. EXIF's density is the last choice."""
    exif, xmp = exif.removeprefix(_EXIF) if exif else None, xmp.encode() if isinstance(xmp, str) else xmp
    if exif:
        try:
            others += ["damaged EXIF values"] if renewed(exif, (1, 1), None, "").is_damaged else []
            density = density if _is_known(density) else Tiff.parse(bytearray(exif)).density()
        except ValueError as error:
            exif, others = None, [*others, f"damaged EXIF data ({error})"]
    if xmp is not None and (not isinstance(xmp, bytes) or b"<rdf:RDF" not in xmp):
        xmp, others = None, [*others, "XMP that cannot be read"]
    xmp = xmp.rstrip(b"\0") if xmp else None
    density = density if _is_known(density) else None
    return About(exif or None, icc or None, xmp, density, colour, tuple(dict.fromkeys(others)))


def _is_known(density: Density | None) -> bool:
    """Whether a density is valid, and more than equal sides without a unit."""
    return density is not None and min(density.x, density.y) > 0 and (density.unit != 1 or density.x != density.y)


def _avif_colour(data: bytes) -> dict[bytes, bytes]:
    """Return the colours that an AVIF names without a profile, as a chunk of a PNG, unless they are sRGB's."""
    if (found := re.search(rb"colrnclx(..)(..)", data, re.DOTALL)) is None:
        return {}
    primaries, transfer = (int.from_bytes(code) for code in found.groups())
    is_srgb = primaries in _SRGB_PRIMARIES and transfer in _SRGB_TRANSFERS
    return {} if is_srgb else {b"cICP": bytes([primaries & 255, transfer & 255, 0, 1])}


def _is_kept_text(body: bytes) -> bool:
    return body.startswith((XMP_KEYWORD + b"\0", b"Raw profile type "))


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
