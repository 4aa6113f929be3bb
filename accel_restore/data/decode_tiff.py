"""TIFF files: which layouts are read, and their pixels. The table is in README.md, under Pixel formats.

tifffile raises exceptions for damaged data. libtiff, which Pillow uses, writes to the terminal instead.
Source: TIFF 6.0, Adobe 1992.
"""

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, SAMPLEFORMAT, TiffFile, TiffPage

from accel_restore.data.decode_jpeg import decode_jpeg
from accel_restore.data.decode_raw import read_raw_header
from accel_restore.data.image_formats import Content, Header, ImageError, damaged, make_header
from accel_restore.data.orientation import orientation_of
from accel_restore.data.pixels import opaque

_COLOURS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 6: "RGB"}  # by photometric interpretation
_BITS: dict[int, tuple[int, ...]] = {0: (1, 2, 4, 8), 1: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 6: (8,)}
_FLOAT_BITS: dict[int, tuple[int, ...]] = {1: (16, 32), 2: (16, 32)}
_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}
_LOSSLESS = (COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS,
             COMPRESSION.LZMA, COMPRESSION.ZSTD)  # fmt: skip
_FAX = (COMPRESSION.CCITTRLE, COMPRESSION.CCITTFAX3, COMPRESSION.CCITTFAX4)
_ORIENTATION, _COLOR_MAP, _XMP = 274, 320, 700  # tags
_REDUCED = 1  # bit of a page's kind: a smaller version of another
_ALPHA = (1, 2)  # meanings of an extra sample; 0 is unspecified
_DNG_VERSION, _RAW = 50706, (32803, 34892)  # a tag of DNG; photometric interpretations of raw files
_FLOATING_POINT = 3  # predictor


@contextmanager
def _open(content: Content) -> Iterator[TiffFile]:
    if isinstance(content, io.BytesIO):
        content.seek(0)
    log, nowhere = logging.getLogger("tifffile"), logging.NullHandler()
    log.addHandler(nowhere)  # instead of standard error; what matters is raised as an error
    try:
        with TiffFile(content) as file:
            yield file
    finally:
        log.removeHandler(nowhere)


def read_tiff_header(content: Content, max_pixels: int) -> Header:
    """Return the header of a TIFF, or of a camera's raw file in this format.

    Raises: ImageError for files that hold several images, are too large, or have an unsupported layout.
    """
    with _open(content) as file:
        if _is_raw(file):
            return read_raw_header(content, max_pixels)
        page = _first_page(file)
        if problem := _problem(page):
            raise ImageError(problem)
        mode = _COLOURS[page.photometric] + (" with alpha" if page.extrasamples else "")
        if _has_more_channels(page):
            mode = f"{page.samplesperpixel} channels"
        elif page.bitspersample == 1 and mode == "gray":
            mode = "black and white"
        if page.sampleformat == SAMPLEFORMAT.IEEEFP:
            dtype = f"float{page.bitspersample}"
        else:
            dtype = "uint16" if page.bitspersample == 16 else "uint8"
        return make_header((page.imagelength, page.imagewidth), dtype, mode, "TIFF", _orientation(page), max_pixels)


def _is_raw(file: TiffFile) -> bool:
    """Whether this is a camera's raw file in TIFF's format, such as DNG, NEF or ARW."""
    page = file.pages.first if len(file.pages) else None
    if not isinstance(page, TiffPage):
        return False
    has_preview_first = bool(page.subfiletype & _REDUCED and page.subifds)
    return has_preview_first or _DNG_VERSION in page.tags or page.photometric in _RAW


def _first_page(file: TiffFile) -> TiffPage:
    """The only image of a file."""
    frames = len(file.pages)
    if frames == 0:
        raise damaged("its directory is missing; is the file cut?")
    if frames == 1 and file.is_imagej:  # ImageJ stores a stack behind one directory
        frames = int((file.imagej_metadata or {}).get("images", 1))
    if frames > 1:
        raise ImageError(
            f"contains {frames} images; save the one that you want as a separate file, or all channels as one image "
            "(tifffile: photometric='minisblack', planarconfig='contig')"
        )
    page = file.pages.first
    assert isinstance(page, TiffPage)  # other pages of a file are stored as what differs from the first
    return page


def _orientation(page: TiffPage) -> int:
    value, xmp = page.tags.valueof(_ORIENTATION), page.tags.valueof(_XMP)
    if value is not None:
        return value if value in range(1, 9) else 1
    return orientation_of(None, xmp if isinstance(xmp, bytes) else None)


def _problem(page: TiffPage) -> str | None:
    """Why the layout is refused, or None."""
    colour, samples, extra = page.photometric, page.samplesperpixel, len(page.extrasamples)
    if colour == PHOTOMETRIC.SEPARATED:
        return "is CMYK, whose colours depend on the printer; convert it to RGB with its colour profile"
    if page.imagedepth > 1 or page.tiledepth > 1:
        return "is a TIFF of a volume; save the slice that you want as a separate file"
    known = {SAMPLEFORMAT.UINT.value: _BITS, SAMPLEFORMAT.IEEEFP.value: _FLOAT_BITS}
    bits = known.get(page.sampleformat, {})
    is_usual = colour in _SAMPLES and samples == _SAMPLES[colour] + extra and extra < 2
    if page.bitspersample in bits.get(colour, ()) and (is_usual or _has_more_channels(page)):
        return _storage_problem(page)
    form = {1: "", 2: "signed ", 3: "float "}.get(page.sampleformat, "unusual ")
    kind = {0: "inverted gray", 1: "gray"}.get(colour) or getattr(colour, "name", str(colour))
    return (
        f"is a TIFF of {samples} channel{'s' * (samples > 1)} ({kind}) with {form}{page.bitspersample}-bit values; "
        f"convert it to {'' if _has_more_channels(page) else 'gray or RGB with '}unsigned 8-bit or 16-bit values, or "
        "16-bit or 32-bit floats"
    )


