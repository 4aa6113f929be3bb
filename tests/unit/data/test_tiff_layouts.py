"""Every layout of a TIFF has a rule: its values are read exactly, or it is refused with what it is."""

import importlib.util
import io
import itertools

import numpy as np
import pytest
import tifffile
from image_files import photo
from PIL import Image

from accel_restore.data.decode import Cell, read_header, read_image
from accel_restore.data.image_formats import ImageError

COMPRESSIONS = [None, "lzw", "deflate", "packbits", "zstd", "lzma"]


def tiff(pixels: np.ndarray, **options) -> Cell:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    data = stream.getvalue()
    return Cell("row 1", "1", lambda: data)


def random_values(shape: tuple, dtype: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    kind = np.dtype(dtype).kind
    if kind in "ui":
        return generator.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return generator.random(shape).astype(dtype)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_unsigned_values_are_read_from_every_layout(dtype, planar, tile, compression):
    for height, width in [(20, 37), (3, 3), (1, 1), (3, 4), (4, 3)]:
        for byteorder in "<>":
            predictor = compression in ("lzw", "deflate", "zstd")
            options = {"tile": tile, "compression": compression, "byteorder": byteorder, "predictor": predictor}
            pixels = random_values((height, width, 3), dtype)
            stored = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
            source = tiff(stored, photometric="rgb", planarconfig=planar, **options)
            header = read_header(source)
            assert (header.height, header.width, header.mode) == (height, width, "RGB")
            np.testing.assert_array_equal(read_image(source, 3, header.dtype), pixels)
            gray = tiff(pixels[..., 0], photometric="minisblack", **options)
            np.testing.assert_array_equal(read_image(gray, 1, header.dtype)[..., 0], pixels[..., 0])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("colours", [1, 3])
def test_extra_channels_are_dropped_only_if_they_say_nothing(colours, dtype, planar):
    top = np.iinfo(dtype).max
    rule = {  # (meaning, content) → whether the image is read
        ("unassalpha", "opaque"): True, ("unassalpha", "varying"): False, ("unassalpha", "zero"): False,
        ("assocalpha", "opaque"): True, ("assocalpha", "varying"): False,
        ("unspecified", "opaque"): True, ("unspecified", "zero"): True, ("unspecified", "varying"): False,
    }  # fmt: skip
    for height, width in [(20, 30), (4, 4), (2, 2)]:
        pixels = random_values((height, width, colours), dtype)
        extras = {"opaque": np.full_like(pixels[..., :1], top), "zero": np.zeros_like(pixels[..., :1]),
                  "varying": random_values((height, width, 1), dtype) | 1}  # fmt: skip
        extras["varying"].flat[0] = 0
        for (meaning, content), is_read in rule.items():
            stored = np.concatenate([pixels, extras[content]], axis=-1)
            stored = np.moveaxis(stored, -1, 0) if planar == "separate" else stored
            source = tiff(stored, photometric="rgb" if colours == 3 else "minisblack", planarconfig=planar,
                          extrasamples=[meaning])  # fmt: skip
            if is_read:
                np.testing.assert_array_equal(read_image(source, colours, pixels.dtype), pixels)
            else:
                with pytest.raises(ImageError, match=r"transparent|extra channel"):
                    read_image(source, colours, pixels.dtype)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_floats_are_read_from_every_layout(dtype, tile, compression):
    predictors = (1, 3) if compression in ("lzw", "deflate", "zstd") else (1,)
    for channels, planar, byteorder in itertools.product((1, 3, 5), ("contig", "separate"), "<>"):
        for height, width, predictor in [(20, 37, predictors[-1]), (4, 3, 1), (3, 4, predictors[-1])]:
            pixels = random_values((height, width, channels), dtype) * 4 - 1
            options = {"tile": tile, "compression": compression, "byteorder": byteorder, "predictor": predictor}
            if channels == 1:
                source = tiff(pixels[..., 0], photometric="minisblack", **options)
            else:
                stored = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
                colour = "rgb" if channels == 3 else "minisblack"
                source = tiff(stored, photometric=colour, planarconfig=planar, **options)
            header = read_header(source)
            assert (header.height, header.width, header.dtype) == (height, width, dtype)
            np.testing.assert_array_equal(read_image(source, channels), pixels)


SIGNED_AND_OTHER = ["int8", "int16", "int32", "uint32", "float64", "complex64", "int64", "uint64"]


@pytest.mark.parametrize("dtype", SIGNED_AND_OTHER)
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_other_values_are_refused_with_what_they_are(planar, colours, dtype):
    pixels = random_values((8, 8, colours), dtype).squeeze()
    pixels = np.moveaxis(pixels, -1, 0) if planar == "separate" and colours == 3 else pixels
    options = {"photometric": "rgb", "planarconfig": planar} if colours == 3 else {"photometric": "minisblack"}
    kind = {"i": "signed", "u": "", "f": "float", "c": "unusual"}[np.dtype(dtype).kind]
    bits = 8 * np.dtype(dtype).itemsize
    with pytest.raises(ImageError, match=rf"is a TIFF of {colours} channels? .* {kind} ?{bits}-bit values; convert it"):
        read_header(tiff(pixels, **options))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [2, 4, 5, 31])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_file_of_exactly_the_channels_is_taken_as_it_is(planar, channels, dtype, capfd):
    pixels = random_values((16, 16, channels), dtype)
    stored = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    extra = ["unspecified"] * (channels - 1)
    source = tiff(stored, photometric="minisblack", planarconfig=planar, extrasamples=extra)
    np.testing.assert_array_equal(read_image(source, channels), pixels)
    with pytest.raises(ImageError, match=rf"has {channels} channels, but 3 are needed|extra channel"):
        read_image(source, 3)
    with pytest.raises(ImageError, match=rf"has {channels} channels, but 7 are needed|extra channel"):
        read_image(source, 7)
    assert capfd.readouterr() == ("", "")


