"""Decode one image, a file or a data set's cell, to pixels at full depth; one rule for each pixel format.

The rules are the same for input and gt. 8 and 16 bits and floats keep their depth. Gray is repeated for colour
training; colour becomes BT.601 luma for gray training; other numbers of channels must be those that are asked for. A
palette gives its colours, 1 bit black and white. EXIF orientation is applied. An opaque alpha channel is dropped, a
transparent one refused. CMYK, 32-bit integers and other formats are refused, because there is no single right
conversion. NaN and inf are refused. The format is detected by content, whatever the file's suffix.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from accel_restore.config.data import MAX_PIXELS
from accel_restore.data import decode_exr, decode_npy, decode_raw
from accel_restore.data.decode_pillow import (
    DEEP,
    file_of,
    is_as_stored,
    read_pil_image,
    read_pillow_header,
    read_pillow_pixels,
)
from accel_restore.data.decode_png import read_png_header, read_png_pixels
from accel_restore.data.image_formats import Content, Header, ImageError, damaged, image_errors, opened, too_large
from accel_restore.data.orientation import upright
from accel_restore.data.pixels import check_finite, check_kind, converted, described, opaque, with_channels
from accel_restore.data.png_chunks import SIGNATURE

if TYPE_CHECKING:
    from PIL import Image

_START = 64  # bytes of a file that show its format
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, up to 4 GB and larger


@dataclass(frozen=True)
class Cell:
    """An image inside a data set: `fetch` returns the bytes of an encoded file, or pixels (H, W) or (H, W, C)."""

    label: str  # its name in messages
    identity: str  # changes with the content; cells of equal identity are the same image
    fetch: Callable[[], bytes | np.ndarray] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.label


ImageSource = Path | Cell


def read_header(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header of an image; nothing is decoded.

    Raises: ImageError.
    """
    content = _content(source)
    if isinstance(content, np.ndarray):
        pixels = _checked_array(content, max_pixels)
        height, width, _ = pixels.shape
        return Header(height, width, pixels.dtype, described(pixels.shape), "array")
    with image_errors():
        return _header(content, _start(content), max_pixels, _suffix(source))


def read_image(
    source: ImageSource, channels: int, dtype: DTypeLike | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Return the upright pixels (H, W, channels): uint8, uint16, float16 or float32, as stored or as `dtype`.

    Raises: ImageError for files that are damaged, empty, too large or not images, have pixels that `dtype` does not
    hold, or would lose something when they are decoded.
    """
    content = _content(source)
    if isinstance(content, np.ndarray):
        pixels = _checked_array(content, max_pixels)
    else:
        with image_errors():
            pixels = _decoded(content, channels, max_pixels, _suffix(source))
    check_finite(pixels)
    pixels = with_channels(pixels, channels)
    return pixels if dtype is None else converted(pixels, np.dtype(dtype))


def read_pil(image: "Image.Image", channels: int) -> tuple[np.ndarray, int]:
    """Return the upright pixels (H, W, channels) of a PIL image, uint8 or uint16, and the orientation applied to them.

    The rules are those for files. An image that Pillow opened and has not loaded is read from its file, because Pillow
    drops lower bits, extra channels and further pictures without a word. Raises: ImageError.
    """
    with image_errors():
        content = file_of(image)
        header = _header(content, _start(content), sys.maxsize) if content is not None else None
        is_deep = header is not None and header.dtype != np.uint8
        if header is not None and is_deep and header.mode.startswith("RGB"):
            raise ImageError(DEEP)
        if content is not None and header is not None and is_as_stored(image, header):
            pixels = _decoded(content, channels, sys.maxsize)
            if header.format == "PNG":
                image.load()  # also the EXIF data and texts behind the pixels, which are kept
            return with_channels(pixels, channels), header.orientation
        pixels, orientation = read_pil_image(image)
        if is_deep and pixels.dtype == np.uint8:
            raise ImageError("comes from a 16-bit file, but Pillow keeps 8 bits; give a numpy array of uint16")
    return with_channels(upright(_without_alpha(pixels), orientation), channels), orientation


def _content(source: ImageSource) -> Content | np.ndarray:
    if isinstance(source, Cell):
        content = source.fetch()
        return content if isinstance(content, np.ndarray) else io.BytesIO(content)
    return source


def _suffix(source: ImageSource) -> str:
    """The suffix of a file, in lower case. Some raw files of cameras have no other sign of what they are."""
    return PurePath(str(source)).suffix.lower()


def _checked_array(pixels: np.ndarray, max_pixels: int) -> np.ndarray:
    """(H, W, C) in the byte order of the machine."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    try:
        if pixels.ndim != 3 or not pixels.size:
            raise ImageError(f"has the shape {pixels.shape}; (H, W) or (H, W, C) is needed")
        check_kind(pixels.dtype)
    except ImageError as error:
        raise ImageError(f"is an array of {pixels.dtype} {pixels.shape}: {error}") from None
    if pixels.shape[0] * pixels.shape[1] > max_pixels:
        raise too_large(max_pixels)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _start(content: Content) -> bytes:
    with opened(content) as file:
        start = file.read(_START)
    if not start:
        raise ImageError("is empty (0 bytes); replace or remove it")
    return start


def _header(content: Content, start: bytes, max_pixels: int, suffix: str = "") -> Header:
    if start.startswith(SIGNATURE):
        return read_png_header(content, max_pixels)
    if start.startswith(decode_npy.SIGNATURE):
        return decode_npy.read_npy_header(content, max_pixels)
    if start.startswith(decode_exr.SIGNATURE):
        return decode_exr.read_exr_header(content, max_pixels)
    if decode_raw.is_raw(start, suffix):
        return decode_raw.read_raw_header(content, max_pixels)
    if start.startswith(_TIFF):
        from accel_restore.data import decode_tiff  # takes 0.2 s

        return decode_tiff.read_tiff_header(content, max_pixels)
    return read_pillow_header(content, start, max_pixels)


def _decoded(content: Content, channels: int, max_pixels: int, suffix: str = "") -> np.ndarray:
    """The upright pixels (H, W, C), without an alpha channel; `channels` are wanted."""
    start = _start(content)
    header = _header(content, start, max_pixels, suffix)
    pixels = _pixels(content, start, header, channels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[:2] != header.stored_size or pixels.dtype != header.dtype:
        raise damaged("its pixels are not those that its header describes")
    return upright(pixels, header.orientation)


def _pixels(content: Content, start: bytes, header: Header, channels: int) -> np.ndarray:
    """(H, W) or (H, W, C), not yet upright, without an alpha channel."""
    if header.format == "NPY":
        return decode_npy.read_npy_pixels(content)
    if header.format == "OpenEXR":
        return decode_exr.read_exr_pixels(content)
    if header.format == "raw":
        return decode_raw.read_raw_pixels(content)
    if header.format == "TIFF":
        from accel_restore.data import decode_tiff

        return decode_tiff.read_tiff_pixels(content, channels)
    pixels = read_png_pixels(content) if header.format == "PNG" else read_pillow_pixels(content, start, header)
    return _without_alpha(pixels)


def _without_alpha(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3) of pixels (H, W), or (H, W, C) whose last channel of 2 or 4 is alpha."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return opaque(pixels) if pixels.shape[2] in (2, 4) else pixels
