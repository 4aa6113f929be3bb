"""One function decides the orientation: header and pixels agree, wherever and in whichever format it is stored."""

import io
import zlib

import numpy as np
import pytest
import tifffile
from image_files import photo
from PIL import Image

from accel_restore.data.decode import Cell, read_header, read_image
from accel_restore.data.image_formats import ImageError

PIXELS = photo(16, 24)
TURNED = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90,
}  # fmt: skip


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def xmp_of(orientation: int, form: str = "attribute") -> bytes:
    value = {
        "attribute": f'<rdf:Description tiff:Orientation="{orientation}"/>',
        "apostrophes": f"<rdf:Description tiff:Orientation = '{orientation}'/>",
        "element": f"<rdf:Description><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>",
    }[form]
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{value}</rdf:RDF></x:xmpmeta>'.encode()


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def saved(format: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, format, **options)
    return stream.getvalue()


def raw_profile(name: str, content: bytes) -> bytes:
    """As ImageMagick writes it."""
    digits = content.hex()
    lines = "\n".join(digits[place : place + 72] for place in range(0, len(digits), 72))
    return f"\n{name}\n{len(content):8}\n{lines}\n".encode()


PNG_CHUNKS = {  # orientation → a chunk that names it
    "eXIf": lambda value: chunk(b"eXIf", exif_of(value)[6:]),
    "XMP": lambda value: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_of(value)),
    "XMP, element": lambda value: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_of(value, "element")),
    "XMP, apostrophes": lambda value: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_of(value, "apostrophes")),
    "XMP, compressed": lambda value: chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0XMP\0" + zlib.compress(xmp_of(value))),
    "raw EXIF": lambda value: chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile("exif", exif_of(value)))
    ),
    "raw EXIF, plain": lambda value: chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile("exif", exif_of(value))),
    "raw APP1": lambda value: chunk(
        b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(raw_profile("APP1", exif_of(value)))
    ),
    "raw APP1 with XMP": lambda value: chunk(
        b"tEXt", b"Raw profile type APP1\0" + raw_profile("APP1", b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(value))
    ),
    "raw XMP": lambda value: chunk(b"tEXt", b"Raw profile type xmp\0" + raw_profile("xmp", xmp_of(value))),
}


def png(*chunks: bytes, behind: bool = False) -> bytes:
    """A PNG with these chunks in front of the pixels or behind them."""
    data = saved("PNG")
    place = len(data) - 12 if behind else 33
    return data[:place] + b"".join(chunks) + data[place:]


def assert_upright(data: bytes, orientation: int, exact: bool = True) -> None:
    cell = Cell("row 1", "1", lambda: data)
    header, pixels = read_header(cell), read_image(cell, 3)
    assert header.orientation == orientation
    assert (header.height, header.width) == pixels.shape[:2]
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) if not exact else PIXELS
    np.testing.assert_array_equal(pixels, TURNED[orientation](plain))


@pytest.mark.parametrize("behind", [False, True], ids=["in front", "behind"])
@pytest.mark.parametrize("kind", PNG_CHUNKS)
def test_orientation_of_a_png_is_found_in_every_chunk(kind, behind):
    for orientation in (3, 6, 8):
        assert_upright(png(PNG_CHUNKS[kind](orientation), behind=behind), orientation)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_exif_comes_before_xmp_and_xmp_counts_without_it(format):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(format, {})
    xmp = {"xmp": xmp_of(6)} if format != "PNG" else {}
    both, without = saved(format, exif=exif_of(8), **xmp, **options), saved(format, **xmp, **options)
    if format == "PNG":
        both, without = png(PNG_CHUNKS["XMP"](6), PNG_CHUNKS["eXIf"](8)), png(PNG_CHUNKS["XMP"](6))
    assert_upright(both, 8, exact=format != "JPEG")
    assert_upright(without, 6, exact=format != "JPEG")


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_exif_orientation_of_other_formats_is_applied(format, orientation):
    options = {"WEBP": {"lossless": True}}.get(format, {})
    assert_upright(saved(format, exif=exif_of(orientation), **options), orientation, exact=format != "JPEG")


def test_orientation_of_a_tiff_is_its_tag_or_its_xmp():
    for tags, expected in {
        ((700, 1, 0, xmp_of(6), True),): 6,
        ((274, 3, 1, 8, True),): 8,
        ((274, 3, 1, 8, True), (700, 1, 0, xmp_of(6), True)): 8,
    }.items():  # fmt: skip
        stream = io.BytesIO()
        tags = [(tag, kind, len(value) if kind == 1 else count, value, once) for tag, kind, count, value, once in tags]
        tifffile.imwrite(stream, PIXELS, photometric="rgb", extratags=tags)
        assert_upright(stream.getvalue(), expected)


def test_header_of_a_png_reads_no_pixels_to_find_what_is_behind_them(tmp_path):
    """Pillow would decode the whole file."""
    path = tmp_path / "a.png"
    data = bytearray(png(PNG_CHUNKS["eXIf"](6), behind=True))
    place = data.index(b"IDAT") + 8
    data[place : place + 20] = bytes(20)
    path.write_bytes(data)
    assert read_header(path).orientation == 6
    with pytest.raises(ImageError, match="checksum"):
        read_image(path, 3)
    path.write_bytes(data[: len(data) // 2])
    assert read_header(path).height == 16
    with pytest.raises(ImageError, match="ends before its last chunk"):
        read_image(path, 3)


def test_a_damaged_or_invalid_orientation_is_upright():
    for broken in (b"II*\0", b"nonsense", bytes(40)):
        assert_upright(png(chunk(b"eXIf", broken)), 1)
        assert_upright(png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\n" + broken)), 1)
    for value in (0, 9, 700):
        assert_upright(png(PNG_CHUNKS["eXIf"](value), PNG_CHUNKS["XMP"](6)), 1)
        assert_upright(png(PNG_CHUNKS["XMP"](value)), 1)
    wrong = bytearray(png(PNG_CHUNKS["XMP"](6)))
    wrong[wrong.index(b"Orientation=") + 13] ^= 1  # the checksum shows it
    with pytest.raises(ImageError, match="checksum"):
        read_header(Cell("row", "1", lambda: bytes(wrong)))


def test_texts_and_profiles_of_megabytes_are_read(tmp_path):
    """Pillow refuses texts of more than 1 MB; here the limit is 64 MB once unpacked."""
    noise = np.random.default_rng(0).bytes(2_000_000)
    for extra in (
        chunk(b"tEXt", b"Comment\0" + noise.hex().encode()),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(noise.hex().encode())),
        chunk(b"iTXt", b"Comment\0\0\0\0\0" + noise.hex().encode()),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(noise.hex().encode())),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(noise)),
        b"".join(chunk(b"tEXt", b"Comment%d\0" % number + b"x" * 900_000) for number in range(80)),
    ):
        assert_upright(png(extra, PNG_CHUNKS["eXIf"](6)), 6)
        assert_upright(png(extra, PNG_CHUNKS["eXIf"](6), behind=True), 6)
    bomb = zlib.compress(bytes(2**27))
    for kind in (b"zTXt", b"iCCP"):
        with pytest.raises(ImageError, match="more than 67,108,864 bytes"):
            read_header(Cell("row", "1", lambda kind=kind: png(chunk(kind, b"a\0\0" + bomb))))
