"""The formats that Pillow opens: JPEG, BMP, WEBP, PPM, GIF, JPEG2000 and AVIF. What is refused, and the pixels."""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from accel_restore.data.decode_jpeg import decode_jpeg, unsupported_jpeg
from accel_restore.data.image_formats import FORMATS, Content, Header, ImageError, data_of, make_header, opened
from accel_restore.data.orientation import orientation_of

_FORMATS = tuple(name for name in FORMATS if name not in ("PNG", "TIFF"))  # these have decoders of their own
_MODES = {"1": "black and white", "L": "gray", "LA": "gray with alpha", "P": "palette", "PA": "palette", "RGB": "RGB",
          "RGBA": "RGB with alpha"}  # fmt: skip
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # TIFF tags
DEEP = "is 16-bit RGB, but Pillow keeps 8 bits; give a numpy array of uint16"
_FOREIGN = {  # the first bytes of files that are often taken for images
    b"8BPS": "a Photoshop file", b"%PDF": "a PDF document", b"%!PS": "a PostScript file",
    b"#?RADIANCE": "a Radiance HDR file", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"<svg": "SVG",
    b"<": "an HTML or XML page", b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull`",
    b"PK\3\4": "a ZIP archive", b"\x1f\x8b": "a gzip archive", b"qoif": "QOI",
}  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


@contextmanager
def open_image(content: Content, start: bytes, formats: Iterable[str] = _FORMATS) -> Iterator[ImageFile]:
    """Open a file that starts with the bytes `start`, without decoding it.

    `Image.open` would apply Pillow's own limit of pixels, a global variable.

    Raises: ImageError if it has none of these formats, and what Pillow raises for damaged headers.
    """
    Image.init()
    for name in formats:
        factory, accepts = Image.OPEN.get(name, (None, None))  # AVIF needs a library that some builds lack
        if factory is not None and accepts is not None and accepts(start.ljust(16, b"\0")) is True:
            path = str(content) if isinstance(content, Path) else ""
            with opened(content) as file, _made(factory, file, path) as image:
                yield image
            return
    kind = next((name for prefix, name in _FOREIGN.items() if start.startswith(prefix)), None)
    kind = "HEIF" if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS else kind
    raise ImageError(
        f"is not a readable image{f', but {kind}' if kind else ''}; "
        f"readable formats are {', '.join(FORMATS)}; convert, replace or remove it"
    )


def _made(factory: Callable, file: IO[bytes], path: str) -> ImageFile:
    try:
        return factory(file, path)
    except SyntaxError:  # what Pillow raises for a header that it does not understand
        file.seek(0)
        data = file.read()
        if data.startswith(b"\xff\xd8") and (problem := unsupported_jpeg(data)):
            raise ImageError(problem) from None
        raise


def read_pillow_header(content: Content, start: bytes, max_pixels: int) -> Header:
    """Return the header of a file that starts with the bytes `start`.

    Raises: ImageError for files of other formats, that are too large, or would lose something when they are decoded.
    """
    with open_image(content, start) as image:
        orientation = orientation_of(image.info.get("exif"), _bytes(image.info.get("xmp")))
        name = str(image.format)
        size = (image.height, image.width)
        header = make_header(size, "uint8", _MODES.get(image.mode, image.mode), name, orientation, max_pixels)
        if problem := _problem(image, content):
            raise ImageError(problem)
    return header


def _bytes(xmp: bytes | str | None) -> bytes | None:
    return xmp.encode() if isinstance(xmp, str) else xmp


def _problem(image: ImageFile, content: Content) -> str | None:
    """Why an image is refused, or None."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's MPO: the first picture is the photograph
        return f"contains {frames} images; save the one that you want as a separate file"
    if _is_deep(image):
        return f"is a 16-bit {image.format}, whose lower bits would be lost; convert it to PNG or TIFF"
    if image.format == "JPEG2000" and any(depth & 0x80 for depth in _depths(data_of(content))):
        return "is JPEG2000 with signed values; convert it to PNG with unsigned values"
    if image.format in ("JPEG2000", "AVIF") and _has_more_bits(image.format, content):
        return f"is {image.format} with more than 8 bits, whose lower bits would be lost; convert it to PNG"
    return _mode_problem(image)


def _mode_problem(image: Image.Image) -> str | None:
    """Why the pixel format of an image, of a file or in memory, is refused, or None."""
    if image.mode == "CMYK":
        return "is CMYK, whose colours depend on the printer; convert it to RGB with its colour profile"
    if image.mode not in _MODES:
        kind = f"is a {image.format} of" if image.format else "has"
        return f"{kind} the pixel format {image.mode}; convert it to gray or RGB with 8 or 16 bits"
    return None


def _is_deep(image: ImageFile) -> bool:
    """Whether the file has more than 8 bits per channel. Pillow opens 16-bit colour as RGB."""
    if image.format == "PPM":
        return any(isinstance(part, int) and part > 255 for tile in image.tile for part in tuple(tile[3] or ()))
    return image.mode.startswith("I;16")


def _has_more_bits(format: str, content: Content) -> bool:
    """Whether a JPEG 2000 or AVIF file has more than the 8 bits per channel that Pillow reads."""
    data = data_of(content)
    if format == "AVIF":
        profile = re.search(rb"av1C..(.)", data, re.DOTALL)
        return profile is not None and bool(profile[1][0] & 0x40)  # high_bitdepth
    return any((depth & 0x7F) + 1 > 8 for depth in _depths(data))


def _depths(data: bytes) -> bytes:
    """A byte for each component of a JPEG 2000 file: its bits less 1, and 0x80 for signed values."""
    sizes = re.search(rb"\xff\x4f\xff\x51.{36}(..)", data, re.DOTALL)  # SIZ, up to the number of components
    return data[sizes.end() :: 3][: int.from_bytes(sizes[1], "big")] if sizes is not None else b""


def read_pillow_pixels(content: Content, start: bytes, header: Header) -> np.ndarray:
    """Return the pixels (H, W) or (H, W, 2 to 4) as stored, with the alpha channel if there is transparency.

    Raises: ImageError or others for damaged files.
    """
    if header.format in ("JPEG", "MPO"):
        return decode_jpeg(data_of(content), gray=header.mode == "gray")
    if header.format == "GIF":  # Pillow fills missing pixels
        import imagecodecs

        imagecodecs.gif_decode(data_of(content))
    with open_image(content, start) as image:
        if header.format == "GIF" and image.tile[0].extents != (0, 0, *image.size):
            raise ImageError("is a GIF whose picture covers only a part of its canvas; save it as PNG")
        return _pixels(image)


def _pixels(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    return np.asarray(image)


def file_of(image: Image.Image) -> Content | None:
    """Return the file that an image was opened from, or None if there is none or none is at hand."""
    if not isinstance(image, ImageFile) or image.format not in (*FORMATS, "MPO"):
        return None
    if image.fp is not None and not image.fp.closed:  # the pixels are not loaded yet
        place = image.fp.tell()
        image.fp.seek(0)
        data = image.fp.read()
        image.fp.seek(place)
        return io.BytesIO(data)
    path = Path(os.fsdecode(image.filename)) if image.filename else None
    return path if path is not None and path.is_file() else None


def is_as_stored(image: Image.Image, header: Header) -> bool:
    """Return whether the pixels of an image are still those of its file: not loaded, of the first picture, no draft."""
    if not isinstance(image, ImageFile) or image.fp is None or image.fp.closed or image.tell():
        return False
    is_draft = image.format == "JPEG" and _MODES.get(image.mode) != header.mode
    return not is_draft and sorted(image.size) == sorted(header.stored_size)


def read_pil_image(image: Image.Image) -> tuple[np.ndarray, int]:
    """Return the pixels of an image in memory, as `read_pillow_pixels` does, and its orientation.

    8 bits, or 16 bits of gray. Raises: ImageError for what files are refused for.
    """
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise ImageError(f"contains {frames} images; give the one that you want, as image.copy()")
    if isinstance(image, TiffImageFile) and image.mode != "L" and 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ()):
        if not image.mode.startswith("I;16"):
            raise ImageError(DEEP)
        if image.tag_v2.get(_PHOTOMETRIC) == 0:
            raise ImageError("is 16-bit gray whose white is 0; convert it to gray whose black is 0")
    image.load()  # of a PNG, also the EXIF data behind the pixels
    if image.mode.startswith("I;16"):  # of either byte order
        pixels = np.asarray(image).astype(np.uint16)
        if np.any(pixels == image.info.get("transparency", -1)):
            raise ImageError("names a transparent colour; flatten it onto a background")
    elif problem := _mode_problem(image):
        raise ImageError(problem)
    else:
        pixels = _pixels(image)
    if isinstance(image, TiffImageFile):  # Pillow has applied the orientation, or else still names it
        return pixels, image.getexif().get(_ORIENTATION, 1)
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    return pixels, orientation_of(image.info.get("exif"), _bytes(xmp))