def test_a_channel_marked_as_alpha_is_no_fourth_channel():
    pixels = random_values((16, 16, 4), "float32")
    marked = {"photometric": "rgb", "extrasamples": ["unassalpha"]}  # as tifffile does unless it is told otherwise
    source = tiff(pixels, **marked)
    with pytest.raises(ImageError, match=r"whose channel 4 is marked as alpha.*photometric='minisblack'"):
        read_image(source, 4)
    with pytest.raises(ImageError, match="transparent"):
        read_image(source, 3)
    pixels[..., 3] = 1
    np.testing.assert_array_equal(read_image(tiff(pixels, **marked), 3), pixels[..., :3])


def test_fewer_bits_are_spread_over_8():
    for bits in (1, 2, 4):
        values = random_values((9, 13), "uint8") >> (8 - bits)
        white = tiff(values.astype(bool) if bits == 1 else values, bitspersample=bits, photometric="minisblack")
        np.testing.assert_array_equal(read_image(white, 1)[..., 0], values * (255 // (2**bits - 1)))
        black = tiff(values.astype(bool) if bits == 1 else values, bitspersample=bits, photometric="miniswhite")
        np.testing.assert_array_equal(read_image(black, 1)[..., 0], 255 - values * (255 // (2**bits - 1)))
        assert read_header(white).mode == ("black and white" if bits == 1 else "gray")


def test_white_as_zero_is_inverted_for_8_bits_and_refused_for_16():
    gray = photo()[..., 0]
    np.testing.assert_array_equal(read_image(tiff(gray, photometric="miniswhite"), 1)[..., 0], 255 - gray)
    with pytest.raises(ImageError, match="inverted gray"):
        read_image(tiff(gray.astype(np.uint16), photometric="miniswhite"), 1, "uint16")


def test_palette_gives_its_colours():
    indices = random_values((12, 12), "uint8")
    colours = random_values((3, 256), "uint16")
    source = tiff(indices, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read_image(source, 3), (colours >> 8).astype(np.uint8).T[indices])
    assert read_header(source).mode == "palette"


def test_a_colour_map_of_8_bits_is_read_as_such():
    indices, colours = random_values((12, 12), "uint8"), random_values((3, 256), "uint8")
    source = tiff(indices, photometric="palette", colormap=colours.astype(np.uint16))
    np.testing.assert_array_equal(read_image(source, 3), colours.T[indices])


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "jpeg", "raw", "tiff_lzw", "packbits"])
def test_files_of_other_writers_are_read_as_by_libtiff(compression):
    image = Image.fromarray(photo(40, 50)).convert("RGB" if compression == "jpeg" else "1")
    stream = io.BytesIO()
    image.save(stream, "tiff", compression=compression)
    source = Cell("row", "1", stream.getvalue)
    np.testing.assert_array_equal(read_image(source, 3), np.asarray(image_of(stream).convert("RGB")))


def image_of(stream: io.BytesIO) -> Image.Image:
    return Image.open(io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32)}, {"planarconfig": "separate"}], ids=str)
