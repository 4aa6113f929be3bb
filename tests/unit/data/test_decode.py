"""One rule per pixel format, for files and for cells of data sets: full depth and upright, or rejected."""

import io

import numpy as np
import pytest
import tifffile
from image_files import REASONS, make_unusable, photo, save, save_deep_png
from PIL import Image

from accel_restore.data.decode import Cell, read_header, read_image
from accel_restore.data.image_formats import ImageError


def test_8_bit_pixels_are_read_exactly(tmp_path):
    colour, gray = photo(), photo()[..., 0]
    np.testing.assert_array_equal(read_image(save(tmp_path / "c.png", colour), 3), colour)
    np.testing.assert_array_equal(read_image(save(tmp_path / "g.png", gray), 1), gray[..., None])
    np.testing.assert_array_equal(read_image(tmp_path / "g.png", 3), np.repeat(gray[..., None], 3, 2))
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "c.png", 1)[..., 0], luma)


@pytest.mark.parametrize("kind", ["png", "lzw", "deflate", "none", "planes"])
def test_16_bit_colour_keeps_all_its_bits(kind, tmp_path):
    pixels, path = photo(dtype="uint16"), tmp_path / f"{kind}.tif"
    if kind == "png":
        save_deep_png(path, pixels)
    elif kind == "planes":
        tifffile.imwrite(path, np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", compression=None if kind == "none" else kind)
    header = read_header(path)
    assert (header.height, header.width, header.dtype, header.mode) == (20, 30, "uint16", "RGB")
    for source in (path, Cell("row 1", "1", path.read_bytes)):
        np.testing.assert_array_equal(read_image(source, 3, dtype="uint16"), pixels)
    expected = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(path, 1, dtype="uint16")[..., 0] - expected).max() < 1
    with pytest.raises(ImageError, match="has 16 bits, but 8 bits are needed"):  # never cut to 8 without a word
        read_image(path, 3, "uint8")


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif"])
def test_16_bit_gray_keeps_all_its_bits(kind, tmp_path):
    pixels, path = photo(dtype="uint16")[..., :1], tmp_path / f"g.{kind}"
    if kind == "png":
        save_deep_png(path, pixels)
    else:
        tifffile.imwrite(path, pixels[..., 0], compression="lzw", byteorder=">" if "big" in kind else "<")
    assert read_header(path).dtype == "uint16" and read_header(path).mode == "gray"
    np.testing.assert_array_equal(read_image(path, 1, dtype="uint16"), pixels)
    np.testing.assert_array_equal(read_image(path, 3, dtype="uint16"), np.repeat(pixels, 3, 2))


def test_8_bits_among_16_have_the_same_value_in_0_to_1(tmp_path):
    pixels = photo()
    deep = read_image(save(tmp_path / "a.png", pixels), 3, dtype="uint16")
    assert deep.dtype == np.uint16
    np.testing.assert_array_equal(deep.astype(np.float32) / 65535, pixels.astype(np.float32) / 255)


def test_palette_gives_colours_and_1_bit_black_and_white(tmp_path):
    image = Image.fromarray(photo()).quantize(16)
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png", 3), np.asarray(image.convert("RGB")))
    assert read_header(tmp_path / "p.png").mode == "palette"
    bits = photo()[..., 0] > 100
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", bits), 1)[..., 0], np.where(bits, 255, 0))


def test_opaque_alpha_channel_is_dropped(tmp_path):
    rgb = photo()
    opaque = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", opaque), 3), rgb)
    assert read_header(tmp_path / "a.png").mode == "RGB with alpha"
    deep = photo(dtype="uint16")
    path = save_deep_png(tmp_path / "d.png", np.dstack([deep, np.full(deep.shape[:2], 65535, np.uint16)]))
    np.testing.assert_array_equal(read_image(path, 3, dtype="uint16"), deep)


