"""A contact sheet: input, gt and their difference of each pair, pairs with findings first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from accel_restore.data_check.measure import enlarge
from accel_restore.metrics.format import format_score
from accel_restore.utils.captions import draw_caption
from accel_restore.utils.visible import to_rgb

_TILE, _CAPTION, _GAP = 160, 18, 4  # pixels
_MAX_COLUMNS, _MAX_ROWS = 3, 24
_CONTRAST = 4  # factor of the difference


@dataclass(frozen=True)
class SheetRow:
    """One pair of the sheet.

    Shapes: (H, W, C) in [0, 1]; the input may be smaller than gt.
    """

    name: str
    input: np.ndarray | None
    gt: np.ndarray
    psnr: float = np.nan
    kinds: tuple[str, ...] = ()  # of its findings


def contact_sheet(rows: Sequence[SheetRow]) -> Image.Image:
    """Draw up to 24 pairs with name, PSNR and findings; the difference is multiplied by 4."""
    rows = sorted(rows, key=lambda row: not row.kinds)[:_MAX_ROWS]
    num_tiles = 1 if all(row.input is None for row in rows) else 3
    columns = min(_MAX_COLUMNS * 3 // num_tiles, max(len(rows), 1))
    width, height = num_tiles * (_TILE + _GAP) + 2 * _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(rows) // columns)) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        left, top = place % columns * width + _GAP, place // columns * height
        colour = "firebrick" if row.kinds else "black"
        draw_caption(pen, (left, top + 1), _caption(row), width - 3 * _GAP, size=13, colour=colour)
        for number, image in enumerate(_tiles(row)):
            sheet.paste(image, (left + number * (_TILE + _GAP), top + _CAPTION))
    return sheet


def _tiles(row: SheetRow) -> list[Image.Image]:
    """The images of a row, each resized to fit a tile."""
    gt = _picture(row.gt)
    if row.input is None:
        return [_resized(gt)]
    enlarged = _picture(enlarge(row.input, row.gt.shape[0] // row.input.shape[0]))
    difference = np.abs(np.asarray(enlarged, np.float32) - np.asarray(gt, np.float32)) / 255
    return [_resized(_picture(row.input)), _resized(gt), _resized(_picture(_CONTRAST * difference))]


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(to_rgb(image))


def _resized(picture: Image.Image) -> Image.Image:
    """The picture in the size of a tile; small ones are enlarged without smoothing."""
    ratio = _TILE / max(picture.size)
    width, height = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST if ratio > 1 else Image.Resampling.BOX)


def _caption(row: SheetRow) -> str:
    name = "".join(letter if letter.isprintable() else "?" for letter in row.name)
    score = "" if np.isnan(row.psnr) else f"  {format_score('psnr', row.psnr)}"
    return name + score + (f"  {', '.join(row.kinds)}" if row.kinds else "")
