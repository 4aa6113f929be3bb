"""The kinds of pixels that images have, and the scale from 0 to 1 on which networks see them.

Integers are divided by their largest value. Floats are mapped linearly: `data.range` [low, high] becomes [0, 1]. Floats
outside of the range are kept, never clamped. NaN and inf are refused.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel_restore.data.image_formats import ImageError
from accel_restore.errors import UserError

Range = tuple[float, float]  # low, high
UNIT: Range = (0.0, 1.0)
KINDS = tuple(map(np.dtype, ("uint8", "uint16", "float16", "float32")))


@dataclass(frozen=True)
class Pixels:
    """The pixels that weights were trained on: the kinds of input and gt, and the range of floats."""

    input: np.dtype = KINDS[0]
    gt: np.dtype = KINDS[0]
    range: Range = UNIT

    def metadata(self) -> dict[str, Any]:
        """Return what best.safetensors records of them; nothing for integers."""
        found: dict[str, Any] = {} if self.range == UNIT else {"range": list(self.range)}
        if is_float(self.input) or is_float(self.gt):
            found["pixels"] = {"input": str(self.input), "gt": str(self.gt)}
        return found

    @classmethod
    def from_metadata(cls, data: dict[str, Any]) -> "Pixels":
        """Return the pixels that the metadata `data` of best.safetensors records.

        Raises: UserError if they are invalid.
        """
        try:
            low, high = map(float, data.get("range", UNIT))
            input, gt = (np.dtype(data.get("pixels", {}).get(side, "uint8")) for side in ("input", "gt"))
            if not (math.isfinite(high - low) and low < high and {input, gt} <= set(KINDS)):
                raise ValueError
        except (TypeError, ValueError, AttributeError):
            raise UserError("names invalid pixels or an invalid range; use the best.safetensors of a run") from None
        return cls(input, gt, (low, high))

    def kind_of_output(self, kind: np.dtype) -> np.dtype:
        """Return the kind of an output whose input has this kind: the same one, or gt's.

        It is gt's if the weights were trained to turn integers into floats, or floats into integers.
        """
        return kind if is_float(self.input) == is_float(self.gt) else self.gt


def is_float(dtype: np.dtype) -> bool:
    """Return whether pixels of this kind are floats."""
    return dtype.kind == "f"


def check_kind(dtype: np.dtype) -> None:
    """Raise `ImageError` for values that are not pixels, with what to convert them to."""
    if dtype.newbyteorder("=") not in KINDS:
        to = "float32" if dtype.kind == "f" else "uint8, uint16 or float32"
        raise ImageError(f"has {dtype} values; convert it to {to}")


def common_kind(kinds: Iterable[np.dtype]) -> np.dtype | None:
    """Return the kind that holds all pixels of these kinds without loss, or None for integers among floats."""
    found = set(kinds)
    if len({is_float(kind) for kind in found}) > 1:
        return None
    return max(found, key=lambda kind: kind.itemsize, default=KINDS[0])


def converted(pixels: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Return pixels as a kind that holds them without loss. 8 bits become 16 by the factor 257, so 255 becomes 65535.

    Raises: ImageError if the kind does not hold them.
    """
    if pixels.dtype == kind:
        return pixels
    if is_float(pixels.dtype) != is_float(kind) or pixels.itemsize > kind.itemsize:
        raise ImageError(f"has {in_words(pixels.dtype)}, but {in_words(kind)} are needed; convert it")
    return pixels.astype(kind) if is_float(kind) else pixels.astype(kind) * np.array(257, kind)


def largest_kind(kinds: Iterable[np.dtype]) -> np.dtype:
    """Return the deepest of several kinds, a float if there is one."""
    return max(kinds, key=lambda kind: (is_float(kind), kind.itemsize), default=KINDS[0])


def in_words(kind: np.dtype) -> str:
    """Return a kind as messages and tables name it: 8 bits, 16 bits, float16 values."""
    return f"{kind} values" if is_float(kind) else f"{8 * kind.itemsize} bits"


def described(shape: tuple[int, ...]) -> str:
    """Return the channels of an array (H, W) or (H, W, C) as `Header.mode` names them."""
    channels = shape[2] if len(shape) == 3 else 1
    return {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")


def check_finite(pixels: np.ndarray) -> None:
    """Raise `ImageError` for NaN or inf."""
    if is_float(pixels.dtype) and not np.isfinite(pixels).all():
        raise ImageError("has values that are NaN or inf; replace them, or remove the image")


def opaque(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (H, W, 2 or 4) without their last channel, an alpha channel.

    Raises: ImageError if it is not opaque.
    """
    white = 1 if is_float(pixels.dtype) else np.iinfo(pixels.dtype).max
    if pixels[..., -1].min() < white:
        raise ImageError("has transparent pixels, which have no single colour; flatten it onto a background")
    return pixels[..., :-1]


def luma(pixels: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma (H, W, 1) of RGB, in Pillow's fixed-point arithmetic for 8 bits."""
    if is_float(pixels.dtype):
        return (pixels.astype(np.float32) @ np.array([[0.299], [0.587], [0.114]], np.float32)).astype(pixels.dtype)
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(pixels.dtype)[..., None]


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return pixels (H, W, C) with this number of channels: gray repeated for RGB, the luma of RGB for gray.

    Raises: ImageError for other numbers.
    """
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if (have, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if (have, channels) == (3, 1):
        return luma(pixels)
    swapped = "; are its axes (C, H, W)? (H, W, C) is needed" if pixels.shape[0] == channels else ""
    raise ImageError(
        f"has {have} channel{'s' * (have > 1)}, but {channels} {'are' if channels > 1 else 'is'} needed "
        f"(data.channels; of inputs, data.input_channels){swapped}"
    )


def to_unit(pixels: np.ndarray, range: Range = UNIT) -> np.ndarray:
    """Return pixels as float32 on the scale of networks."""
    if not is_float(pixels.dtype):
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    values, (low, high) = pixels.astype(np.float32), range
    return values if range == UNIT else (values - np.float32(low)) / np.float32(high - low)


def from_unit(image: np.ndarray, kind: np.dtype, range: Range = UNIT) -> np.ndarray:
    """Return an image (float32) on the scale of networks as pixels of a kind.

    Integers are clamped and rounded. Of floats, only those that float16 cannot hold are: it would make them inf.
    """
    if not is_float(kind):
        return np.round(np.clip(image, 0, 1) * np.float32(np.iinfo(kind).max)).astype(kind)
    low, high = range
    values = image if range == UNIT else image * np.float32(high - low) + np.float32(low)
    largest = np.finfo(kind).max
    return np.clip(values, -largest, largest).astype(kind)
