"""Encoded images of every format, and seeded damage to their bytes."""

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
import tifffile
from image_files import save_deep_png
from photographs import photograph
from PIL import Image


def _pillow(format: str, **options) -> Callable:
    def encode(pixels: np.ndarray, path) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format, **options)
        return file.getvalue()

    return encode


def _tiff(deep: bool = False, **options) -> Callable:
    def encode(pixels: np.ndarray, path) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, deepened(pixels) if deep else pixels, photometric="rgb", rowsperstrip=16, **options)
        return file.getvalue()

    return encode


def deepened(pixels: np.ndarray) -> np.ndarray:
    """Return 16-bit pixels whose lower bits matter."""
    return pixels.astype(np.uint16) * 257 ^ (np.arange(pixels.size, dtype=np.uint16).reshape(pixels.shape) & 63)


def _palette(format: str) -> Callable:
    def encode(pixels: np.ndarray, path) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).quantize(64).save(file, format)
        return file.getvalue()

    return encode


ENCODERS: dict[str, Callable] = {  # (pixels, a free path) → bytes
    "PNG": _pillow("PNG"),
    "PNG, 16 bits": lambda pixels, path: save_deep_png(path, deepened(pixels)).read_bytes(),
    "PNG, palette": _palette("PNG"),
    "JPEG": _pillow("JPEG", quality=90),
    "JPEG, progressive": _pillow("JPEG", quality=90, progressive=True),
    "JPEG, restart markers": _pillow("JPEG", quality=90, restart_marker_rows=1),
    "WEBP, lossless": _pillow("WEBP", lossless=True),
    "WEBP, lossy": _pillow("WEBP", quality=90),
    "TIFF": _tiff(),
    "TIFF, LZW": _tiff(compression="lzw"),
    "TIFF, Deflate": _tiff(compression="deflate", predictor=2),
    "TIFF, Deflate, 16 bits": _tiff(deep=True, compression="deflate", predictor=2),
    "TIFF, Zstandard": _tiff(compression="zstd"),
    "TIFF, PackBits": _tiff(compression="packbits"),
    "TIFF, JPEG": _tiff(compression="jpeg"),
    "BMP": _pillow("BMP"),
    "PPM": _pillow("PPM"),
    "GIF": _palette("GIF"),
    "JPEG2000": _pillow("JPEG2000"),
    "AVIF": lambda pixels, path: imagecodecs.avif_encode(pixels, level=90, speed=10, numthreads=1),
}
CHECKED = ("PNG", "PNG, 16 bits", "PNG, palette")  # whose format has checksums of everything


def picture(side: int = 64) -> np.ndarray:
    return np.ascontiguousarray(photograph("astronaut")[:side, 100 : 100 + side])


def flipped(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    damaged[random.integers(len(data))] ^= 1 << random.integers(8)
    return bytes(damaged)


def cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(1, len(data))]


def swapped(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    a, b = random.integers(len(data), size=2)
    damaged[a], damaged[b] = damaged[b], damaged[a]
    return bytes(damaged)


def hole(data: bytes, random: np.random.Generator) -> bytes:
    length = min(int(random.integers(64, 1024)), len(data) // 3)
    start = int(random.integers(len(data) - length))
    return data[:start] + bytes(length) + data[start + length :]


DAMAGE: dict[str, Callable] = {"flip": flipped, "cut": cut, "swap": swapped, "hole": hole}
