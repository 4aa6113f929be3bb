"""Apply a network to images of any size: precision, tile size, and smaller tiles when memory runs out.

The images stay where they are, usually on the host; the network's device holds one batch of tiles at a time.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from accel_restore.errors import UserError
from accel_restore.models import ImageSpec
from accel_restore.models.tiling import GRID, cuts, self_ensemble, tiled
from accel_restore.utils.launch import launch_or_alone
from accel_restore.utils.memory import LiveBytes, is_out_of_memory, memory_bytes

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PROBES = (64, 128)  # pixels of a side of the images that memory is measured with
_SHARE = 0.5  # of the free memory for the network's tensors; the scratch memory of kernels is not measured
_FLOAT = 4  # bytes

Advance = Callable[[float], None]  # receives the share of an image restored since the last call


@dataclass(frozen=True)
class Settings:
    """How images are restored. Raises: ValueError for invalid values."""

    tile: int | Literal["auto"] | None = (
        "auto"  # pixels of input; None: the whole image; auto: tiles if memory is short
    )
    tile_overlap: int = 64
    self_ensemble: bool = False  # the mean over 8 flips and rotations
    precision: str = "no"  # no | bf16 | fp16, of the network
    batch: int = 1  # tiles per forward

    def __post_init__(self) -> None:
        least = self.tile_overlap + GRID
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}: must be one of {', '.join(PRECISIONS)}")
        if self.tile_overlap < 0 or self.batch < 1:
            raise ValueError("tile_overlap must be at least 0, and batch at least 1")
        if self.tile not in (None, "auto") and not (isinstance(self.tile, int) and self.tile >= least):
            raise ValueError(f"tile={self.tile!r}: must be None, 'auto', or at least {least}")


class NonFiniteError(UserError):
    """The output of a network holds NaN or inf, so it is no image."""


def finite(output: Tensor, precision: str) -> Tensor:
    """Return the output of a network, unchanged. Raises: NonFiniteError if it holds NaN or inf."""
    if output.numel() == 0 or all(map(math.isfinite, output.detach().aminmax())):
        return output
    remedy = {
        "fp16": "fp16 overflows above 65,504; use another precision (--precision bf16 or --precision no)",
        "bf16": "bf16 may have overflowed; use float32 (--precision no)",
    }.get(precision, "the weights are damaged, or their training diverged; use another file of weights")
    raise NonFiniteError(f"the network's output is NaN or inf: {remedy}")


class ModelRunner:
    """Applies a network to images (B, C, H, W) in [0, 1]; the output is `scale` times as high and wide."""

    def __init__(self, model: nn.Module, images: ImageSpec, device: torch.device, channels_last: bool = False):
        """`channels_last`: memory layout of the network's input, in which convolutions are faster."""
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model, self.images, self.scale, self.device = model, images, images.scale, device
        self._bytes_per_pixel: dict[str, float] = {}  # by precision

    @torch.inference_mode()
    def __call__(self, images: Tensor, settings: Settings, advance: Advance | None = None) -> Tensor:
        """Return the float32 output, on the device of `images`.

        Raises: UserError if memory is too small even for the smallest tiles; NonFiniteError if the output is NaN or
            inf.
        """
        tile = self.choose_tile(images, settings)
        while True:
            try:
                return finite(self._output(images, tile, settings, advance), settings.precision)
            except RuntimeError as error:  # OutOfMemoryError is a RuntimeError
                if not is_out_of_memory(error):
                    raise
                tile = smaller_tile(tile or max(images.shape[-2:]), settings.tile_overlap)
                if tile is None:
                    raise UserError(
                        "out of memory, even with small tiles; free memory, lower the tile overlap, or use another "
                        "device"
                    ) from error
            gc.collect()  # outside the handler, whose traceback holds the tensors of the failed attempt
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def choose_tile(self, images: Tensor, settings: Settings) -> int | None:
        """Return the first tile size to try, None for the whole image."""
        if settings.tile != "auto":
            return settings.tile
        batch, _, height, width = images.shape
        if batch * height * width <= _PROBES[1] ** 2:
            return None
        try:
            each = self.bytes_per_pixel(settings.precision)
        except Exception:  # a user's network may not take images of that size; try the whole image
            return None
        pixels = _SHARE * self._free_bytes(images, settings) / each
        if batch * height * width <= pixels:
            return None
        side = int((max(pixels, 0) / (batch * settings.batch)) ** 0.5) // GRID * GRID
        return max(side, settings.tile_overlap + GRID, 2 * settings.tile_overlap)

    def bytes_per_pixel(self, precision: str) -> float:
        """Return the peak bytes of the network's tensors per input pixel, measured on small images."""
        if precision not in self._bytes_per_pixel:
            counted = []
            for side in _PROBES:
                with torch.inference_mode(), LiveBytes() as live:
                    self._network(torch.full((1, self.images.input_channels, side, side), 0.5), precision)
                counted.append(live.most)
            # The difference excludes what does not grow with the image, such as weights cast to bf16.
            self._bytes_per_pixel[precision] = (counted[1] - counted[0]) / (_PROBES[1] ** 2 - _PROBES[0] ** 2)
        return self._bytes_per_pixel[precision]

    def _free_bytes(self, images: Tensor, settings: Settings) -> float:
        """Return the free memory for the network's tensors; on the host, without the images themselves."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        copies = 3 if settings.self_ensemble else 2  # of the output: sums, mean of the flips, result
        output = images.numel() // self.images.input_channels * self.images.channels * self.scale**2
        own = (images.numel() + copies * output) * _FLOAT
        return memory_bytes() / launch_or_alone().local_world_size - own

    def _output(self, images: Tensor, tile: int | None, settings: Settings, advance: Advance | None) -> Tensor:
        def network(part: Tensor) -> Tensor:
            output = self._network(part, settings.precision)
            if advance is not None:
                advance(part[:, 0].numel() / total)
            return output

        height, width = images.shape[-2:]
        total = images.shape[0] * _seen(height, tile, settings) * _seen(width, tile, settings)
        total *= 8 if settings.self_ensemble else 1
        run = network
        if tile is not None:
            run = partial(
                tiled, network, tile=tile, overlap=settings.tile_overlap, scale=self.scale, batch=settings.batch
            )
        return self_ensemble(run, images) if settings.self_ensemble else run(images)

    def _network(self, images: Tensor, precision: str) -> Tensor:
        dtype = PRECISIONS[precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.model(images.to(self.device, memory_format=self.layout)).to(images.device, torch.float32)


def _seen(side: int, tile: int | None, settings: Settings) -> int:
    """Return the number of pixels of a side that the network sees; shared pixels count more than once."""
    return sum(end - start for start, end in cuts(side, tile or side, settings.tile_overlap))


def smaller_tile(tile: int, overlap: int) -> int | None:
    """Return half of a tile, at least the smallest that the overlap allows; None if there is no smaller one."""
    half = max(tile // 2 // GRID * GRID, overlap + GRID)
    return half if half < tile else None
