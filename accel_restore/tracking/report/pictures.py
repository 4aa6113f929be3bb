"""The validation pictures of the report: tiles cut from the sheets in samples/, whose PNG text holds the boxes."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

PREVIEWS = "preview"  # the folder of sheets of images without gt
_KEY = "accel_restore"  # of the PNG text
_MAX_SHEETS = 4  # and the sheet of the best epoch
_MAX_ROWS = 6
_QUALITY = 92


def describe_tiles(rows: list[list[dict[str, Any]]]) -> PngImagePlugin.PngInfo:
    """Return the PNG text to save with a sheet: `caption` and `box` of each tile, one row per image."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(_KEY, json.dumps(rows))
    return info


def sheet_path(folder: Path, epoch: int, best: bool = False, kind: str = "") -> Path:
    """Return the path of an epoch's sheet; epochs count from 0. The best epoch has one even if no other is due.

    `kind` is "" for validation images, or PREVIEWS.
    """
    return folder / "samples" / kind / f"{'best-' * best}epoch-{epoch:04d}.png"


def remove_best_sheets(best: Path) -> None:
    """Remove the sheets of earlier best epochs, which are in the folder of `best`, the sheet to keep."""
    for path in best.parent.glob("best-epoch-*.png"):
        if path != best:
            path.unlink(missing_ok=True)


def read_pictures(
    folder: Path, best_epoch: int | None, known: dict[Path, list], kind: str = ""
) -> dict[str, Any] | None:
    """Return the tiles of the first, the last, the best and two more sheets as data URIs; None if there are no sheets.

    Input and gt are the same in all sheets, so each is included once; previews have no gt. `known` keeps the tiles of
    these sheets for the next call. `best_epoch` counts from 0. `kind` is as in `sheet_path`.
    """
    sheets = []
    place_of = (folder / "samples" / kind).glob
    paths = sorted(path for path in place_of("epoch-*.png") if path.is_file())  # a pipe would wait
    places = {round(part * (len(paths) - 1) / (_MAX_SHEETS - 1)) for part in range(_MAX_SHEETS)} if paths else ()
    chosen = {_epoch(paths[place]): paths[place] for place in places}
    if best_epoch is not None:
        both = (sheet_path(folder, best_epoch, is_best, kind) for is_best in (False, True))
        chosen |= {_epoch(path): path for path in both if path.is_file()}
    for path in sorted(chosen.values(), key=lambda path: path.stem.rpartition("-")[2]):
        if path not in known:
            try:
                known[path] = _cut(path)
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
                SyntaxError,
            ):  # Pillow raises all of these for damaged files
                continue
        sheets.append((_epoch(path), known[path]))
    for path in [path for path in known if path.parent == folder / "samples" / kind and path not in chosen.values()]:
        del known[path]
    if not sheets:
        return None
    last = sheets[-1][1]
    images = [
        {
            "input": row[0],
            "gt": row[2] if len(row) == 3 else None,
            "outputs": [{"epoch": epoch, **rows[place][1]} for epoch, rows in sheets if place < len(rows)],
        }
        for place, row in enumerate(last)
    ]
    epochs = [epoch for epoch, _ in sheets]
    best = None if best_epoch is None else str(best_epoch + 1)
    return {"images": images, "epochs": epochs, "best": best, "sheets": len(paths), "kind": kind}


def _epoch(sheet: Path) -> str:
    """Return the epoch of a sheet, counted from 1; file names count from 0."""
    number = sheet.stem.rpartition("epoch-")[2]
    return str(int(number) + 1) if number.isdecimal() else number


def _cut(path: Path) -> list[list[dict[str, Any]]]:
    """Return one row of tiles per image: caption, data URI, width and height."""
    with Image.open(path) as sheet:
        rows = json.loads(sheet.info[_KEY])
        picture = sheet.convert("RGB")
    return [[_tile(picture, tile) for tile in row] for row in rows[:_MAX_ROWS] if len(row) in (2, 3)]


def _tile(sheet: Image.Image, tile: dict[str, Any]) -> dict[str, Any]:
    cut, file = sheet.crop(tile["box"]), io.BytesIO()
    cut.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"caption": str(tile["caption"]), "src": source, "width": cut.width, "height": cut.height}
