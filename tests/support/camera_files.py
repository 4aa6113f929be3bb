"""Image files with all the metadata that a camera writes."""

import io
import struct
from fractions import Fraction

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from accel_restore.data.encode import encode
from accel_restore.data.exif import ASCII, LONG, RATIONAL, SHORT, Density, Tiff
from accel_restore.data.metadata import About

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
UNDEFINED = 7
NOTE = b"MAKER" + bytes(range(100))
THUMBNAIL = b"\xff\xd8THUMBNAIL" + b"\xff\xd9" * 40
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6" exif:PixelXDimension="9">'
    b"<dc:title>A title</dc:title><xmp:Thumbnails><rdf:li>SMALL</rdf:li></xmp:Thumbnails>"
    b"<tiff:ImageWidth>9</tiff:ImageWidth></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def made_exif(order: str = "<") -> bytes:
    """EXIF data of a camera: three levels of directories, a maker note, a thumbnail, and an unknown tag."""
    tiff = Tiff(bytearray({"<": b"II*\0", ">": b"MM\0*"}[order] + bytes(4)))
    interop = tiff.append_directory({1: tiff.store(ASCII, b"R03\0"), 2: tiff.store(UNDEFINED, b"0100"),
                                     0x1001: tiff.store(LONG, [9])})  # fmt: skip
    inner = {
        0x829A: tiff.store(RATIONAL, [1, 50]), 0x9003: tiff.store(ASCII, b"2020:01:02 03:04:05\0"),
        0x9214: tiff.store(SHORT, [5, 6]), 0x927C: tiff.store(UNDEFINED, NOTE), 0xA001: tiff.store(SHORT, [0xFFFF]),
        0xA002: tiff.store(SHORT, [9]), 0xA003: tiff.store(LONG, [9]), 0xA005: tiff.store(LONG, [interop]),
        0xEEEE: tiff.store(RATIONAL, [0, 0]),
    }  # fmt: skip
    gps = {1: tiff.store(ASCII, b"N\0"), 2: tiff.store(RATIONAL, [1, 1, 2, 1, 3, 1])}
    tiff.first = {
        0x0100: tiff.store(SHORT, [9]), 0x010F: tiff.store(ASCII, b"A maker\0"), 0x0112: tiff.store(SHORT, [6]),
        0x011A: tiff.store(RATIONAL, [240, 1]), 0x011B: tiff.store(RATIONAL, [120, 1]), 0x0128: tiff.store(SHORT, [2]),
        0x8769: tiff.store(LONG, [tiff.append_directory(inner)]),
        0x8825: tiff.store(LONG, [tiff.append_directory(gps)]),
    }  # fmt: skip
    data = tiff.finish()
    second = {0x0201: tiff.store(LONG, [tiff.append(THUMBNAIL)]), 0x0202: tiff.store(LONG, [len(THUMBNAIL)])}
    at = struct.unpack_from(tiff.order + "I", data, 4)[0] + 2 + 12 * len(tiff.first)
    struct.pack_into(tiff.order + "I", tiff.data, at, tiff.append_directory(second))
    return bytes(tiff.data)


def camera_file(format: str, order: str = "<") -> bytes:
    """An image file with all metadata that Pillow can write in this format."""
    buffer = io.BytesIO()
    exif = made_exif(order)
    options: dict = {"exif": b"Exif\0\0" + exif, "icc_profile": RGB_PROFILE, "xmp": XMP, "dpi": (240, 120)}
    if format == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if format == "TIFF":
        return encode(PIXELS, "TIFF", About(exif, RGB_PROFILE, XMP, Density(Fraction(240), Fraction(120), 2)), "")
    Image.fromarray(PIXELS).save(buffer, format, **options)
    return buffer.getvalue()
