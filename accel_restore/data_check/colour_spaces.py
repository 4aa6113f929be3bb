"""The colour spaces that files name: training reads pixel values as they are, so those of a pair must be the same."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from accel_restore.data import decode_exr, decode_npy
from accel_restore.data.decode import Cell, ImageSource
from accel_restore.data.decode_pillow import open_image
from accel_restore.data.exif import ICC
from accel_restore.data.image_formats import FORMATS, image_errors, opened
from accel_restore.data.metadata import foreign_tags
from accel_restore.data.pairs import Pair
from accel_restore.data.png_chunks import SIGNATURE, exif_and_xmp, read_chunks, text_of
from accel_restore.data_check.findings import Finding

_EXIF, _INTEROP, _COLOUR_SPACE, _INTEROP_INDEX = 0x8769, 0xA005, 0xA001, 1  # EXIF tags
_SRGB_GAMMA, _SRGB_CHROMATICITY = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_NONE = "none (sRGB)"
_VISIBLE = 1.5  # of 255 levels on average; profiles of sRGB by different makers differ by less than 1


@dataclass(frozen=True, slots=True)
class ColourSpace:
    """The colour space of a file; `profile` is its ICC profile."""

    name: str = _NONE
    profile: bytes = b""


def read_colour_space(source: ImageSource) -> ColourSpace:
    """Return the colour space that an image names; nothing is decoded.

    Raises: ImageError.
    """
    content = source.fetch() if isinstance(source, Cell) else source
    if isinstance(content, np.ndarray):
        return ColourSpace()
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    with image_errors():
        with opened(stream) as file:
            start = file.read(16)
            if start.startswith(SIGNATURE):
                return _of_png(list(read_chunks(file, without_pixels=True)))
            if start.startswith((decode_npy.SIGNATURE, decode_exr.SIGNATURE)):
                return ColourSpace()
            if (tags := foreign_tags(file)) is not None:
                profile = tags.get(ICC)
                return ColourSpace(_described(profile), profile) if profile else ColourSpace()
        with open_image(stream, start, FORMATS) as image:
            profile = image.info.get("icc_profile")
            return ColourSpace(_described(profile), profile) if profile else _of_exif(image.getexif())


def _of_png(chunks: list[tuple[bytes, bytes]]) -> ColourSpace:
    first = dict(reversed(chunks))  # of each kind
    if b"iCCP" in first and (found := text_of(b"iCCP", first[b"iCCP"])) and found[1]:
        return ColourSpace(_described(found[1]), found[1])
    if b"sRGB" not in first:
        gamma = int.from_bytes(first.get(b"gAMA", b""), "big") / 1e5 or _SRGB_GAMMA
        chromaticity = np.frombuffer(first.get(b"cHRM", b""), ">u4") / 1e5
        if abs(gamma - _SRGB_GAMMA) > 0.01 * _SRGB_GAMMA:
            return ColourSpace(f"gamma {gamma:g}")
        if len(chromaticity) == 8 and np.abs(chromaticity - _SRGB_CHROMATICITY).max() > 0.005:
            return ColourSpace("of other primaries (cHRM)")
    exif = Image.Exif()
    exif.load(exif_and_xmp(chunks)[0] or b"")
    return _of_exif(exif)


def find_unlike_spaces(
    pairs: Sequence[Pair], spaces: Sequence[tuple[ColourSpace | None, ColourSpace]]
) -> list[Finding]:
    """Return one finding for each two colour spaces in which input and gt of some pairs differ visibly."""
    unlike: dict[tuple[ColourSpace, ColourSpace], list[Pair]] = defaultdict(list)
    for pair, (input, gt) in zip(pairs, spaces, strict=True):
        if input is not None and input != gt:
            unlike[input, gt].append(pair)
    found = []
    for (input, gt), those in unlike.items():
        levels = _difference(input, gt)
        if levels is not None and levels.mean() < _VISIBLE:
            continue
        first = f"{those[0].input}: has the colour profile {input.name}, its gt {those[0].gt} {gt.name}"
        text = first if len(those) == 1 else f"{len(those)} pairs have different colour profiles; {first}"
        if levels is not None:
            text += f"; equal values differ by {levels.mean():.1f} of 255 levels on average, {levels.max():.0f} at most"
        text += "; profiles are not applied, so a network learns the conversion; convert both sides to one profile"
        found.append(Finding("profile", text, tuple(str(file) for pair in those for file in (pair.input, pair.gt))))
    return found


@lru_cache(64)
def _described(profile: bytes) -> str:
    try:
        return ImageCms.getProfileDescription(_opened(profile)).strip() or "without a name"
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "that cannot be read"


def _of_exif(exif: Image.Exif) -> ColourSpace:
    """The colour space of a file without an ICC profile."""
    try:
        details = exif.get_ifd(_EXIF)
        interop = str(exif.get_ifd(_INTEROP).get(_INTEROP_INDEX, ""))
    except Exception:  # Pillow raises exceptions of many kinds for damaged EXIF data
        return ColourSpace()
    adobe = details.get(_COLOUR_SPACE) == 2 or (details.get(_COLOUR_SPACE) != 1 and interop.startswith("R03"))
    return ColourSpace("Adobe RGB (EXIF)") if adobe else ColourSpace()


def _difference(one: ColourSpace, other: ColourSpace) -> np.ndarray | None:
    """Return how far, in levels, equal values of two spaces are apart when both are shown; None if it is unknown."""
    try:
        shown = [_shown(space) for space in (one, other)]
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if shown[0] is None or shown[1] is None:
        return None
    gray = min(len(shown[0]), len(shown[1]))  # the gray ramp comes first
    return np.abs(shown[0][:gray] - shown[1][:gray])


@lru_cache(64)
def _shown(space: ColourSpace) -> np.ndarray | None:
    """Return sRGB values (N, 3) of a ramp of grays, then, for colour, of a grid of colours; None if unknown."""
    if not space.profile:
        return _values("RGB").reshape(-1, 3) if space == ColourSpace() else None
    profile = _opened(space.profile)
    mode = "L" if profile.profile.xcolor_space.strip() == "GRAY" else "RGB"
    picture = Image.fromarray(_values(mode).astype(np.uint8))
    seen = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert seen is not None  # it is None only if the picture is changed in place
    return np.asarray(seen, float).reshape(-1, 3)


def _values(mode: str) -> np.ndarray:
    """Return a picture of one row: a ramp of grays, then, for RGB, a grid of colours."""
    ramp = np.arange(0, 256, 15.0)
    if mode == "L":
        return ramp[None]
    grid = np.stack(np.meshgrid(*3 * [np.arange(0, 256, 51.0)]), -1).reshape(-1, 3)
    return np.concatenate([np.repeat(ramp[:, None], 3, 1), grid])[None]


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))
