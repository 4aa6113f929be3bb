"""The validation pictures of a report: the sheets in samples/, cut apart along the boxes that they tell."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

_KEY = "accel_restore"  # of a PNG's text, that holds the boxes
_MOST_SHEETS = 4
_MOST_ROWS = 6
_QUALITY = 92


def describe_tiles(rows: list[list[dict[str, Any]]]) -> PngImagePlugin.PngInfo:
    """What a sheet tells of its tiles, to be saved with it: for each image its tiles, as `caption` and `box`."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(_KEY, json.dumps(rows))
    return info


def read_pictures(folder: Path, known: dict[Path, list]) -> dict[str, Any] | None:
    """The first, the last and two more sheets of a run as data URIs; None where there is none.

    Input and gt of an image are the same in all sheets, so they come once. `known` keeps what has been cut.
    """
    sheets = []
    paths = sorted(folder.glob("samples/epoch-*.png"))
    places = {round(part * (len(paths) - 1) / (_MOST_SHEETS - 1)) for part in range(_MOST_SHEETS)} if paths else ()
    for path in (paths[place] for place in sorted(places)):
        if path not in known:
            try:
                known[path] = _cut(path)
            except (OSError, ValueError, KeyError, TypeError, SyntaxError):  # Pillow's for a damaged file too
                continue
        sheets.append((_epoch(path), known[path]))
    if not sheets:
        return None
    last = sheets[-1][1]
    images = [
        {
            "input": row[0],
            "gt": row[2],
            "outputs": [{"epoch": epoch, **rows[place][1]} for epoch, rows in sheets if place < len(rows)],
        }
        for place, row in enumerate(last)
    ]
    return {"images": images, "epochs": [epoch for epoch, _ in sheets], "sheets": len(paths)}


def _epoch(sheet: Path) -> str:
    """The epoch of a sheet as people count, from 1; its file counts from 0."""
    number = sheet.stem.removeprefix("epoch-")
    return str(int(number) + 1) if number.isdecimal() else number


def _cut(path: Path) -> list[list[dict[str, Any]]]:
    """For each image of a sheet its tiles: caption, data URI, width and height."""
    with Image.open(path) as sheet:
        rows = json.loads(sheet.text[_KEY])
        picture = sheet.convert("RGB")
    return [[_tile(picture, tile) for tile in row] for row in rows[:_MOST_ROWS] if len(row) == 3]


def _tile(sheet: Image.Image, tile: dict[str, Any]) -> dict[str, Any]:
    cut, file = sheet.crop(tile["box"]), io.BytesIO()
    cut.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"caption": str(tile["caption"]), "src": source, "width": cut.width, "height": cut.height}
