"""Captions on pictures."""

from PIL import ImageDraw, ImageFont


def draw_caption(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, *, size: int = 14, colour: str = "black"
) -> None:
    """Draw `text` on one line at `place` (left, top), shortened to `width` pixels."""
    font = ImageFont.load_default(size)
    pen.text(place, shorten(text, width, font), colour, font)


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the end of `text` that fits into `width` pixels: names come first in a caption, scores last."""
    while len(text) > 1 and font.getlength(text) > width:
        text = f"…{text[2:]}"
    return text
