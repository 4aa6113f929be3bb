"""Properties of an image file before it is decoded, and the errors for refused files."""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "AVIF", "NPY", "OpenEXR")
_BUFFER = 2**17  # bytes; many PNGs hold pixels in chunks of 8 KB, and to seek over each takes longer than to read

Content = Path | io.BytesIO  # of an encoded file


class ImageError(Exception):
    """An unusable image. The message is the reason, without the file's name."""


@dataclass(frozen=True)
class Header:
    """The properties of an image that are known without decoding it."""

    height: int  # upright
    width: int
    dtype: np.dtype  # of the pixels: uint8, uint16, float16 or float32
    mode: str  # in words: gray, RGB, palette, 31 channels, ...
    format: str  # by content: PNG, JPEG, ...
    orientation: int = 1  # as in EXIF; 1 is upright

    @property
    def depth(self) -> str:
        """The kind of the pixels, as tables name it: 8-bit, 16-bit, 32-bit float."""
        return f"{8 * self.dtype.itemsize}-bit{' float' * (self.dtype.kind == 'f')}"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width before the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def make_header(
    stored_size: tuple[int, int], dtype: DTypeLike, mode: str, format: str, orientation: int, max_pixels: int
) -> Header:
    """Return the header of an image that is stored in this height and width.

    Raises: ImageError if it has more than `max_pixels` pixels.
    """
    if math.prod(stored_size) > max_pixels:
        raise too_large(max_pixels)
    height, width = reversed(stored_size) if orientation >= 5 else stored_size
    return Header(height, width, np.dtype(dtype), mode, format, orientation)


def too_large(max_pixels: int) -> ImageError:
    """Return the error for an image of more than `max_pixels` pixels."""
    return ImageError(
        f"has more than {max_pixels:,} pixels; cut it into pieces or, if you trust it, raise data.max_image_pixels "
        "(restore and evaluate: --max-pixels)"
    )


def damaged(reason: object) -> ImageError:
    """Return the error for a damaged file."""
    return ImageError(f"is damaged ({' '.join(str(reason).split()).rstrip('.')}); replace or remove it")


def _inaccessible(error: OSError) -> str:
    """Return why a file cannot be opened."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else None
    if isinstance(error, FileNotFoundError) and path is not None and path.is_symlink():
        return f"is a link to {path.readlink()!s:.200}, which does not exist; restore that file, or remove the link"
    remedy = "change its permissions" if isinstance(error, PermissionError) else "replace or remove it"
    return f"cannot be read ({error.strerror}); {remedy}"


@contextmanager
def image_errors() -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError: decoders raise exceptions of many kinds for damaged files."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("does not fit in memory; cut it into pieces") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # of the system, not of a decoder
            raise ImageError(_inaccessible(error)) from None
        plain = isinstance(error, ValueError | OSError | RuntimeError | SyntaxError) and str(error)
        raise damaged(str(error) if plain else f"{type(error).__name__} {error}") from None


@contextmanager
def opened(content: Content) -> Iterator[BinaryIO]:
    """Open an encoded file at its start."""
    if isinstance(content, Path):
        with content.open("rb", buffering=_BUFFER) as file:
            yield file
    else:
        content.seek(0)
        yield content


def data_of(content: Content) -> bytes:
    """Return the bytes of an encoded file."""
    return content.read_bytes() if isinstance(content, Path) else content.getvalue()
