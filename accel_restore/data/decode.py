"""Decode one image, a file or a data set's cell, to pixels at full depth, by one rule for each pixel format.

The rules, the same for input and gt: 8 and 16 bits keep their depth; gray is repeated for colour training, colour gives
BT.601 luma for gray training; a palette stands for its colours, 1 bit for black and white; EXIF orientation is applied;
an opaque alpha channel is left out, a transparent one refused; CMYK, 32-bit and other formats are refused, because
there is no one right way to RGB. A file is decoded by its content, whatever its name ends in.
"""

import io
import math
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from accel_restore.config.data import MAX_PIXELS

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` refuses in its place
# Pillow reads some forty formats, by content, one of them (EPS) by running a program on it.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "AVIF")

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, KeyError, IndexError, AttributeError,
           struct.error)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF's tag
_TIFF_CODECS = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, Deflate, PackBits, Deflate, LZMA, Zstandard
_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 256, 257, 258, 262, 339  # TIFF's tags
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
_USABLE = {"1": "black and white", "L": "gray", "I;16": "gray", "LA": "gray with alpha", "P": "palette", "RGB": "RGB",
           "PA": "palette", "RGBA": "RGB with alpha"}  # fmt: skip


class ImageError(Exception):
    """An image that cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Cell:
    """An image inside a data set: `fetch` gives the bytes of an encoded file, or pixels (H, W) or (H, W, C)."""

    label: str  # names it in messages
    identity: str  # changes when the content changes; equal identities are the same image
    fetch: Callable[[], bytes | np.ndarray] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.label


ImageSource = Path | Cell


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded."""

    height: int  # after EXIF orientation
    width: int
    bits: int  # 8 or 16
    mode: str  # in words: gray, RGB, palette, ...
    format: str  # by content: PNG, JPEG, ...
    orientation: int = 1  # EXIF's, 1 is upright


def read_header(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Header:
    """What the image's header says; nothing is decoded.

    Raises: ImageError.
    """
    content = _content(source)
    if isinstance(content, np.ndarray):
        pixels = _checked_array(content, max_pixels)
        mode = "gray" if pixels.shape[2] == 1 else "RGB"
        return Header(*pixels.shape[:2], 8 * pixels.itemsize, mode, "array")
    with _opened(content, max_pixels) as image:
        return _header(image)


def read_image(source: ImageSource, channels: int, bits: int = 8, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels (H, W, channels), uint8 for `bits` 8 and uint16 for 16, upright.

    Raises: ImageError for what is no image, damaged, empty, too large, deeper than `bits`, or of a pixel format that
    would silently lose something.
    """
    content = _content(source)
    if isinstance(content, np.ndarray):
        pixels = _checked_array(content, max_pixels)
    else:
        with _opened(content, max_pixels) as image:
            pixels = _decoded(image, content)
    if pixels.dtype == np.uint16 and bits == 8:
        raise ImageError("has 16 bits, which 8 cannot hold")
    if pixels.dtype == np.uint8 and bits == 16:
        pixels = pixels.astype(np.uint16) * 257  # 255 becomes 65535
    if channels == 1 and pixels.shape[2] == 3:
        return luma(pixels)
    return np.repeat(pixels, 3, axis=2) if channels == 3 and pixels.shape[2] == 1 else pixels


def _content(source: ImageSource) -> Path | io.BytesIO | np.ndarray:
    if isinstance(source, Cell):
        content = source.fetch()
        return content if isinstance(content, np.ndarray) else io.BytesIO(content)
    return source


def _checked_array(pixels: np.ndarray, max_pixels: int) -> np.ndarray:
    """(H, W, 1 or 3) of uint8 or uint16."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size or pixels.dtype not in ("uint8", "uint16"):
        raise ImageError(
            f"is an array of {pixels.dtype} {pixels.shape}; give uint8 or uint16 of (H, W), (H, W, 1 or 3)"
        )
    if pixels.shape[0] * pixels.shape[1] > max_pixels:
        raise _too_large(max_pixels)
    return pixels


def _too_large(max_pixels: int) -> ImageError:
    return ImageError(
        f"has more than {max_pixels:,} pixels: cut it into pieces, or, if you trust it, raise data.max_image_pixels "
        "(restore and evaluate: --max-pixels)"
    )


def _opened(content: Path | io.BytesIO, max_pixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # asked for by the configuration
    try:
        if (content.stat().st_size if isinstance(content, Path) else content.getbuffer().nbytes) == 0:
            raise ImageError("is empty (0 bytes); replace or remove it")
        image = Image.open(content, formats=_known_formats())
    except UnidentifiedImageError:
        raise ImageError(
            f"is no image that can be read ({', '.join(FORMATS)}); convert, replace or remove it"
        ) from None
    except Image.DecompressionBombError:  # more than twice Pillow's own limit, which is at least ours
        raise _too_large(max_pixels) from None
    except _DAMAGE as error:
        raise ImageError(f"cannot be read ({error}); replace or remove it") from None
    if image.format == "TIFF":
        image.filename = ""  # else Pillow maps it, in which it takes one that is to be turned for one that is not
    try:
        if image.width * image.height > max_pixels:
            raise _too_large(max_pixels)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # of which a camera's first picture is the photograph
            raise ImageError(f"holds {frames} images: save the one that is meant in a file of its own")
        if image.mode == "CMYK":
            raise ImageError("is CMYK, whose colours depend on the printer: convert it to RGB with its colour profile")
        if image.mode not in _USABLE and not _is_deep_gray(image):
            raise ImageError(f"has the pixel format {image.mode}: convert it to gray or RGB of 8 or 16 bits")
        if image.format == "TIFF" and _is_deep(image) and _has_other_values(image):
            raise ImageError("is a TIFF of signed, inverted or other unusual 16-bit values: convert it to a plain one")
        if image.format == "TIFF" and _is_deep_gray(image) and not _is_deep(image):
            raise ImageError(
                f"is a TIFF of {image.tag_v2[_BITS_PER_SAMPLE][0]}-bit values: convert it to one of 16 bits"
            )
        if _is_deep(image) and image.format not in ("PNG", "TIFF"):
            raise ImageError(f"is a 16-bit {image.format}, which would lose its lower bits: convert it to PNG or TIFF")
        if image.format in ("JPEG2000", "AVIF") and _is_cut(image.format, content):
            raise ImageError(
                f"is {image.format} of more than 8 bits, which would lose the lower ones: convert it to PNG"
            )
    except ImageError:
        image.close()
        raise
    except OSError as error:
        image.close()
        raise ImageError(f"cannot be read ({error}); replace or remove it") from None
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has; AVIF needs a library."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_deep(image: Image.Image) -> bool:
    """True for 16 bits a channel. Pillow opens 16-bit colour as RGB: only tags or the decoder's arguments tell."""
    if image.format == "TIFF":
        return 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())
    if image.format == "PNG":
        return any(";16" in str(tile[3]) for tile in image.tile)
    if image.format == "PPM":
        return any(isinstance(part, int) and part > 255 for tile in image.tile for part in tuple(tile[3]))
    return image.mode.startswith("I;16")


def _is_cut(format: str, content: Path | io.BytesIO) -> bool:
    """True for JPEG 2000 and AVIF of more than the 8 bits a channel that Pillow gives of them."""
    data = content.read_bytes() if isinstance(content, Path) else content.getvalue()
    if format == "AVIF":
        profile = re.search(rb"av1C..(.)", data, re.DOTALL)
        return profile is not None and bool(profile[1][0] & 0x40)  # high_bitdepth
    sizes = re.search(rb"\xff\x4f\xff\x51.{36}(..)", data, re.DOTALL)  # SIZ, to the number of components
    depths = data[sizes.end() :: 3][: int.from_bytes(sizes[1], "big")] if sizes is not None else b""
    return any((depth & 0x7F) + 1 > 8 for depth in depths)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as they lie in the file; of a TIFF, Pillow tells those of the upright image."""
    return (image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]) if image.format == "TIFF" else image.size


def _has_other_values(image: Image.Image) -> bool:
    """True unless a 16-bit TIFF holds unsigned values of which 0 is black, or RGB with or without alpha."""
    tags = image.tag_v2
    return any(form != 1 for form in tags.get(_SAMPLE_FORMAT, (1,))) or tags.get(_PHOTOMETRIC, 1) not in (1, 2)


def _is_deep_gray(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and _is_deep(image))


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE as error:
        raise ImageError(f"is damaged ({error}); replace or remove it") from None
    return orientation if orientation in _UPRIGHT else 1


def _header(image: Image.Image) -> Header:
    width, height = _stored_size(image)
    # To look for EXIF data at the end of a PNG, Pillow would decode it all.
    orientation = 1 if image.format == "PNG" and "exif" not in image.info else _orientation(image)
    if orientation >= 5:
        height, width = width, height
    deep = _is_deep(image)
    mode = _USABLE["L" if _is_deep_gray(image) else image.mode]
    return Header(height, width, 16 if deep else 8, mode, image.format, orientation)


def _decoded(image: Image.Image, content: Path | io.BytesIO) -> np.ndarray:
    """The upright pixels (H, W, 1 or 3)."""
    try:
        pixels = _deep_pixels(image, content) if _is_deep(image) else _pixels(image)
        orientation = _orientation(image)
    except _DAMAGE as error:
        raise ImageError(f"is damaged ({error}); replace or remove it") from None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] in (2, 4):
        if pixels[..., -1].min() < np.iinfo(pixels.dtype).max:
            raise ImageError("has transparent pixels, which have no one colour: flatten it onto a background")
        pixels = pixels[..., :-1]
    return _UPRIGHT.get(orientation, lambda upright: upright)(pixels)


def _pixels(image: Image.Image) -> np.ndarray:
    """8-bit pixels of Pillow's modes, with the alpha channel where there is transparency."""
    if "transparency" in image.info or image.mode == "PA":
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    return np.asarray(image)


def _deep_pixels(image: Image.Image, content: Path | io.BytesIO) -> np.ndarray:
    """16-bit pixels, which Pillow keeps for gray alone."""
    if image.format == "PNG":
        import imagecodecs

        size = image.size
        pixels = imagecodecs.png_decode(content.read_bytes() if isinstance(content, Path) else content.getvalue())
    elif _is_deep_gray(image):
        pixels = np.asarray(image)  # upright
        pixels, size = pixels.astype(pixels.dtype.newbyteorder("="), copy=False), image.size
    else:
        size = _stored_size(image)
        pixels = _tiff_pixels(content, size)
    if image.mode == "RGB" and "transparency" in image.info and pixels.shape[2] == 3:
        raise ImageError("names a transparent colour: flatten it onto a background")
    if pixels.dtype != np.uint16 or pixels.shape[1::-1] != size:
        raise ImageError(f"holds {pixels.dtype} values of shape {pixels.shape}: convert it to gray or RGB of 16 bits")
    return pixels


def _tiff_pixels(content: Path | io.BytesIO, size: tuple[int, int]) -> np.ndarray:
    """The first page of a TIFF; `size` is its width and height by Pillow, which were found small enough."""
    import tifffile

    if not isinstance(content, Path):
        content.seek(0)
    with tifffile.TiffFile(content) as file:
        page = file.pages.first
        values = math.prod(page.shape)  # as many are allocated, and for each tile as many as it claims
        if (page.imagewidth, page.imagelength) != size or values > 4 * math.prod(size):
            raise ImageError("is a TIFF whose tags contradict each other; save it anew")
        if math.prod(page.chunks) > max(2**26, 4 * values) or page.compression not in _TIFF_CODECS:
            raise ImageError("is a TIFF of an unusual compression or tile size; save it anew, plain or with LZW")
        pixels = page.asarray()
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (3, 4):
        pixels = np.moveaxis(pixels, 0, -1)  # planes stored apart
    return pixels


def luma(pixels: np.ndarray) -> np.ndarray:
    """BT.601 luma (H, W, 1) of RGB, in the fixed-point arithmetic that Pillow uses for 8 bits."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(pixels.dtype)[..., None]
