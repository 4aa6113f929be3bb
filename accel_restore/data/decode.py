"""Decode one image, a file or a data set's cell, to pixels at full depth; one rule for each pixel format.

The rules are the same for input and gt. 8 and 16 bits keep their depth. Gray is repeated for colour training; colour
becomes BT.601 luma for gray training. A palette gives its colours, 1 bit black and white. EXIF orientation is applied.
An opaque alpha channel is dropped, a transparent one refused. CMYK, 32-bit and other formats are refused, because there
is no single right conversion to RGB. The format is detected by content, whatever the file's suffix.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from accel_restore.config.data import MAX_PIXELS
from accel_restore.data.image_formats import (
    DAMAGE,
    MODES,
    Content,
    ImageError,
    data_of,
    is_deep,
    is_deep_gray,
    open_image,
    stored_size,
    too_large,
)

_ORIENTATION = 0x0112  # EXIF tag
_TIFF_CODECS = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, Deflate, PackBits, Deflate, LZMA, Zstandard
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


@dataclass(frozen=True)
class Cell:
    """An image inside a data set: `fetch` returns the bytes of an encoded file, or pixels (H, W) or (H, W, C)."""

    label: str  # its name in messages
    identity: str  # changes with the content; cells of equal identity are the same image
    fetch: Callable[[], bytes | np.ndarray] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.label


ImageSource = Path | Cell


@dataclass(frozen=True)
class Header:
    """The properties of an image that are known without decoding it."""

    height: int  # after EXIF orientation
    width: int
    bits: int  # 8 or 16
    mode: str  # in words: gray, RGB, palette, ...
    format: str  # by content: PNG, JPEG, ...
    orientation: int = 1  # EXIF's; 1 is upright


def read_header(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header of an image; nothing is decoded.

    Raises: ImageError.
    """
    content = _content(source)
    if isinstance(content, np.ndarray):
        pixels = _checked_array(content, max_pixels)
        height, width, channels = pixels.shape
        return Header(height, width, 8 * pixels.itemsize, "gray" if channels == 1 else "RGB", "array")
    with open_image(content, max_pixels) as image:
        return _header(image)


def read_image(source: ImageSource, channels: int, bits: int = 8, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the upright pixels (H, W, channels), uint8 for `bits` 8 and uint16 for 16.

    Raises: ImageError for files that are damaged, empty, too large or not images, have more than `bits`, or would lose
    something when they are decoded.
    """
    content = _content(source)
    if isinstance(content, np.ndarray):
        pixels = _checked_array(content, max_pixels)
    else:
        with open_image(content, max_pixels) as image:
            pixels = _decoded(image, content)
    if pixels.dtype == np.uint16 and bits == 8:
        raise ImageError("has 16 bits, but 8 were requested")
    if pixels.dtype == np.uint8 and bits == 16:
        pixels = pixels.astype(np.uint16) * 257  # 255 becomes 65535
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


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE as error:
        raise ImageError(f"is damaged ({error}); replace or remove it") from None
    return orientation if orientation in _UPRIGHT else 1


def _header(image: ImageFile) -> Header:
    width, height = stored_size(image)
    # To look for EXIF data at the end of a PNG, Pillow would decode all of it.
    orientation = 1 if image.format == "PNG" and "exif" not in image.info else _orientation(image)
    if orientation >= 5:
        height, width = width, height
    mode = MODES["L" if is_deep_gray(image) else image.mode]
    return Header(height, width, 16 if is_deep(image) else 8, mode, str(image.format), orientation)


def _decoded(image: ImageFile, content: Content) -> np.ndarray:
    """The upright pixels (H, W, 1 or 3)."""
    try:
        pixels = _deep_pixels(image, content) if is_deep(image) else _pixels(image)
        orientation = _orientation(image)
    except DAMAGE as error:
        raise ImageError(f"is damaged ({error}); replace or remove it") from None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] in (2, 4):
        if pixels[..., -1].min() < np.iinfo(pixels.dtype).max:
            raise ImageError("has transparent pixels, which have no single colour; flatten it onto a background")
        pixels = pixels[..., :-1]
    return _UPRIGHT.get(orientation, lambda upright: upright)(pixels)


def _pixels(image: Image.Image) -> np.ndarray:
    """8-bit pixels of Pillow's modes, with the alpha channel if there is transparency."""
    if "transparency" in image.info or image.mode == "PA":
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    return np.asarray(image)


def _deep_pixels(image: ImageFile, content: Content) -> np.ndarray:
    """16-bit pixels. Pillow keeps 16 bits only for gray, so colour is decoded by other libraries."""
    if image.format == "PNG":
        import imagecodecs

        size = image.size
        pixels = imagecodecs.png_decode(data_of(content))
    elif is_deep_gray(image):
        pixels = np.asarray(image)  # upright
        pixels, size = pixels.astype(pixels.dtype.newbyteorder("="), copy=False), image.size
    else:
        size = stored_size(image)
        pixels = _tiff_pixels(content, size)
    if image.mode == "RGB" and "transparency" in image.info and pixels.shape[2] == 3:
        raise ImageError("names a transparent colour; flatten it onto a background")
    if pixels.dtype != np.uint16 or pixels.shape[1::-1] != size:
        raise ImageError(f"holds {pixels.dtype} values of shape {pixels.shape}; convert it to 16-bit gray or RGB")
    return pixels


def _tiff_pixels(content: Content, size: tuple[int, int]) -> np.ndarray:
    """The first page of a TIFF. `size`, its width and height by Pillow, has been checked against the limit."""
    import tifffile

    if not isinstance(content, Path):
        content.seek(0)
    with tifffile.TiffFile(content) as file:
        page = file.pages.first
        values = math.prod(page.shape)  # tifffile allocates this number, and for each tile the number in its tags
        if (page.imagewidth, page.imagelength) != size or values > 4 * math.prod(size):
            raise ImageError("is a TIFF whose tags contradict each other; save it again")
        if math.prod(page.chunks) > max(2**26, 4 * values) or page.compression not in _TIFF_CODECS:
            raise ImageError("is a TIFF of an unusual compression or tile size; save it again, uncompressed or as LZW")
        pixels = page.asarray()
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (3, 4):
        pixels = np.moveaxis(pixels, 0, -1)  # planes stored separately
    return pixels


def luma(pixels: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma (H, W, 1) of RGB, in Pillow's fixed-point arithmetic for 8 bits."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(pixels.dtype)[..., None]
