"""Pairs whose files name two colour spaces are reported, unless both spaces show the same colours."""

import struct
from pathlib import Path

import numpy as np
import pytest
from photographs import photograph
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from profiles import SRGB_PRIMARIES, icc_profile

from accel_restore.data.decode import Cell
from accel_restore.data.pairs import Pair
from accel_restore.data_check.colour_spaces import ColourSpace, find_unlike_spaces, read_colour_space

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PHOTO = Image.fromarray(photograph("coffee")[:64, :64])


def _saved(file: Path, **options) -> Path:
    PHOTO.save(file, **options)
    return file


def _chunk(name: bytes, content: bytes) -> PngInfo:
    info = PngInfo()
    info.add(name, content)
    return info


def _exif(tag: int, value) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[tag] = value
    return exif


UNLIKE = {  # what the input says, while gt says nothing: the name in the finding
    "Adobe RGB": ("a.png", {"icc_profile": icc_profile("Adobe RGB (1998)")}, "Adobe RGB (1998)"),
    "JPEG": ("a.jpg", {"icc_profile": icc_profile("Adobe RGB (1998)")}, "Adobe RGB (1998)"),
    "TIFF": ("a.tif", {"icc_profile": icc_profile("Adobe RGB (1998)")}, "Adobe RGB (1998)"),
    "WebP": ("a.webp", {"icc_profile": icc_profile("Adobe RGB (1998)"), "lossless": True}, "Adobe RGB (1998)"),
    "other curve": ("a.png", {"icc_profile": icc_profile("linear", SRGB_PRIMARIES, 1.0)}, "linear"),
    "EXIF": ("a.jpg", {"exif": _exif(0xA001, 2)}, "Adobe RGB (EXIF)"),
    "gAMA": ("a.png", {"pnginfo": _chunk(b"gAMA", struct.pack(">I", 100000))}, "gamma 1"),
    "unreadable": ("a.png", {"icc_profile": b"no profile" * 30}, "that cannot be read"),
}


@pytest.mark.parametrize("file, options, name", UNLIKE.values(), ids=UNLIKE)
def test_a_pair_of_two_colour_spaces_is_reported(tmp_path, file, options, name):
    pair = Pair("a", _saved(tmp_path / "gt.png"), _saved(tmp_path / file, **options))
    spaces = [(read_colour_space(pair.input), read_colour_space(pair.gt))]
    (finding,) = find_unlike_spaces([pair], spaces)
    assert (finding.kind, finding.files) == ("profile", (str(pair.input), str(pair.gt)))
    assert f"has the colour profile {name}, its gt {pair.gt} none (sRGB)" in finding.text


def test_the_difference_is_given_and_pairs_of_one_kind_are_one_finding():
    adobe = ColourSpace("Adobe RGB (1998)", icc_profile("Adobe RGB (1998)"))
    pairs = [Pair(str(number), Path(f"gt/{number}.png"), Path(f"input/{number}.png")) for number in range(5)]
    (finding,) = find_unlike_spaces(pairs, [(adobe, ColourSpace())] * 3 + [(adobe, adobe)] * 2)
    assert "3 pairs have different colour profiles" in finding.text and "of 255 levels" in finding.text
    assert len(finding.files) == 6


LIKE = {
    "sRGB profile": {"icc_profile": SRGB},
    "sRGB of another maker": {"icc_profile": icc_profile("sRGB 2.2", SRGB_PRIMARIES)},
    "sRGB chunk": {"pnginfo": _chunk(b"sRGB", b"\0")},
    "gAMA of sRGB": {"pnginfo": _chunk(b"gAMA", struct.pack(">I", 45455))},
    "EXIF sRGB": {"exif": _exif(0xA001, 1)},
}


@pytest.mark.parametrize("options", LIKE.values(), ids=LIKE)
def test_spaces_that_show_the_same_colours_are_no_finding(tmp_path, options):
    pair = Pair("a", _saved(tmp_path / "gt.png"), _saved(tmp_path / "a.png", **options))
    spaces = [(read_colour_space(pair.input), read_colour_space(pair.gt))]
    assert find_unlike_spaces([pair], spaces) == []


def test_made_inputs_and_arrays_name_no_colour_space():
    cell = Cell("row 1", "1", lambda: np.zeros((4, 4, 3), np.uint8))
    assert read_colour_space(cell) == ColourSpace()
    assert find_unlike_spaces([Pair("a", Path("gt.png"))], [(None, ColourSpace("Adobe RGB", b"x"))]) == []
