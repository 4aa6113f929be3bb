"""Metadata of restored files: what describes the pixels is kept in every format, and what is not kept is named."""

import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
import tifffile
from camera_files import NOTE, PIXELS, RGB_PROFILE, XMP, camera_file, made_exif
from PIL import Image

from accel_restore.data.encode import encode, read_mark
from accel_restore.data.metadata import About, fitted, read_about

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")


def written(data: bytes, format: str, orientation: int = 6, scale: int = 1) -> tuple[bytes, About]:
    about = fitted(read_about(data, 3, orientation, scale), format)
    return encode(PIXELS, format, about, "the mark"), about


def exif_bytes(file: bytes) -> bytes:
    with Image.open(io.BytesIO(file)) as image:
        return image.info["exif"].removeprefix(b"Exif\0\0")


def dpi(file: bytes) -> tuple[float, float]:
    with Image.open(io.BytesIO(file)) as image:
        if image.format == "WEBP":
            exif = image.getexif()
            per_inch = 2.54 if exif[296] == 3 else 1
            return float(exif[282]) * per_inch, float(exif[283]) * per_inch
        return tuple(float(side) for side in image.info["dpi"])


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these chunks behind its header."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(png_chunk(*each) for each in chunks) + data[33:]


def chunks_of(file: bytes) -> dict[bytes, bytes]:
    found, at = {}, 8
    while at < len(file):
        length, name = struct.unpack_from(">I4s", file, at)
        body = file[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", file, at + 8 + length)[0] == zlib.crc32(name + body)
        found[name] = body
        at += 12 + length
    return found


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_what_describes_the_pixels_is_kept(source, target, order):
    first, about = written(camera_file(source, order), target)
    for file in (first, written(first, target, 1)[0]):  # restored again, from the written file
        with Image.open(io.BytesIO(file)) as image:
            image.load()
            kept = image.getexif()
            inner, interop, gps = (kept.get_ifd(group) for group in (0x8769, 0xA005, 0x8825))
            assert (kept[0x010F], kept[0x0112], kept[0x000B]) == ("A maker", 1, "the mark")
            assert (inner[0xA001], inner[0x9003], inner[0x829A]) == (0xFFFF, "2020:01:02 03:04:05", Fraction(1, 50))
            assert interop[1] == "R03" and gps[2] == (1, 2, 3)  # Adobe RGB without a profile
            assert (inner[0xA002], inner[0xA003], interop[0x1001]) == (40, 30, 40)  # as the new picture is
            assert 0x9214 not in inner and 0x0201 not in kept.get_ifd(1)
            assert (0x0100 in kept) == (target == "TIFF") and image.size == (40, 30)
            assert image.info["icc_profile"] == RGB_PROFILE
            xmp = image.tag_v2[700] if target == "TIFF" else image.info["xmp"]
        assert b"THUMBNAIL" not in file and b"SMALL" not in xmp and b"<dc:title>A title</dc:title>" in xmp
        assert b'tiff:Orientation="1" exif:PixelXDimension="40"' in xmp and b"<tiff:ImageWidth>40<" in xmp
    x, y = dpi(first)
    assert (round(x), round(y)) == (120, 240)  # turned, as the picture is
    assert about.left_out == (("EXIF's maker note (it cannot be moved)",) if source == "TIFF" else ())


@pytest.mark.parametrize("target", FORMATS)
def test_a_maker_note_keeps_its_place_as_it_may_refer_to_it(target):
    before = made_exif()
    file = written(camera_file("JPEG"), target)[0]
    after = file if target == "TIFF" else exif_bytes(file)
    assert after.index(NOTE) == before.index(NOTE)


def test_the_mark_is_read_from_every_format(tmp_path):
    for format in FORMATS:
        (tmp_path / format).write_bytes(encode(PIXELS, format, About(), "mark"))
        assert read_mark(tmp_path / format) == "mark"


COLOUR = {
    b"cICP": bytes([9, 16, 0, 1]), b"gAMA": struct.pack(">I", 100000), b"sRGB": b"\0", b"mDCV": bytes(24),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000), b"cLLI": bytes(8),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOUR)
