"""Image files of every kind, valid and unusable."""

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image


def photo(height: int = 20, width: int = 30, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, 3), dtype, endpoint=True)


def save(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo() if pixels is None else pixels).save(path, **options)
    return path


def save_deep_png(path: Path, pixels: np.ndarray) -> Path:
    """Write a 16-bit PNG of (H, W, 1 to 4): gray, gray and alpha, RGB, or RGB and alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colour_type, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def twelve_bit_tiff(pixels: np.ndarray) -> bytes:
    """Return a gray TIFF of packed 12-bit values."""
    height, width = pixels.shape
    bits = (pixels[..., None] >> np.arange(11, -1, -1)) & 1
    data = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    ifd = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd


def make_unusable(kind: str, path: Path) -> Path:
    rgb = photo()
    if kind == "transparent":
        save(path, np.dstack([rgb, rgb[..., 0]]))
    elif kind == "transparent, 16 bits":
        save_deep_png(path, np.dstack([photo(dtype="uint16")] * 2)[..., :4])
    elif kind == "transparent colour":
        Image.fromarray(rgb).quantize(16).save(path, transparency=3)
    elif kind == "CMYK":
        Image.fromarray(rgb).convert("CMYK").save(path, format="tiff")
    elif kind == "float":
        tifffile.imwrite(path, rgb[..., 0].astype(np.float64))
    elif kind == "two pages":
        tifffile.imwrite(path, np.stack([rgb, rgb]), photometric="rgb")
    elif kind == "two pages, 16 bits":
        tifffile.imwrite(path, np.stack([photo(dtype="uint16")] * 2), photometric="rgb")
    elif kind == "signed":
        tifffile.imwrite(path, rgb[..., 0].astype(np.int16) - 100)
    elif kind == "inverted":
        tifffile.imwrite(path, photo(dtype="uint16")[..., 0], photometric="miniswhite")
    elif kind == "16-bit PPM":
        path.write_bytes(b"P6 30 20 65535\n" + photo(dtype="uint16").tobytes())
    elif kind == "12-bit TIFF":
        path.write_bytes(twelve_bit_tiff(photo(dtype="uint16")[..., 0] >> 4))
    elif kind in ("deep JPEG 2000", "deep AVIF"):  # Pillow reads both as 8 bits
        deep, name = photo(64, 64, dtype="uint16"), kind.split(" ", 1)[1]
        encode = {"JPEG 2000": imagecodecs.jpeg2k_encode, "AVIF": imagecodecs.avif_encode}[name]
        path.write_bytes(encode(deep) if name == "JPEG 2000" else encode(deep >> 6, bitspersample=10))
    elif kind == "truncated, 16 bits":
        path.write_bytes(save_deep_png(path, photo(dtype="uint16")).read_bytes()[:-500])
    elif kind == "truncated":
        path.write_bytes(save(path).read_bytes()[:-500])
    else:
        path.write_bytes(
            {"empty": b"", "text": b"this is no image\n" * 9, "header": save(path).read_bytes()[:30]}[kind]
        )
    return path


REASONS = {
    "transparent": "transparent", "transparent, 16 bits": "transparent", "transparent colour": "transparent",
    "two pages": "contains 2 images", "two pages, 16 bits": "contains 2 images", "signed": "signed 16-bit",
    "inverted": "inverted gray", "CMYK": "CMYK", "float": "float 64-bit", "16-bit PPM": "16-bit PPM",
    "truncated": "damaged", "truncated, 16 bits": "damaged", "empty": "empty", "text": "is not a readable image",
    "header": "damaged .it ends before", "12-bit TIFF": "12-bit values",
    "deep JPEG 2000": "more than 8 bits",
    "deep AVIF": "more than 8 bits|is not a readable image",
}  # fmt: skip
