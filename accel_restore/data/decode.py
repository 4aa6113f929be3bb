"""Decode one image, a file or a data set's cell, to pixels at full depth; one rule for each pixel format.

The rules are the same for input and gt. 8 and 16 bits keep their depth. Gray is repeated for colour training; colour
becomes BT.601 luma for gray training. A palette gives its colours, 1 bit black and white. EXIF orientation is applied.
An opaque alpha channel is dropped, a transparent one refused. CMYK, 32-bit and other formats are refused, because there
is no single right conversion to RGB. The format is detected by content, whatever the file's suffix.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from accel_restore.config.data import MAX_PIXELS
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
        height, width, channels = pixels.shape
        return Header(height, width, 8 * pixels.itemsize, "gray" if channels == 1 else "RGB", "array")
    with image_errors():
        return _header(content, _start(content), max_pixels)


def read_image(source: ImageSource, channels: int, bits: int = 8, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the upright pixels (H, W, channels), uint8 for `bits` 8 and uint16 for 16.

    Raises: ImageError for files that are damaged, empty, too large or not images, have more than `bits`, or would lose
    something when they are decoded.
    """
    content = _content(source)
    if isinstance(content, np.ndarray):
        pixels = _checked_array(content, max_pixels)
    else:
        with image_errors():
            pixels = _decoded(content, max_pixels)
    if pixels.dtype == np.uint16 and bits == 8:
        raise ImageError("has 16 bits, but 8 were requested")
    if pixels.dtype == np.uint8 and bits == 16:
        pixels = pixels.astype(np.uint16) * 257  # 255 becomes 65535
    return _with_channels(pixels, channels)


def read_pil(image: "Image.Image", channels: int) -> tuple[np.ndarray, int]:
    """Return the upright pixels (H, W, channels) of a PIL image, uint8 or uint16, and the orientation applied to them.

    The rules are those for files. An image that Pillow opened and has not loaded is read from its file, because Pillow
    drops lower bits, extra channels and further pictures without a word. Raises: ImageError.
    """
    with image_errors():
        content = file_of(image)
        header = _header(content, _start(content), sys.maxsize) if content is not None else None
        if header is not None and header.bits == 16 and header.mode.startswith("RGB"):
            raise ImageError(DEEP)
        if content is not None and header is not None and is_as_stored(image, header):
            pixels = _decoded(content, sys.maxsize)
            if header.format == "PNG":
                image.load()  # also the EXIF data and texts behind the pixels, which are kept
            return _with_channels(pixels, channels), header.orientation
        pixels, orientation = read_pil_image(image)
        if header is not None and header.bits == 16 and pixels.dtype == np.uint8:
            raise ImageError("comes from a 16-bit file, but Pillow keeps 8 bits; give a numpy array of uint16")
    return _with_channels(upright(_opaque(pixels), orientation), channels), orientation


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if channels == 1 and pixels.shape[2] == 3:
        return luma(pixels)
    return np.repeat(pixels, 3, axis=2) if channels == 3 and pixels.shape[2] == 1 else pixels


def _content(source: ImageSource) -> Content | np.ndarray:
    if isinstance(source, Cell):
        content = source.fetch()
        return content if isinstance(content, np.ndarray) else io.BytesIO(content)
    return source


def _checked_array(pixels: np.ndarray, max_pixels: int) -> np.ndarray:
    """(H, W, 1 or 3) of uint8 or uint16."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size or pixels.dtype not in ("uint8", "uint16"):
        raise ImageError(
            f"is an array of {pixels.dtype} {pixels.shape}; give uint8 or uint16 of shape (H, W) or (H, W, 1 or 3)"
        )
    if pixels.shape[0] * pixels.shape[1] > max_pixels:
        raise too_large(max_pixels)
    return pixels


def _start(content: Content) -> bytes:
    with opened(content) as file:
        start = file.read(_START)
    if not start:
        raise ImageError("is empty (0 bytes); replace or remove it")
    return start


def _header(content: Content, start: bytes, max_pixels: int) -> Header:
    if start.startswith(SIGNATURE):
        return read_png_header(content, max_pixels)
    if start.startswith(_TIFF):
        from accel_restore.data import decode_tiff  # takes 0.2 s

        return decode_tiff.read_tiff_header(content, max_pixels)
    return read_pillow_header(content, start, max_pixels)


def _decoded(content: Content, max_pixels: int) -> np.ndarray:
    """The upright pixels (H, W, 1 or 3)."""
    start = _start(content)
    header = _header(content, start, max_pixels)
    if header.format == "PNG":
        pixels = read_png_pixels(content)
    elif header.format == "TIFF":
        from accel_restore.data import decode_tiff

        pixels = decode_tiff.read_tiff_pixels(content)
    else:
        pixels = read_pillow_pixels(content, start, header)
    if pixels.shape[:2] != header.stored_size or pixels.itemsize * 8 != header.bits:
        raise damaged("its pixels are not those that its header describes")
    return upright(_opaque(pixels), header.orientation)


def _opaque(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3), less an opaque alpha channel."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] not in (2, 4):
        return pixels
    if pixels[..., -1].min() < np.iinfo(pixels.dtype).max:
        raise ImageError("has transparent pixels, which have no single colour; flatten it onto a background")
    return pixels[..., :-1]


def luma(pixels: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma (H, W, 1) of RGB, in Pillow's fixed-point arithmetic for 8 bits."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(pixels.dtype)[..., None]
