"""Decode one image file to 8-bit pixels; what cannot be used is refused with its reason."""

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

GRAY, COLOUR = {"L"}, {"RGB"}
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap height and width


class Unusable(Exception):
    """An image that cannot be used; the message is the reason, without the file's name."""


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header, after EXIF orientation.

    Raises: Unusable.
    """
    with _opened(path) as image:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:
            return height, width  # to look further, Pillow would decode it all
        try:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
        except (OSError, SyntaxError, ValueError, TypeError) as error:
            raise Unusable(f"is damaged ({error}); replace or remove it") from None
    return (width, height) if turned else (height, width)


def read_image(path: Path, channels: int) -> np.ndarray:
    """The pixels, uint8 of shape (H, W, channels), EXIF orientation applied, as for input so for gt.

    `channels` 1 takes the BT.601 luma of a colour image; 3 repeats a gray one.

    Raises: Unusable for what is no image, damaged, empty, or of a pixel format that would silently lose something.
    """
    with _opened(path) as image:
        try:
            pixels = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise Unusable(f"is damaged ({error}); replace or remove it") from None
    return np.asarray(pixels).reshape(pixels.height, pixels.width, channels)


def _opened(path: Path) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise Unusable("is empty (0 bytes); replace or remove it")
        image = Image.open(path)
    except UnidentifiedImageError:
        raise Unusable("is no image; replace or remove it") from None
    except Image.DecompressionBombError as error:
        raise Unusable(f"is too large ({error}); cut it into pieces") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise Unusable(f"cannot be read ({error})") from None
    # Pillow opens 16-bit colour as RGB and drops the low bits: only the decoder's arguments tell.
    deep = any(re.search(r"16|65535", str(tile[3])) for tile in image.tile)
    if deep or image.mode not in GRAY | COLOUR:
        pixel_format = f"16-bit {image.mode}" if deep else image.mode
        image.close()
        raise Unusable(f"has the pixel format {pixel_format}; only 8-bit gray and RGB can be read yet: convert it")
    return image
