"""Raw files of cameras: packed to R, G, G, B of half the size, whatever the pattern and the orientation."""

import numpy as np
import pytest
from image_files import photo, save
from pixel_kinds import write_dng

from accel_restore.data.decode import Cell, read_header, read_image
from accel_restore.data.file_search import search_images
from accel_restore.data.image_formats import ImageError

pytest.importorskip("rawpy")
BLACK, WHITE = 512, 16383
PATTERNS = {"RGGB": [0, 1, 1, 2], "BGGR": [2, 1, 1, 0], "GRBG": [1, 0, 2, 1], "GBRG": [1, 2, 0, 1]}


def mosaic(pattern: str, planes: np.ndarray) -> np.ndarray:
    """Planes (H, W, 4) of R, the green next to R, the green next to B, and B as a mosaic (2 H, 2 W)."""
    made = np.empty((2 * planes.shape[0], 2 * planes.shape[1]), np.uint16)
    red_row = pattern.index("R") // 2
    for place, colour in enumerate(pattern):
        row, column = divmod(place, 2)
        number = {"R": 0, "B": 3}.get(colour, 1 if row == red_row else 2)
        made[row::2, column::2] = planes[..., number]
    return made


def levels(height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(BLACK, WHITE, (height, width, 4), np.uint16, endpoint=True)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_planes_are_in_the_order_of_colours_and_black_is_0(pattern, tmp_path):
    planes = levels()
    planes[0, 0], planes[0, 1], planes[0, 2] = BLACK, WHITE, BLACK - 100  # below black is noise
    path = write_dng(tmp_path / "a.dng", mosaic(pattern, planes), pattern=bytes(PATTERNS[pattern]))
    header = read_header(path)
    assert (header.height, header.width, header.depth, header.mode) == (24, 32, "16-bit", "Bayer, 4 channels")
    want = (planes.astype(float) - BLACK).clip(0) / (WHITE - BLACK) * 65535
    for source in (path, Cell("row", "1", path.read_bytes)):
        np.testing.assert_allclose(read_image(source, 4), want, atol=0.51)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_raw_files_are_upright(orientation, turns, tmp_path):
    upright, turned = (
        read_image(write_dng(tmp_path / f"{number}.dng", mosaic("RGGB", levels()), number), 4)
        for number in (1, orientation)
    )
    header = read_header(tmp_path / f"{orientation}.dng")
    assert (header.height, header.width) == turned.shape[:2]
    np.testing.assert_array_equal(turned, np.rot90(upright, turns))


def test_other_channels_and_damaged_files_are_refused(tmp_path):
    path = write_dng(tmp_path / "a.dng", mosaic("RGGB", levels()))
    with pytest.raises(ImageError, match="has 4 channels, but 3 are needed"):
        read_image(path, 3)
    with pytest.raises(ImageError, match="more than 100 pixels"):
        read_image(path, 4, max_pixels=100)
    (tmp_path / "b.dng").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="damaged"):
        read_image(tmp_path / "b.dng", 4)
    (tmp_path / "c.nef").write_bytes(b"no image" * 99)
    with pytest.raises(ImageError, match="LibRaw does not know"):
        read_header(tmp_path / "c.nef")


def test_raw_files_next_to_developed_ones_are_left_out(tmp_path):
    write_dng(tmp_path / "a.dng", mosaic("RGGB", levels()))
    assert search_images("*", tmp_path).names == ["a.dng"]
    save(tmp_path / "a.png", photo())
    search = search_images("*", tmp_path)
    assert search.names == ["a.png"] and search.left_out == "1 .dng"
