"""A picture of the pairs of a set: input, gt and their difference, those with findings first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from accel_restore.metrics.format import format_score

_TILE, _CAPTION, _GAP = 160, 18, 4
_COLUMNS, _MOST = 3, 24
_CONTRAST = 4  # of the difference


@dataclass(frozen=True)
class SheetRow:
    """A pair as it is drawn; images are (H, W, C) in [0, 1], the input may be smaller than gt or missing."""

    name: str
    input: np.ndarray | None
    gt: np.ndarray
    psnr: float = np.nan
    kinds: tuple[str, ...] = ()  # of its findings


def contact_sheet(rows: Sequence[SheetRow]) -> Image.Image:
    """A picture of up to 24 pairs with their names, PSNR and findings; the difference is enlarged four times."""
    rows = sorted(rows, key=lambda row: not row.kinds)[:_MOST]
    tiles = 1 if all(row.input is None for row in rows) else 3
    columns = min(_COLUMNS * 3 // tiles, max(len(rows), 1))
    width, height = tiles * (_TILE + _GAP) + 2 * _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(rows) // columns)) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, row in enumerate(rows):
        left, top = place % columns * width + _GAP, place // columns * height
        colour = "firebrick" if row.kinds else "black"
        pen.text((left, top + 1), _caption(row, pen, font, width - 3 * _GAP), colour, font)
        for number, image in enumerate(_tiles(row)):
            sheet.paste(image, (left + number * (_TILE + _GAP), top + _CAPTION))
    return sheet


def _tiles(row: SheetRow) -> list[Image.Image]:
    """The row's images, each fitted into a tile; small ones are enlarged without smoothing."""
    gt = _picture(row.gt)
    if row.input is None:
        return [_fitted(gt)]
    enlarged = _picture(row.input).resize(gt.size, Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(enlarged, np.float32) - np.asarray(gt, np.float32)) / 255
    return [_fitted(_picture(row.input)), _fitted(gt), _fitted(_picture(_CONTRAST * difference))]


def _picture(image: np.ndarray) -> Image.Image:
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def _fitted(picture: Image.Image) -> Image.Image:
    ratio = _TILE / max(picture.size)
    size = tuple(max(1, round(side * ratio)) for side in picture.size)
    return picture.resize(size, Image.Resampling.NEAREST if ratio > 1 else Image.Resampling.BOX)


def _caption(row: SheetRow, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Name, PSNR and kinds of findings; of a long name, the end."""
    rest = "" if np.isnan(row.psnr) else f"  {format_score('psnr', row.psnr)}"
    rest += f"  {', '.join(row.kinds)}" if row.kinds else ""
    name = "".join(letter if letter.isprintable() else "?" for letter in row.name)
    while len(name) > 1 and pen.textlength(name + rest, font) > width:
        name = "…" + name[2:]
    return name + rest
