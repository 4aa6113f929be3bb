"""The colour spaces that files name: training reads pixel values as they are, so those of a pair must be the same."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile

from accel_restore.data.decode import Cell, ImageSource
from accel_restore.data.image_formats import DAMAGE, open_image
from accel_restore.data.pairs import Pair
from accel_restore.data_check.findings import Finding

_EXIF, _INTEROP, _COLOUR_SPACE, _INTEROP_INDEX = 0x8769, 0xA005, 0xA001, 1  # EXIF tags
_SRGB_GAMMA, _SRGB_CHROMATICITY = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_NONE = "none (sRGB)"
_VISIBLE = 1.5  # of 255 levels on average; profiles of sRGB by different makers differ by less than 1


@dataclass(frozen=True, slots=True)
class ColourSpace:
    """What a file says about its colours; `profile` is its ICC profile."""

    name: str = _NONE
    profile: bytes = b""


def read_colour_space(source: ImageSource, max_pixels: int) -> ColourSpace:
    """Return the colour space that an image names; nothing is decoded.

    Raises: ImageError.
    """
    content = source.fetch() if isinstance(source, Cell) else source
    if isinstance(content, np.ndarray):
        return ColourSpace()
    with open_image(io.BytesIO(content) if isinstance(content, bytes) else content, max_pixels) as image:
        if profile := image.info.get("icc_profile"):
            return ColourSpace(_described(profile), profile)
        return ColourSpace(_named(image) or _NONE)


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
        first = f"{those[0].input}: names the colour profile {input.name}, its gt {those[0].gt} {gt.name}"
        text = first if len(those) == 1 else f"{len(those)} pairs have two colour profiles; {first}"
        if levels is not None:
            text += f"; equal values differ by {levels.mean():.1f} of 255 levels on average, {levels.max():.0f} at most"
        text += "; profiles are not applied, so a network learns the conversion; convert both sides to one profile"
        found.append(Finding("profile", text, tuple(str(file) for pair in those for file in (pair.input, pair.gt))))
    return found


@lru_cache(64)
def _described(profile: bytes) -> str:
    try:
        return ImageCms.getProfileDescription(_opened(profile)).strip() or "without a name"
    except (ImageCms.PyCMSError, *DAMAGE):
        return "that cannot be read"


def _named(image: ImageFile) -> str | None:
    """Return the colour space of a file without an ICC profile; None if it names none, or sRGB."""
    if image.format == "PNG" and "srgb" not in image.info:
        gamma, chromaticity = image.info.get("gamma", _SRGB_GAMMA), image.info.get("chromaticity", _SRGB_CHROMATICITY)
        if abs(gamma - _SRGB_GAMMA) > 0.01 * _SRGB_GAMMA:
            return f"gamma {gamma:g}"
        if np.abs(np.subtract(chromaticity, _SRGB_CHROMATICITY)).max() > 0.005:
            return "of other primaries (cHRM)"
    try:
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else Image.Exif()
        details = exif.get_ifd(_EXIF)
        interop = str(exif.get_ifd(_INTEROP).get(_INTEROP_INDEX, ""))
    except DAMAGE:
        return None
    adobe = details.get(_COLOUR_SPACE) == 2 or (details.get(_COLOUR_SPACE) != 1 and interop.startswith("R03"))
    return "Adobe RGB (EXIF)" if adobe else None


def _difference(one: ColourSpace, other: ColourSpace) -> np.ndarray | None:
    """Return how far, in levels, equal values of two spaces are apart when both are shown; None if it is unknown."""
    try:
        shown = [_shown(space) for space in (one, other)]
    except (ImageCms.PyCMSError, *DAMAGE):
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