def _has_more_channels(page: TiffPage) -> bool:
    """Whether there are more channels than gray or RGB with one other channel, and none of them is alpha."""
    extra, more = page.extrasamples, page.samplesperpixel - _SAMPLES.get(page.photometric, 0)
    is_usual = more == len(extra) < 2
    return page.photometric in _FLOAT_BITS and more > 0 and not is_usual and not any(s in _ALPHA for s in extra)


def _storage_problem(page: TiffPage) -> str | None:
    """Why the compression, the tiles or the number of strips is refused, or None."""
    jpeg = page.compression == COMPRESSION.JPEG and page.bitspersample == 8
    name = getattr(page.compression, "name", str(page.compression))
    fax = page.compression in _FAX and page.bitspersample == 1
    if not (jpeg or fax or page.compression in _LOSSLESS):
        return f"is a TIFF with {name} compression; save it again, uncompressed or with LZW or Deflate"
    if jpeg and page.samplesperpixel == 2 and page.planarconfig == 1:
        return "is a TIFF of gray with alpha in JPEG compression; save it again, uncompressed or with LZW or Deflate"
    if page.photometric == PHOTOMETRIC.YCBCR and not (jpeg and page.planarconfig == 1):
        return "is a TIFF of YCbCr values without JPEG compression; convert it to RGB"
    is_float = page.sampleformat == SAMPLEFORMAT.IEEEFP
    if page.predictor not in (1, _FLOATING_POINT if is_float else 2) or (page.predictor > 1 and page.bitspersample < 8):
        return f"is a TIFF whose predictor {page.predictor} does not suit its values; save it again"
    values = page.imagewidth * page.imagelength * page.samplesperpixel
    if math.prod(page.shape) != values or math.prod(page.chunks) > max(2**26, 4 * values):
        return "is a TIFF whose tags contradict each other, or of an unusual tile size; save it again"
    return None


def read_tiff_pixels(content: Content, channels: int) -> np.ndarray:
    """Return the pixels (H, W, C), as stored but without an alpha channel.

    Of two or four channels whose last one has no specified meaning, all are returned if `channels` is their number.

    Raises: ImageError or others for damaged files, and for transparent pixels.
    """
    with _open(content) as file:
        page = _first_page(file)
        _check_segments(page)
        pixels = page.asarray()
        size, samples = (page.imagelength, page.imagewidth), page.samplesperpixel
        pixels = np.moveaxis(pixels.reshape(samples, *size), 0, -1) if page.planarconfig == 2 else pixels
        pixels = pixels.reshape(*size, samples)
        if page.photometric == PHOTOMETRIC.PALETTE:
            colours = np.array(page.tags.valueof(_COLOR_MAP), np.uint16).reshape(3, -1).T
            shift = 8 if colours.max() > 255 else 0  # some writers store 8 bits, as libtiff knows
            colours = (colours >> shift).astype(np.uint8)[pixels[..., 0]]
            pixels = np.concatenate([colours, pixels[..., 1:]], axis=-1)
        elif page.bitspersample < 8:
            pixels = pixels.astype(np.uint8) * np.uint8(255 // (2**page.bitspersample - 1))
        if page.photometric == PHOTOMETRIC.MINISWHITE:
            pixels[..., :1] = ~pixels[..., :1]
        return _without_extra(page, pixels, channels)


def _check_segments(page: TiffPage) -> None:
    """Check that all strips or tiles are in the file, and those of JPEG compression also for libjpeg's warnings.

    tifffile fills missing tiles with zeros.
    """
    expected, length = math.prod(page.chunked), page.parent.filehandle.size
    if not len(page.dataoffsets) == len(page.databytecounts) == expected:
        raise damaged(f"it has {len(page.dataoffsets)} strips or tiles instead of {expected}")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if not offset or not count or offset + count > length:
            raise damaged("strips or tiles are missing; is the file cut?")
        if page.compression == COMPRESSION.JPEG:
            page.parent.filehandle.seek(offset)
            segment = page.parent.filehandle.read(count)
            tables = page.jpegtables[:-2] + segment[2:] if page.jpegtables else segment
            decode_jpeg(tables, gray=page.samplesperpixel == 1 or page.planarconfig == 2)


def _without_extra(page: TiffPage, pixels: np.ndarray, channels: int) -> np.ndarray:
    """Drop an opaque alpha channel, or a constant channel of unspecified meaning."""
    if len(page.extrasamples) != 1:
        return pixels
    if page.extrasamples[0] in _ALPHA:
        if page.samplesperpixel == channels:
            raise ImageError(
                f"is a TIFF whose channel {channels} is marked as alpha, which is no channel; if it is one, save it "
                "without the mark (tifffile: photometric='minisblack', planarconfig='contig')"
            )
        return opaque(pixels)
    extra = pixels[..., -1]
    if page.samplesperpixel == channels:
        return pixels
    if (extra != extra.flat[0]).any():
        raise ImageError("is a TIFF with an extra channel of unspecified meaning; save it without this channel")
    return pixels[..., :-1]