def test_the_colour_chunks_of_a_png_are_kept_or_named(name):
    data = png((name, COLOUR[name]))
    file, about = written(data, "PNG", 1)
    assert chunks_of(file)[name] == COLOUR[name] and about.left_out == ()
    if name == b"gAMA":
        assert Image.open(io.BytesIO(file)).info["gamma"] == 1.0
    for other in ("JPEG", "WEBP", "TIFF"):  # which are taken for sRGB if they name no colours
        assert written(data, other, 1)[1].left_out == (() if name == b"sRGB" else (f"{name.decode()} (PNG only)",))


def test_a_profile_is_not_written_next_to_srgb():
    icc = (b"iCCP", b"x\0\0" + zlib.compress(RGB_PROFILE))
    kept = chunks_of(written(png(icc, (b"sRGB", b"\0"), (b"gAMA", COLOUR[b"gAMA"])), "PNG", 1)[0])
    assert b"iCCP" in kept and b"gAMA" in kept and b"sRGB" not in kept


def test_an_avif_of_other_colours_names_them_in_a_png():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "AVIF")
    data = buffer.getvalue()
    at = data.index(b"colrnclx") + 8
    assert chunks_of(written(data, "PNG", 1)[0]).keys().isdisjoint({b"cICP"})  # the control: sRGB
    wide = data[:at] + struct.pack(">HH", 12, 16) + data[at + 4 :]
    assert chunks_of(written(wide, "PNG", 1)[0])[b"cICP"] == bytes([12, 16, 0, 1])


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize(
    ("source", "kind"), [("PNG", "pHYs"), ("JPEG", "JFIF"), ("TIFF", "inch"), ("TIFF", "cm"), ("BMP", "header")]
)
def test_the_density_is_kept_and_grows_with_the_scale(source, kind, target):
    buffer, image = io.BytesIO(), Image.fromarray(PIXELS)
    if kind == "cm":
        image.save(buffer, "TIFF", resolution_unit=3, x_resolution=118.11, y_resolution=59.055)
    else:
        image.save(buffer, source, dpi=(300, 150))
    for scale in (1, 4):
        file, about = written(buffer.getvalue(), target, 1, scale)
        assert dpi(file) == pytest.approx((300 * scale, 150 * scale), abs=0.6)
        assert about.left_out == ()
    with Image.open(io.BytesIO(encode(PIXELS, target, About(), "mark"))) as plain:  # the control
        assert plain.info.get("dpi") in (None, (1, 1), (72, 72))  # the values that Pillow makes up


@pytest.mark.parametrize("target", ["PNG", "JPEG", "TIFF"])
def test_pixels_that_are_not_square_stay_so(target):
    file = written(png((b"pHYs", struct.pack(">IIB", 2, 1, 0))), target, 1, 4)[0]
    with Image.open(io.BytesIO(file)) as image:
        found = {"PNG": lambda: image.info["aspect"], "JPEG": lambda: image.info["jfif_density"],
                 "TIFF": lambda: (image.tag_v2[282], image.tag_v2[283])}[target]()  # fmt: skip
    assert tuple(found) == (2, 1)


def test_what_is_not_kept_is_named():
    text = png((b"tEXt", b"Title\0A title"), (b"tIME", bytes(7)), (b"eXIf", b"MM\0*\0\0\xff\xff"))
    assert written(text, "PNG", 1)[1].left_out == ("tEXt", "tIME", "damaged EXIF data (refers to data beyond its end)")
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", comment=b"A comment", icc_profile=RGB_PROFILE)
    data = buffer.getvalue()
    iptc = b"\xff\xed\0\x14Photoshop 3.0\0" + b"8BIM"
    assert read_about(data[:20] + iptc + data[20:], 3).left_out == ("Photoshop's data (IPTC)", "a comment")
    gray = read_about(data, 1)
    assert gray.icc is None and gray.left_out == ("a comment", "a profile of other colours than gray")
    large = About(exif=b"II*\0" + bytes(64000), xmp=b"<rdf:RDF>" + b" " * 70000)
    assert fitted(large, "JPEG").left_out == ("EXIF (too large for a JPEG)", "XMP (too large for a JPEG)")
    assert fitted(large, "WEBP").left_out == ()
    encode(PIXELS, "JPEG", fitted(large, "JPEG"), "mark")


