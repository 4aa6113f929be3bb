"""NumPy files: (H, W) or (H, W, C). Only the header and numbers are read, never a pickle.

Source: NEP 1, "A Simple File Format for NumPy Arrays".
"""

import io
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from accel_restore.data.image_formats import Content, Header, ImageError, damaged, make_header, opened
from accel_restore.data.pixels import check_kind, described

SIGNATURE = b"\x93NUMPY"
_ALIGNED = 64  # bytes; pixels start at a multiple of it
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npy_header(content: Content, max_pixels: int) -> Header:
    """Return the header of a NumPy file.

    Raises: ImageError or ValueError for values that are not pixels, and for damaged headers.
    """
    with opened(content) as file:
        shape, _, dtype = _read_header(file)
    return make_header((shape[0], shape[1]), dtype.newbyteorder("="), described(shape), "NPY", 1, max_pixels)


def read_npy_pixels(content: Content) -> np.ndarray:
    """Return the pixels (H, W) or (H, W, C).

    Raises: ImageError for damaged files.
    """
    with opened(content) as file:
        shape, is_fortran, dtype = _read_header(file)
        start = file.tell()
    if isinstance(content, Path):
        if content.stat().st_size < start + dtype.itemsize * math.prod(shape):
            raise damaged("it is shorter than its header says")
        values: np.ndarray = np.memmap(content, dtype, "r", start, shape, "F" if is_fortran else "C")
    else:
        values = np.ndarray(shape, dtype, content.getbuffer(), start, order="F" if is_fortran else "C")
    return np.array(values, dtype.newbyteorder("="), order="C")


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    if version not in _READ_HEADER:
        raise ImageError(f"is a NumPy file of version {version[0]}.{version[1]}; save it again with numpy.save")
    shape, is_fortran, dtype = _READ_HEADER[version](file)
    if len(shape) not in (2, 3) or 0 in shape:
        raise ImageError(f"has the shape {shape}; (H, W) or (H, W, C) is needed")
    check_kind(dtype)
    return shape, is_fortran, dtype


def encode(pixels: np.ndarray, note: str) -> bytes:
    """Return a NumPy file of pixels, (H, W) for one channel.

    The note is in the blanks that fill its header up, as spaces (0) and tabs (1): there is no other place for it that
    all readers skip.
    """
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    stream = io.BytesIO()
    npy.write_array(stream, np.ascontiguousarray(pixels), (1, 0), allow_pickle=False)
    length, file = int.from_bytes(stream.getvalue()[8:10], "little"), stream.getvalue()
    bits = "".join(f"{byte:08b}" for byte in note.encode())
    header = file[10 : 10 + length].rstrip() + bits.translate({48: " ", 49: "\t"}).encode()
    header += b" " * (-(10 + len(header) + 1) % _ALIGNED) + b"\n"
    return file[:8] + len(header).to_bytes(2, "little") + header + file[10 + length :]


def read_note(file: BinaryIO) -> str | None:
    """Return the note in a NumPy file, or None if there is none."""
    file.seek(0)
    version, length = npy.read_magic(file), int.from_bytes(file.read(2), "little")
    header = file.read(length)
    blanks = header[len(header.rstrip()) :].rstrip(b" \n") if version == (1, 0) else b""
    bits = blanks.translate(bytes.maketrans(b" \t", b"01")).decode()
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    return bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)).decode() or None
