"""The orientation of an image: one rule for all formats, for headers and for pixels.

EXIF's orientation tag decides, also if its value is invalid, which is taken as upright. Without the tag,
`tiff:Orientation` in XMP decides. AVIF's own rotation replaces both.
"""

import re
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image

_TAG = 0x0112
_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*(\d+)""")
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 to 8, that an image's EXIF data and XMP name; damaged EXIF data name none."""
    tags, value = Image.Exif(), None
    with suppress(Exception):  # Pillow raises exceptions of many kinds
        tags.load(exif or b"")
        value = tags.get(_TAG)
    if value is None and xmp and (found := _XMP.search(xmp.replace(b"\0", b""))):  # UTF-8, or ASCII in UTF-16
        value = int(found[1])
    return value if value in _UPRIGHT else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels (H, W, C), stored with this orientation, upright."""
    return _UPRIGHT[orientation](pixels)
