"""Damaged image files are whole or refused: never other pixels than those that were stored, never a traceback."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from damaged_images import CHECKED, DAMAGE, ENCODERS, picture
from image_files import photo
from PIL import Image

from accel_restore.data.decode import Cell, read_header, read_image
from accel_restore.data.image_formats import ImageError

PIXELS = picture(96)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoded") / "deep.png"
    return {name: encode(PIXELS, path) for name, encode in ENCODERS.items()}


def cell(data: bytes) -> Cell:
    return Cell("row 1", "1", lambda: data)


def read(data: bytes) -> np.ndarray | None:
    """The pixels, or None if they are refused in one line; header and pixels agree."""
    try:
        pixels = read_image(cell(data), 3, "uint16")
    except ImageError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return None
    header = read_header(cell(data))
    assert (header.height, header.width) == pixels.shape[:2]
    return pixels


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ENCODERS)
def test_damaged_file_is_refused_or_has_the_size_of_the_picture(name, damage, encoded, capfd):
    data, sound = encoded[name], read(encoded[name])
    for seed in range(12):
        pixels = read(DAMAGE[damage](data, np.random.default_rng([seed, 1])))
        if pixels is not None and (damage == "cut" or name in CHECKED):
            np.testing.assert_array_equal(pixels, sound)
    assert capfd.readouterr().err == ""  # nor do the libraries write to the terminal


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png(raw: bytes, *more: bytes, size=(30, 20), end: bytes = chunk(b"IEND", b"")) -> bytes:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", zlib.compress(raw, 1)) + end


ROWS = b"".join(b"\0" + row.tobytes() for row in photo())


def test_every_flipped_bit_of_a_png_is_refused():
    """Drawings compress well, so that a flipped bit often leaves a valid stream."""
    drawing = np.zeros((64, 64, 3), np.uint8)
    drawing[8:40, 8:40] = 200
    stream = io.BytesIO()
    Image.fromarray(drawing).save(stream, "png")
    data = stream.getvalue()
    for place in range(8, len(data)):
        for bit in range(8):
            assert read(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]) is None


WRONG_PNGS = {
    "a checksum of the pixels": png(ROWS)[:-16] + b"abcd" + png(ROWS)[-12:],
    "a checksum of a text": png(ROWS, chunk(b"tEXt", b"a\0b")[:-1] + b"\0"),
    "no end": png(ROWS, end=b""),
    "one byte less": png(ROWS[:-1]),
    "half of the rows": png(ROWS[: len(ROWS) // 2]),
    "one byte more": png(ROWS + b"\0"),
    "fewer rows in the header": png(ROWS, size=(30, 19)),
    "more rows in the header": png(ROWS, size=(30, 21)),
    "an unknown critical chunk": png(ROWS, chunk(b"CgBI", b"\0\0\0\0")),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_PNGS)
def test_png_that_contradicts_itself_is_refused(kind):
    assert read(png(ROWS)) is not None
    assert read(WRONG_PNGS[kind]) is None


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("interlaced", [0, 1])
def test_png_of_every_depth_and_size_is_read_as_by_pillow(depth, interlaced, capfd):
    random = np.random.default_rng(0)
    for width, height in [(1, 1), (2, 3), (5, 5), (8, 8), (9, 17), (33, 12)]:
        rows = []
        for top, left, down, right in PASSES if interlaced else [(0, 0, 1, 1)]:
            lines, columns = len(range(top, height, down)), len(range(left, width, right))
            rows += [b"\0" + random.bytes((columns * depth + 7) // 8) for _ in range(lines if columns else 0)]
        header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, interlaced)
        idat = zlib.compress(b"".join(rows))
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        np.testing.assert_array_equal(read_image(cell(data), 1)[..., 0], expected)
    assert capfd.readouterr().err == ""


def png_of(colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", 2, 2, 8, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_libpng_says_nothing_of_a_transparent_gray_out_of_range(capfd):
    data = png_of(0, b"\0\1\2\0\3\4", (b"tRNS", b"\1\7"))
    assert read_image(cell(data), 1)[..., 0].tolist() == [[1, 2], [3, 4]]
    assert capfd.readouterr().err == ""


def test_a_palette_without_the_colour_of_a_pixel_is_damaged_and_surplus_rows_are_named():
    palette = (b"PLTE", bytes(range(6)))
    assert read_image(cell(png_of(3, b"\0\0\1\0\1\0", palette)), 3)[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ImageError, match="colour 2 of a palette of 2"):
        read_image(cell(png_of(3, b"\0\0\1\0\2\0", palette)), 3)
    with pytest.raises(ImageError, match="more pixels than its header"):
        read_image(cell(png_of(0, bytes(7))), 1)


PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
JPEGS = {
    "baseline": {}, "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 4}, "RGB": {"keep_rgb": True}, "optimized": {"optimize": True},
}  # fmt: skip


def jpeg(kind: str, pixels: np.ndarray = PIXELS) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=90, **JPEGS[kind])
    return stream.getvalue()


@pytest.mark.parametrize("kind", JPEGS)
def test_sound_jpeg_has_the_pixels_of_pillow(kind):
    for pixels in (PIXELS, PIXELS[..., 0], PIXELS[:33, :7]):
        if pixels.ndim == 3 or kind != "RGB":
            data = jpeg(kind, pixels)
            expected = np.asarray(Image.open(io.BytesIO(data)))
            np.testing.assert_array_equal(read_image(cell(data), 3 if pixels.ndim == 3 else 1).squeeze(), expected)


HARMLESS = {
    "no end marker": lambda data: data[:-2],
    "zeros before the end marker": lambda data: data[:-2] + bytes(37) + data[-2:],
    "zeros in place of the end marker": lambda data: data[:-2] + bytes(512),
    "fill bytes before the end marker": lambda data: data[:-2] + b"\xff\xff\xff" + data[-2:],
    "data behind the end marker": lambda data: data + b"\xff\xd8\xff trailer" * 99,
    "zeros between segments": lambda data: data[: 4 + data[5]] + bytes(2) + data[4 + data[5] :],
    "another JFIF version": lambda data: data.replace(b"JFIF\0\1", b"JFIF\0\7"),
    "a comment": lambda data: data[:2] + b"\xff\xfe\0\4ab" + data[2:],
}


@pytest.mark.parametrize("change", HARMLESS)
@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_whose_pixels_are_whole_is_read(kind, change):
    data = jpeg(kind)
    np.testing.assert_array_equal(read(HARMLESS[change](data)), read(data))


@pytest.mark.parametrize("kind", JPEGS)
def test_cut_jpeg_is_refused_also_with_an_end_marker(kind):
    data = jpeg(kind)
    for length in np.linspace(3, len(data) - 3, 60).astype(int):
        for end in (b"", b"\xff\xd9", bytes(200), bytes(200) + b"\xff\xd9"):
            assert read(data[:length] + end) is None


def test_progressive_jpeg_that_is_cut_between_scans_is_refused():
    data = jpeg("progressive")
    places = [place for place in range(len(data)) if data[place : place + 2] in (b"\xff\xda", b"\xff\xc4")]
    assert len(places) > 10
    for place in places:
        assert read(data[:place] + b"\xff\xd9") is None
    assert simplejpeg.decode_jpeg(data[: places[-1]] + b"\xff\xd9").shape == PIXELS.shape  # libjpeg does not warn


@pytest.mark.parametrize("size", [64, 512, 4096])
@pytest.mark.parametrize("kind", ["baseline", "4:4:4", "4:2:2", "restart markers"])
def test_jpeg_with_a_hole_of_zeros_is_refused(kind, size):
    data = jpeg(kind, picture(256))
    start = data.index(b"\xff\xda") + 14
    for place in np.linspace(start, len(data) - 2 - size, 40).astype(int):
        assert read(data[:place] + bytes(size) + data[place + size :]) is None


def test_flat_jpeg_whose_data_are_zeros_is_read():
    """With tables of its own, a flat area may be coded as zeros."""
    flat = np.full((1024, 1024, 3), 255, np.uint8)
    flat[0, 0] = 0
    data = jpeg("optimized", flat)
    assert bytes(64) in data
    assert read(data) is not None


def test_cut_file_is_refused_in_every_format(encoded):
    for name, data in encoded.items():
        for length in range(len(data) - 40, len(data)):
            pixels = read(data[:length])
            assert pixels is None or np.array_equal(pixels, read(data)), (name, length)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits", "zstd", "lzma", "jpeg"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_tiff_without_a_strip_or_tile_is_refused(compression, tile):
    options = {"compression": compression, "tile": tile, "rowsperstrip": None if tile else 16}
    stream = io.BytesIO()
    tifffile.imwrite(stream, PIXELS, photometric="rgb", **options)
    data = stream.getvalue()
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        names = ("TileOffsets", "TileByteCounts") if tile else ("StripOffsets", "StripByteCounts")
        tags = [file.pages.first.tags[name] for name in names]
    assert read(data) is not None
    for tag in tags:
        width = {3: 2, 4: 4, 16: 8}[tag.dtype]
        entry = tag.valueoffset + width  # of the second strip or tile
        assert read(data[:entry] + bytes(width) + data[entry + width :]) is None
        assert read(data[:entry] + (len(data) - 1).to_bytes(width, "little") + data[entry + width :]) is None


def test_unreadable_and_foreign_files_are_named(tmp_path):
    for content, words in {
        b"": "is empty", b"<!DOCTYPE html>": "HTML", b"version https://git-lfs.github.com/spec/v1": "git lfs pull",
        b"8BPS\0\1": "Photoshop", b"\0\0\0\x18ftypheic\0\0\0\0": "HEIF", b"abc": "not a readable image",
    }.items():  # fmt: skip
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError, match=words):
            read_header(tmp_path / "a.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "missing.png", 3)


def test_sound_jpeg_of_another_kind_is_named():
    deep = photo(dtype="uint16")[..., 0] >> 4
    for data, words in {
        imagecodecs.jpeg_encode(deep, bitspersample=12): "is a JPEG of 1 channel with 12 bits",
        imagecodecs.ljpeg_encode(deep, bitspersample=12): "is a lossless JPEG of 1 channel with 12 bits",
    }.items():
        with pytest.raises(ImageError, match=words):
            read_header(cell(bytes(data)))


def test_first_image_of_a_camera_mpo_is_read():
    first, second, stream = Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1]), io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[second])
    data = stream.getvalue()
    np.testing.assert_array_equal(read_image(cell(data), 3), np.asarray(Image.open(io.BytesIO(data))))
    assert read_header(cell(data)).format == "MPO"
    assert read(data[: len(data) // 4]) is None


def test_a_gif_that_covers_only_a_part_of_its_canvas_is_refused(encoded):
    whole = encoded["GIF"]
    place = whole.rindex(b",\0\0\0\0" + struct.pack("<HH", 96, 96))  # the image descriptor
    assert read(whole) is not None
    for left, top in ((2, 0), (0, 3)):
        moved = whole[: place + 1] + struct.pack("<HH", left, top) + whole[place + 5 :]
        assert Image.open(io.BytesIO(moved)).size == (96 + left, 96 + top), "the control: Pillow enlarges the canvas"
        assert read(moved) is None
