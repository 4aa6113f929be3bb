"""Open an image file with Pillow, and refuse formats that cannot be read without loss."""

import io
import re
import struct
import warnings
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is the limit instead
# Pillow detects about forty formats by content, and runs a program on one of them (EPS).
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "AVIF")
MODES = {"1": "black and white", "L": "gray", "I;16": "gray", "LA": "gray with alpha", "P": "palette", "RGB": "RGB",
         "PA": "palette", "RGBA": "RGB with alpha"}  # fmt: skip
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, KeyError, IndexError, AttributeError,
          struct.error)  # fmt: skip
_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 256, 257, 258, 262, 339  # TIFF tags

Content = Path | io.BytesIO  # of an encoded file


class ImageError(Exception):
    """An unusable image. The message is the reason, without the file's name."""


def too_large(max_pixels: int) -> ImageError:
    """Return the error for an image of more than `max_pixels` pixels."""
    return ImageError(
        f"has more than {max_pixels:,} pixels; cut it into pieces or, if you trust it, raise data.max_image_pixels "
        "(restore and evaluate: --max-pixels)"
    )


def data_of(content: Content) -> bytes:
    """Return the bytes of an encoded file."""
    return content.read_bytes() if isinstance(content, Path) else content.getvalue()


def open_image(content: Content, max_pixels: int) -> ImageFile:
    """Open an encoded file without decoding it.

    Raises: ImageError for files that are not images, are too large, or would lose something when they are decoded.
    """
    image = _open(content, max_pixels)
    if image.format == "TIFF":
        image.filename = ""  # otherwise Pillow maps the file, and then does not apply its orientation
    try:
        if image.width * image.height > max_pixels:
            raise too_large(max_pixels)
        if problem := _mode_problem(image) or _depth_problem(image, content):
            raise ImageError(problem)
    except ImageError:
        image.close()
        raise
    except OSError as error:
        image.close()
        raise ImageError(f"cannot be read ({error}); replace or remove it") from None
    return image


def _open(content: Content, max_pixels: int) -> ImageFile:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # requested by the configuration
    try:
        if (content.stat().st_size if isinstance(content, Path) else content.getbuffer().nbytes) == 0:
            raise ImageError("is empty (0 bytes); replace or remove it")
        return Image.open(content, formats=_known_formats())
    except UnidentifiedImageError:
        raise ImageError(f"is not a readable image ({', '.join(FORMATS)}); convert, replace or remove it") from None
    except Image.DecompressionBombError:  # above twice Pillow's own limit, which is at least `max_pixels`
        raise too_large(max_pixels) from None
    except DAMAGE as error:
        raise ImageError(f"cannot be read ({error}); replace or remove it") from None


@cache
def _known_formats() -> tuple[str, ...]:
    """The `FORMATS` of this build of Pillow; AVIF needs a library."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _mode_problem(image: ImageFile) -> str | None:
    """Why the pages or the pixel format are refused, or None."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's MPO: the first picture is the photograph
        return f"contains {frames} images; save the one that you want as a separate file"
    if image.mode == "CMYK":
        return "is CMYK, whose colours depend on the printer; convert it to RGB with its colour profile"
    if image.mode not in MODES and not is_deep_gray(image):
        return f"has the pixel format {image.mode}; convert it to gray or RGB with 8 or 16 bits"
    return None


def _depth_problem(image: ImageFile, content: Content) -> str | None:
    """Why the bit depth is refused, or None."""
    if isinstance(image, TiffImageFile) and is_deep(image) and _has_unusual_values(image):
        return "is a TIFF of signed, inverted or other unusual 16-bit values; convert it to plain unsigned values"
    if isinstance(image, TiffImageFile) and is_deep_gray(image) and not is_deep(image):
        return f"is a TIFF of {image.tag_v2[_BITS_PER_SAMPLE][0]}-bit values; convert it to 16 bits"
    if is_deep(image) and image.format not in ("PNG", "TIFF"):
        return f"is a 16-bit {image.format}, whose lower bits would be lost; convert it to PNG or TIFF"
    if image.format in ("JPEG2000", "AVIF") and _is_cut(image.format, content):
        return f"is {image.format} with more than 8 bits, whose lower bits would be lost; convert it to PNG"
    return None


def is_deep(image: ImageFile) -> bool:
    """Whether the file has 16 bits per channel.

    Pillow opens 16-bit colour as RGB, so the depth is read from the tags or from the decoder's arguments.
    """
    if isinstance(image, TiffImageFile):
        return 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())
    if image.format == "PNG":
        return any(";16" in str(tile[3]) for tile in image.tile)
    if image.format == "PPM":
        return any(isinstance(part, int) and part > 255 for tile in image.tile for part in tuple(tile[3] or ()))
    return image.mode.startswith("I;16")


def is_deep_gray(image: ImageFile) -> bool:
    """Whether Pillow opens the file as 16-bit gray."""
    return image.mode.startswith("I;16") or (image.mode == "I" and is_deep(image))


def _has_unusual_values(image: TiffImageFile) -> bool:
    """Whether a 16-bit TIFF holds anything but unsigned gray with 0 as black, or RGB with or without alpha."""
    tags = image.tag_v2
    return any(form != 1 for form in tags.get(_SAMPLE_FORMAT, (1,))) or tags.get(_PHOTOMETRIC, 1) not in (1, 2)


def _is_cut(format: str, content: Content) -> bool:
    """Whether a JPEG 2000 or AVIF file has more than the 8 bits per channel that Pillow reads."""
    data = data_of(content)
    if format == "AVIF":
        profile = re.search(rb"av1C..(.)", data, re.DOTALL)
        return profile is not None and bool(profile[1][0] & 0x40)  # high_bitdepth
    sizes = re.search(rb"\xff\x4f\xff\x51.{36}(..)", data, re.DOTALL)  # SIZ, up to the number of components
    depths = data[sizes.end() :: 3][: int.from_bytes(sizes[1], "big")] if sizes is not None else b""
    return any((depth & 0x7F) + 1 > 8 for depth in depths)


def stored_size(image: ImageFile) -> tuple[int, int]:
    """Return width and height as stored in the file; for a TIFF, Pillow's own are those of the upright image."""
    return (image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]) if isinstance(image, TiffImageFile) else image.size