TURNED = {  # EXIF orientation: what stands upright
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, expected = save(tmp_path / "a.png", exif=exif), TURNED[orientation](photo())
    np.testing.assert_array_equal(read_image(path, 3), expected)
    header = read_header(path)
    assert (header.height, header.width) == expected.shape[:2] and header.orientation == orientation


@pytest.mark.parametrize("pixels", [photo(), photo(dtype="uint16"), photo(dtype="uint16")[..., :1]],
                         ids=["8 bits", "16 bits", "16 bits, gray"])  # fmt: skip
@pytest.mark.parametrize("orientation", TURNED)
def test_the_orientation_of_a_tiff_is_applied_once(orientation, pixels, tmp_path):
    path, expected = tmp_path / "a.tif", TURNED[orientation](pixels)
    colour = {"photometric": "rgb"} if pixels.shape[2] == 3 else {}
    tifffile.imwrite(path, pixels.squeeze(), extratags=[(0x0112, "H", 1, orientation, True)], **colour)
    np.testing.assert_array_equal(read_image(path, pixels.shape[2], dtype=pixels.dtype), expected)
    assert (read_header(path).height, read_header(path).width) == expected.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9])
def test_invalid_exif_orientation_is_ignored(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", exif=exif)
    assert (read_header(path).height, read_header(path).orientation) == (20, 1)
    np.testing.assert_array_equal(read_image(path, 3), photo())


@pytest.mark.parametrize("kind", REASONS)
def test_unusable_image_is_rejected_with_its_reason(kind, tmp_path):
    path = make_unusable(kind, tmp_path / "bad.png")
    for channels in (1, 3):
        with pytest.raises(ImageError, match=REASONS[kind]):
            read_image(path, channels, dtype="uint16")
    with pytest.raises(ImageError, match=REASONS[kind]):  # nor as a cell of a data set
        read_image(Cell("row 1", "1", path.read_bytes), 3, dtype="uint16")


def test_decompression_bombs_are_rejected_by_their_headers(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", photo(40, 50))
    refused = r"more than {} pixels; .* raise data\.max_image_pixels"
    with pytest.raises(ImageError, match=refused.format("1,999")):
        read_header(path, max_pixels=1999)
    assert read_image(path, 3, max_pixels=2000).shape == (40, 50, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit is raised where the user asks for more
    assert read_image(path, 3, max_pixels=2000).shape == (40, 50, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=refused.format("100")):
        read_header(path, max_pixels=100)


@pytest.mark.parametrize("width", [16, 160, 272, 5])
def test_8_bit_formats_are_never_read_as_16_bits(width, tmp_path):
    """The decoder arguments of some formats hold a number of bytes, which can contain 16."""
    for suffix in ("bmp", "png", "ppm", "tif", "jpg", "webp"):
        for pixels in (photo(20, width), photo(20, width)[..., 0]):
            assert read_header(save(tmp_path / f"a.{suffix}", pixels)).dtype == "uint8"


def test_format_is_detected_by_content(tmp_path):
    path = save(tmp_path / "really_a.png", format="JPEG")
    assert read_header(path).format == "JPEG" and read_image(path, 3).shape == (20, 30, 3)


def test_cells_hold_encoded_files_or_pixels(tmp_path):
    pixels = photo()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    for content in (stream.getvalue(), pixels):
        cell = Cell("row 0", "0", lambda content=content: content)
        np.testing.assert_array_equal(read_image(cell, 3), pixels)
        assert read_header(cell).height == 20
    assert read_image(Cell("row 0", "0", lambda: pixels[..., 0]), 1).shape == (20, 30, 1)
    for wrong, reason in (
        (pixels.astype(np.int32), "int32 values; convert it to uint8, uint16 or float32"),
        (pixels.astype(np.float64), "float64 values; convert it to float32"), (pixels[:0], r"shape \(0, 30, 3\)"),
        (pixels[None], r"shape \(1, 20, 30, 3\)"), (pixels[..., :2], "has 2 channels, but 3 are needed"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=reason):
            read_image(Cell("row 0", "0", lambda wrong=wrong: wrong), 3)


def test_signed_values_of_jpeg2000_are_refused():
    stream = io.BytesIO()
    Image.fromarray(photo(64, 64)).save(stream, "JPEG2000")
    data = bytearray(stream.getvalue())
    place = data.index(b"\xff\x4f\xff\x51") + 42  # the depth of the first component
    assert data[place] == 7
    data[place] |= 0x80
    assert read_image(Cell("row", "1", stream.getvalue), 3).shape == (64, 64, 3)
    with pytest.raises(ImageError, match="signed values"):
        read_header(Cell("row", "1", lambda: bytes(data)))


def test_a_link_that_leads_nowhere_is_named_as_one(tmp_path):
    for target in ("nowhere/b.png", "a.png"):  # the second leads to itself
        link = tmp_path / "a.png"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(ImageError, match=r"is a link to nowhere/b\.png, which|symbolic links"):
            read_header(link)
