"""One rule for each pixel format, the same for files and for cells of data sets: full depth, upright, or refused."""

import io
import re
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from accel_restore.data.decode import Cell, ImageError, read_header, read_image


def photo(height: int = 20, width: int = 30, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, 3), dtype, endpoint=True)


def save(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo() if pixels is None else pixels).save(path, **options)
    return path


def save_deep_png(path: Path, pixels: np.ndarray) -> Path:
    """A 16-bit PNG of (H, W, 1 to 4): gray, gray and alpha, RGB, or RGB and alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colour_type, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def test_8_bit_pixels_are_those_of_the_file(tmp_path):
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
    assert (header.height, header.width, header.bits, header.mode) == (20, 30, 16, "RGB")
    for source in (path, Cell("row 1", "1", path.read_bytes)):
        np.testing.assert_array_equal(read_image(source, 3, bits=16), pixels)
    expected = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(path, 1, bits=16)[..., 0] - expected).max() < 1
    with pytest.raises(ImageError, match="16 bits"):  # never cut to 8 without a word
        read_image(path, 3)


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif"])
def test_16_bit_gray_keeps_all_its_bits(kind, tmp_path):
    pixels, path = photo(dtype="uint16")[..., :1], tmp_path / f"g.{kind}"
    if kind == "png":
        save_deep_png(path, pixels)
    else:
        tifffile.imwrite(path, pixels[..., 0], compression="lzw", byteorder=">" if "big" in kind else "<")
    assert read_header(path).bits == 16 and read_header(path).mode == "gray"
    np.testing.assert_array_equal(read_image(path, 1, bits=16), pixels)
    np.testing.assert_array_equal(read_image(path, 3, bits=16), np.repeat(pixels, 3, 2))


def test_8_bits_among_16_have_the_same_value_in_0_to_1(tmp_path):
    pixels = photo()
    deep = read_image(save(tmp_path / "a.png", pixels), 3, bits=16)
    assert deep.dtype == np.uint16
    np.testing.assert_array_equal(deep.astype(np.float32) / 65535, pixels.astype(np.float32) / 255)


def test_a_palette_stands_for_its_colours_and_1_bit_for_black_and_white(tmp_path):
    image = Image.fromarray(photo()).quantize(16)
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png", 3), np.asarray(image.convert("RGB")))
    assert read_header(tmp_path / "p.png").mode == "palette"
    bits = photo()[..., 0] > 100
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", bits), 1)[..., 0], np.where(bits, 255, 0))


def test_an_opaque_alpha_channel_is_left_out(tmp_path):
    rgb = photo()
    opaque = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", opaque), 3), rgb)
    assert read_header(tmp_path / "a.png").mode == "RGB with alpha"
    deep = photo(dtype="uint16")
    path = save_deep_png(tmp_path / "d.png", np.dstack([deep, np.full(deep.shape[:2], 65535, np.uint16)]))
    np.testing.assert_array_equal(read_image(path, 3, bits=16), deep)


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
    np.testing.assert_array_equal(read_image(path, pixels.shape[2], bits=8 * pixels.itemsize), expected)
    assert (read_header(path).height, read_header(path).width) == expected.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_exif_orientation_that_does_not_exist_is_none(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", exif=exif)
    assert (read_header(path).height, read_header(path).orientation) == (20, 1)
    np.testing.assert_array_equal(read_image(path, 3), photo())


def twelve_bit_tiff(pixels: np.ndarray) -> bytes:
    """A gray TIFF of packed values of 12 bits."""
    height, width = pixels.shape
    bits = (pixels[..., None] >> np.arange(11, -1, -1)) & 1
    data = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    ifd = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd


def make_unusable(kind: str, path: Path) -> Path:
    rgb = photo()
    if kind == "transparent":
        save(path, np.dstack([rgb, rgb[..., 0]]))
    elif kind == "transparent, 16 bits":
        save_deep_png(path, np.dstack([photo(dtype="uint16")] * 2)[..., :4])
    elif kind == "transparent colour":
        Image.fromarray(rgb).quantize(16).save(path, transparency=3)
    elif kind == "CMYK":
        Image.fromarray(rgb).convert("CMYK").save(path, format="tiff")
    elif kind == "float":
        tifffile.imwrite(path, rgb[..., 0].astype(np.float32))
    elif kind == "two pages":
        tifffile.imwrite(path, np.stack([rgb, rgb]), photometric="rgb")
    elif kind == "two pages, 16 bits":
        tifffile.imwrite(path, np.stack([photo(dtype="uint16")] * 2), photometric="rgb")
    elif kind == "signed":
        tifffile.imwrite(path, rgb[..., 0].astype(np.int16) - 100)
    elif kind == "inverted":
        tifffile.imwrite(path, photo(dtype="uint16")[..., 0], photometric="miniswhite")
    elif kind == "16-bit PPM":
        path.write_bytes(b"P6 30 20 65535\n" + photo(dtype="uint16").tobytes())
    elif kind == "12-bit TIFF":
        path.write_bytes(twelve_bit_tiff(photo(dtype="uint16")[..., 0] >> 4))
    elif kind in ("deep JPEG 2000", "deep AVIF"):  # Pillow gives 8 bits of both
        deep, name = photo(64, 64, dtype="uint16"), kind.split(" ", 1)[1]
        encode = {"JPEG 2000": imagecodecs.jpeg2k_encode, "AVIF": imagecodecs.avif_encode}[name]
        path.write_bytes(encode(deep) if name == "JPEG 2000" else encode(deep >> 6, bitspersample=10))
    elif kind == "cut EXIF":
        Image.fromarray(rgb).save(path, exif=b"II*\0")
    elif kind == "truncated, 16 bits":
        path.write_bytes(save_deep_png(path, photo(dtype="uint16")).read_bytes()[:-500])
    elif kind == "truncated":
        path.write_bytes(save(path).read_bytes()[:-500])
    else:
        path.write_bytes(
            {"empty": b"", "text": b"this is no image\n" * 9, "header": save(path).read_bytes()[:30]}[kind]
        )
    return path


REASONS = {
    "transparent": "transparent", "transparent, 16 bits": "transparent", "transparent colour": "transparent",
    "two pages": "holds 2 images", "two pages, 16 bits": "holds 2 images", "signed": "signed, inverted|format",
    "inverted": "signed, inverted", "CMYK": "CMYK", "float": "format F", "16-bit PPM": "16-bit PPM",
    "truncated": "damaged", "truncated, 16 bits": "damaged", "empty": "empty", "text": "is no image",
    "header": "is no image|cannot be read", "12-bit TIFF": "12-bit values", "deep JPEG 2000": "more than 8 bits",
    "deep AVIF": "more than 8 bits|is no image", "cut EXIF": "damaged",
}  # fmt: skip


@pytest.mark.parametrize("kind", REASONS)
def test_an_unusable_image_is_refused_with_its_reason(kind, tmp_path):
    path = make_unusable(kind, tmp_path / "bad.png")
    for channels in (1, 3):
        with pytest.raises(ImageError, match=REASONS[kind]):
            read_image(path, channels, bits=16)
    with pytest.raises(ImageError, match=REASONS[kind]):  # nor as a cell of a data set
        read_image(Cell("row 1", "1", path.read_bytes), 3, bits=16)


def test_decompression_bombs_are_refused_by_their_headers(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", photo(40, 50))
    refused = r"more than {} pixels: .* raise data\.max_image_pixels"
    with pytest.raises(ImageError, match=refused.format("1,999")):
        read_header(path, max_pixels=1999)
    assert read_image(path, 3, max_pixels=2000).shape == (40, 50, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit is raised where the user asks for more
    assert read_image(path, 3, max_pixels=2000).shape == (40, 50, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=refused.format("100")):
        read_header(path, max_pixels=100)


@pytest.mark.parametrize("width", [16, 160, 272, 5])
def test_formats_of_8_bits_are_never_taken_for_16(width, tmp_path):
    """Decoders of some formats are told a number of bytes, in which a 16 may stand."""
    for suffix in ("bmp", "png", "ppm", "tif", "jpg", "webp"):
        for pixels in (photo(20, width), photo(20, width)[..., 0]):
            assert read_header(save(tmp_path / f"a.{suffix}", pixels)).bits == 8


def test_the_content_decides_not_the_name(tmp_path):
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
    for wrong in (pixels.astype(np.int32), pixels[..., :2], pixels[:0], pixels[None]):
        with pytest.raises(ImageError, match=re.escape(str(wrong.dtype))):
            read_image(Cell("row 0", "0", lambda wrong=wrong: wrong), 3)
