"""Captions on pictures."""

import math

from PIL import ImageDraw, ImageFont

_SIZE = 14  # pixels of the font


def caption_width(text: str, size: int = _SIZE) -> int:
    """Return the pixels that `text` takes on one line."""
    return math.ceil(ImageFont.load_default(size).getlength(text))


def draw_caption(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, *, size: int = _SIZE, colour: str = "black"
) -> None:
    """Draw `text` on one line at `place` (left, top), shortened to `width` pixels."""
    font = ImageFont.load_default(size)
    pen.text(place, shorten(text, width, font), colour, font)


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the end of `text` that fits into `width` pixels: names come first in a caption, scores last."""
    while len(text) > 1 and font.getlength(text) > width:
        text = f"…{text[2:]}"
    return text