def test_jpeg_in_a_tiff_is_checked_like_a_jpeg(options):
    pixels = photo(64, 64)
    stored = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
    source = tiff(stored, photometric="rgb", compression="jpeg", **options)
    data = source.fetch()
    assert read_image(source, 3).shape == (64, 64, 3)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start, count = file.pages.first.dataoffsets[0], file.pages.first.databytecounts[0]
    broken = data[: start + count // 2] + bytes(count // 2 - 2) + data[start + 2 * (count // 2) - 2 :]
    with pytest.raises(ImageError, match="damaged"):
        read_image(Cell("row", "1", lambda: broken), 3)


def test_stacks_and_volumes_are_refused():
    pixels = random_values((3, 16, 16), "uint8")
    for options in ({}, {"imagej": True}, {"ome": True}, {"volumetric": True, "tile": (1, 16, 16)}):
        with pytest.raises(ImageError, match=r"contains 3 images|volume"):
            read_header(tiff(pixels, photometric="minisblack", **options))


def test_preview_of_a_raw_file_is_not_taken_for_the_picture():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(photo(8, 8), photometric="rgb", subfiletype=1, subifds=1)
        writer.write(random_values((64, 64), "uint16"), photometric="cfa", subfiletype=0)
    if importlib.util.find_spec("rawpy"):  # four channels of half the size
        header = read_header(Cell("row", "1", stream.getvalue))
        assert (header.format, header.height, header.width) == ("raw", 32, 32)
    else:
        with pytest.raises(ImageError, match="is a raw file"):
            read_header(Cell("row", "1", stream.getvalue))


def test_colours_without_one_way_to_rgb_are_refused():
    four, three = random_values((8, 8, 4), "uint8"), random_values((8, 8, 3), "uint8")
    with pytest.raises(ImageError, match="is CMYK"):
        read_header(tiff(four, photometric="separated"))
    for photometric in ("cielab", "icclab"):
        with pytest.raises(ImageError, match=f"of 3 channels .{photometric.upper()}. with 8-bit values"):
            read_header(tiff(three, photometric=photometric))


def test_cut_tiff_is_named_as_such():
    data = tiff(photo(), photometric="rgb").fetch()
    for length in (8, 12, 200, len(data) - 1):
        with pytest.raises(ImageError, match=r"damaged .*(cut|corrupt)"):
            read_image(Cell("row", "1", lambda length=length: data[:length]), 3)
    moved = data[:4] + len(data).to_bytes(4, "little") + data[8:]  # as in files whose directory is at the end
    with pytest.raises(ImageError, match="its directory is missing; is the file cut"):
        read_header(Cell("row", "1", lambda: moved))


def test_gray_with_alpha_in_jpeg_compression_is_named():
    stream = io.BytesIO()
    Image.fromarray(photo(40, 50)).convert("LA").save(stream, "TIFF", compression="jpeg")
    with pytest.raises(ImageError, match="gray with alpha in JPEG compression"):
        read_header(Cell("row 1", "1", stream.getvalue))
