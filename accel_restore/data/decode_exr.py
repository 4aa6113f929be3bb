"""OpenEXR files: half and float channels of one flat image. The header is read here, the pixels by OpenEXR's library.

Channels are in the order R, G, B, then by name, as files have them. A is alpha where there are R, G and B, or Y.
Source: "OpenEXR File Layout", ASWF.
"""

import io
import struct
from dataclasses import dataclass
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from accel_restore.data.image_formats import Content, Header, ImageError, damaged, make_header, opened
from accel_restore.data.pixels import described, largest_kind, opaque

SIGNATURE = b"v/1\x01"
_KINDS: dict[int, np.dtype] = {1: np.dtype(np.float16), 2: np.dtype(np.float32)}  # by pixel type; 0 is uint32
_NOT_FLAT = 0x1800  # bits of the version: deep data, several parts
_MOST = 2**20  # bytes of a header
_FIRST = {"R": 0, "G": 1, "B": 2}


# Attributes that describe how the pixels of a file are stored.
_LAYOUT = {
    "channels", "compression", "dataWindow", "displayWindow", "lineOrder", "type", "tiles", "chunkCount", "version",
    "name", "preview", "screenWindowCenter", "screenWindowWidth", "dwaCompressionLevel",
}  # fmt: skip


@dataclass(frozen=True)
class _Channel:
    name: str
    kind: int
    sampling: tuple[int, int]


def library() -> ModuleType:
    """Return the module OpenEXR. Raises: ImageError if it is not installed."""
    try:
        import OpenEXR
    except ImportError:
        raise ImageError("is OpenEXR, which needs an extra: pip install 'accel_restore[exr]'") from None
    return OpenEXR


def read_exr_header(content: Content, max_pixels: int) -> Header:
    """Return the header of an OpenEXR file.

    Raises: ImageError for files of several parts, of deep data, or with channels that are not floats.
    """
    library()
    with opened(content) as file:
        attributes = _read_attributes(file)
    channels = _channels(attributes)
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
    size = bottom - top + 1, right - left + 1
    if min(size) < 1:
        raise damaged("its data window is empty")
    kind = largest_kind(_KINDS[channel.kind] for channel in channels)
    has_alpha = _has_alpha([channel.name for channel in channels])
    mode = described((*size, len(channels) - has_alpha)) + " with alpha" * has_alpha
    return make_header(size, kind, mode, "OpenEXR", 1, max_pixels)


def read_exr_pixels(content: Content) -> np.ndarray:
    """Return the pixels (H, W, C) of the data window, without an alpha channel.

    Raises: ImageError or others for damaged files, and for transparent pixels.
    """
    with opened(content) as file:
        planes = library().File(file, separate_channels=True).channels()
    names = sorted(planes, key=lambda name: (_FIRST.get(name, 3), name))
    has_alpha = _has_alpha(names)
    if has_alpha:
        names = [*(name for name in names if name != "A"), "A"]
    pixels = np.stack([planes[name].pixels for name in names], axis=-1)
    return opaque(pixels) if has_alpha else pixels


def encode(pixels: np.ndarray, attributes: dict[str, Any], names: tuple[str, ...], mark: tuple[str, str]) -> bytes:
    """Return an OpenEXR file of float pixels (H, W, C), losslessly compressed.

    `attributes` are those of the original, `mark` is another one. `names` are the channels' if there are as many.
    """
    channels = pixels.shape[2]
    usual = {1: ("Y",), 3: ("R", "G", "B")}.get(channels, tuple(f"{number:05d}" for number in range(channels)))
    planes = dict(zip(names if len(names) == channels else usual, np.moveaxis(pixels, -1, 0).copy(), strict=True))
    openexr, stream = library(), io.BytesIO()
    header = {**attributes, "compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage, mark[0]: mark[1]}
    openexr.File(header, planes).write(stream)
    return stream.getvalue()


def read_attributes(file: BinaryIO) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the attributes of a file that are not about its layout, and the names of its channels but alpha."""
    openexr = library()
    header = openexr.File(file, separate_channels=True, header_only=True).header()
    file.seek(0)
    names = [channel.name for channel in _channels(_read_attributes(file))]
    if _has_alpha(names):
        names.remove("A")
    kept = {key: value for key, value in header.items() if key not in _LAYOUT and not _is_opaque(openexr, value)}
    return kept, tuple(sorted(names, key=lambda name: (_FIRST.get(name, 3), name)))


def _is_opaque(openexr: ModuleType, value: object) -> bool:
    """Whether the library does not know what an attribute means, so that it cannot write it."""
    return isinstance(value, openexr.OpaqueAttribute)


def read_text(file: BinaryIO, name: str) -> str | None:
    """Return an attribute that is a text, or None if there is none."""
    file.seek(0)
    value = _read_attributes(file).get(name)
    return None if value is None else value.decode()


def _has_alpha(names: list[str]) -> bool:
    return set(names) in ({"R", "G", "B", "A"}, {"Y", "A"})


def _channels(attributes: dict[str, bytes]) -> list[_Channel]:
    channels, rest = [], attributes["channels"]
    while rest[:1] != b"\0":
        name, _, rest = rest.partition(b"\0")
        kind, _, *sampling = struct.unpack("<iI2i", rest[:16])
        channels.append(_Channel(name.decode("latin-1"), kind, (sampling[0], sampling[1])))
        rest = rest[16:]
    for channel in channels:
        if channel.kind not in _KINDS:
            raise ImageError(f"is OpenEXR whose channel {channel.name} holds integers; save it as float or half")
        if channel.sampling != (1, 1):
            raise ImageError(f"is OpenEXR whose channel {channel.name} has a lower resolution; save it as R, G, B")
    if not channels:
        raise ImageError("is OpenEXR without channels; replace or remove it")
    return channels


def _read_attributes(file: BinaryIO) -> dict[str, bytes]:
    """The attributes of the header by their names, undecoded."""
    start = file.read(8)
    if int.from_bytes(start[4:], "little") & _NOT_FLAT:
        raise ImageError("is OpenEXR of several parts or of deep data; save the image that you want as one flat part")
    data = file.read(_MOST)
    attributes, at = {}, 0
    while data[at : at + 1] != b"\0":
        name_end = data.index(b"\0", at)
        size_at = data.index(b"\0", name_end + 1) + 1
        (size,) = struct.unpack_from("<i", data, size_at)
        end = size_at + 4 + size
        if size < 0 or end > len(data):
            raise damaged("its header is cut or invalid")
        attributes[data[at:name_end].decode("latin-1")] = data[size_at + 4 : end]
        at = end
    if not {"channels", "dataWindow"} <= attributes.keys():
        raise damaged("its header lacks channels or the data window")
    return attributes