def test_exif_behind_the_pixels_and_in_texts_is_found():
    exif = made_exif()
    plain = png()
    behind = plain[:-12] + png_chunk(b"eXIf", exif) + plain[-12:]
    hexadecimal = b"\nexif\n" + b"%8d\n" % len(exif) + (b"Exif\0\0" + exif).hex().encode()
    packed = b"Raw profile type exif\0\0" + zlib.compress(hexadecimal)
    packet = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)
    for data in (behind, png((b"zTXt", packed)), png((b"tEXt", b"Raw profile type APP1\0" + hexadecimal))):
        assert read_about(data, 3).exif == exif
    assert read_about(png((b"iTXt", packet), (b"tEXt", b"x\0" + bytes(3_000_000))), 3).xmp == XMP


@pytest.mark.parametrize("cut", range(8, 400, 7))
def test_damaged_exif_data_never_stop_a_file(cut):
    exif = made_exif()
    for damaged in (exif[:cut], exif[:cut] + b"\xff\xff\xff\xff" + exif[cut + 4 :]):
        data = png((b"eXIf", damaged))
        for format in ("PNG", "TIFF"):
            file = written(data, format, 1)[0]
            with Image.open(io.BytesIO(file)) as image:
                assert image.getexif()[0x000B] == "the mark"


def test_a_tiff_of_another_program_is_read(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", PIXELS, photometric="rgb", resolution=(300, 150), resolutionunit=2, description="a text",
        software="a program", extratags=[(65000, 4, 3, (1, 2, 3), True)],
    )  # fmt: skip
    for big in (False, True):
        tifffile.imwrite(tmp_path / "b.tif", PIXELS, bigtiff=big, resolution=(300, 150), resolutionunit=2)
        file, about = written((tmp_path / "b.tif").read_bytes(), "TIFF", 1)
        assert dpi(file) == (300, 150) and about.left_out == (("EXIF of a BigTIFF",) if big else ())
    with tifffile.TiffFile(io.BytesIO(written((tmp_path / "a.tif").read_bytes(), "TIFF", 1)[0])) as file:
        tags = file.pages.first.tags
        assert (tags[270].value, tags[305].value, tags[65000].value) == ("a text", "a program", (1, 2, 3))
        assert np.array_equal(file.asarray(), PIXELS)


def test_pillows_own_limit_of_pixels_does_not_apply(monkeypatch):
    """`max_pixels` is the limit, and may be larger."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    stream = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(stream, "jpeg", dpi=(300, 300))
    about = read_about(stream.getvalue(), 3)
    assert about.density is not None and not about.left_out


def test_the_mark_is_read_next_to_a_large_profile(tmp_path):
    profile = bytes(16) + b"RGB " + np.random.default_rng(0).bytes(2_000_000)
    for name in ("a.png", "a.tif"):
        format = {".png": "PNG", ".tif": "TIFF"}[name[1:]]
        (tmp_path / name).write_bytes(encode(PIXELS, format, About(icc=profile), "mark 1"))
        assert read_mark(tmp_path / name) == "mark 1"


def test_colour_chunks_of_a_wrong_length_and_unreadable_profiles_are_named():
    data = png(
        (b"gAMA", b"1"), (b"cHRM", bytes(32)), (b"iCCP", b"a\0\0zz"), (b"tEXt", b"Raw profile type exif\0x 1 zz")
    )
    about = read_about(data, 3)
    assert list(about.colour) == [b"cHRM"]
    assert {"damaged gAMA", "a damaged colour profile", "damaged EXIF data"} <= set(about.left_out)


def test_other_segments_of_a_jpeg_and_what_is_behind_it_are_named():
    plain = camera_file("JPEG")
    segments = b"".join(
        bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body
        for marker, body in ((0xEB, b"JP content credentials"), (0xE1, b"FLIR\0 heat"))
    )
    left_out = read_about(plain[:2] + segments + plain[2:] + b"a video", 3).left_out
    assert {"APP11", "FLIR's data", "data after the picture, such as a video"} <= set(left_out)
    assert read_about(plain + bytes(9), 3).left_out == ()
