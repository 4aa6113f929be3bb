"""Raw files of cameras with a Bayer filter: packed to four channels of half the height and width.

The channels are red, the green next to red, the green next to blue, and blue, whatever pixel the sensor's pattern
starts with. Values are 16 bits: 0 is black, 65535 the sensor's white. Nothing else is applied: no white balance, no
colour matrix, no curve. Orientation is applied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from accel_restore.data.file_search import RAW_EXTENSIONS
from accel_restore.data.image_formats import Content, Header, ImageError, make_header, opened

if TYPE_CHECKING:
    import rawpy

_STARTS = (b"FUJIFILM", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"II\x1a\0\0\0HEAP", b"\0MRM", b"FOVb")
_OTHERS = (b"\xff\xd8", b"GIF8", b"BM", b"RIFF")  # of files that are no raw files, whatever their suffix
_TURNS = {0: 0, 3: 2, 5: 1, 6: 3}  # quarter turns counter-clockwise, by LibRaw's flip
_WHITE = 65535


def is_raw(start: bytes, suffix: str) -> bool:
    """Return whether a file that starts so, with this suffix, is a raw file.

    Others are recognised by the tags of TIFF.
    """
    if start.startswith(_STARTS) or start[4:11] == b"ftypcrx" or start[:4] + start[8:10] == b"II*\0CR":
        return True
    return suffix in RAW_EXTENSIONS and not start.startswith(_OTHERS)


@contextmanager
def _open(content: Content) -> Iterator["rawpy.RawPy"]:
    try:
        import rawpy
    except ImportError:
        raise ImageError(
            "is a raw file of a camera, which needs an extra: pip install 'accel_restore[raw]'; or develop it first"
        ) from None
    with opened(content) as file:
        try:
            image = rawpy.imread(file)
        except rawpy.LibRawFileUnsupportedError:
            raise ImageError("is a raw file that LibRaw does not know; convert it to DNG, or develop it") from None
        with image:
            if problem := _problem(image):
                raise ImageError(problem)
            yield image


def _problem(image: "rawpy.RawPy") -> str | None:
    """Why a raw file is refused, or None."""
    import rawpy

    if image.raw_type != rawpy.RawType.Flat or image.num_colors != 3 or image.color_desc != b"RGBG":
        return "is a raw file without a Bayer filter (already in colour, monochrome, or of other colours); develop it"
    pattern = image.raw_pattern
    if pattern is None or pattern.shape != (2, 2) or sorted(_colours(pattern)) != list("BGGR"):
        return "is a raw file whose filter is not Bayer's (such as X-Trans); develop it"
    return None


def _colours(pattern: np.ndarray) -> str:
    """The colours of a pattern, row by row."""
    return "".join("RGBG"[index] for index in pattern.flat)


def read_raw_header(content: Content, max_pixels: int) -> Header:
    """Return the header of a raw file, of the size that its pixels are packed to.

    Raises: ImageError if it has no Bayer filter, or rawpy is not installed.
    """
    with _open(content) as image:
        size = image.sizes.height // 2, image.sizes.width // 2
        size = size[::-1] if _TURNS.get(image.sizes.flip, 0) % 2 else size
        return make_header(size, "uint16", "Bayer, 4 channels", "raw", 1, max_pixels)


def read_raw_pixels(content: Content) -> np.ndarray:
    """Return the pixels (H / 2, W / 2, 4), uint16.

    Raises: ImageError or others for damaged files.
    """
    with _open(content) as image:
        values = image.raw_image_visible
        values = values[: values.shape[0] // 2 * 2, : values.shape[1] // 2 * 2]
        pattern = image.raw_colors_visible[:2, :2]
        black, white = np.array(image.black_level_per_channel, np.float32), np.float32(image.white_level)
        planes = []
        for top, left in _order(_colours(pattern)):
            level = black[pattern[top, left]]
            plane = (values[top::2, left::2].astype(np.float32) - level) / (white - level)
            planes.append(np.round(np.clip(plane, 0, 1) * _WHITE).astype(np.uint16))
        packed = np.stack(planes, axis=-1)
        return np.ascontiguousarray(np.rot90(packed, _TURNS.get(image.sizes.flip, 0)))


def _order(colours: str) -> list[tuple[int, int]]:
    """The places of R, G next to R, G next to B, and B in a pattern of two rows."""
    red, blue = divmod(colours.index("R"), 2), divmod(colours.index("B"), 2)
    return [red, (red[0], 1 - red[1]), (blue[0], 1 - blue[1]), blue]
