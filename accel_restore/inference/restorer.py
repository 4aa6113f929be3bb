"""`accel_restore.load`: a best.safetensors file as a function that restores images."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from accel_restore.data.decode import read_pil
from accel_restore.data.image_formats import ImageError
from accel_restore.data.pixels import UNIT, Pixels, Range, from_unit, is_float, luma, to_unit
from accel_restore.errors import UserError
from accel_restore.inference.apply import Advance, ModelRunner, Settings
from accel_restore.inference.picture import with_metadata
from accel_restore.models.load_weights import load_module
from accel_restore.models.weights_file import find_weights, image_spec
from accel_restore.registry import MODELS

_MAX_FLOAT = 10.0  # noise may take floats out of [0, 1], but not beyond this value


class Restorer:
    """Restores images.

    `.model` is the float32 module in eval mode; it takes (B, C, H, W) in [0, 1], and its output is not clamped.
    `.pixels` are the kinds of pixels that the weights were trained on, with their range.
    `.metadata` is the metadata of the weights, `.channels` the number of channels of the output, `.input_channels` that
    of the input, `.scale` the upscaling factor.
    """

    def __init__(self, model: nn.Module, metadata: dict[str, Any], device: torch.device):
        self.model, self.metadata, self.device = model, metadata, device
        self.images = image_spec(metadata["data"])
        self.channels, self.scale, self.input_channels = self.images
        self.pixels = Pixels.from_metadata(metadata["data"])
        ours = metadata["model"]["name"] in MODELS  # other models may not support another layout
        self._apply = ModelRunner(model, self.images, device, channels_last=ours)

    def __repr__(self) -> str:
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"Restorer({self.metadata['model']['name']}, {weights:,} weights, channels={self.channels}, "
            + ("" if self.images.keeps_channels else f"input_channels={self.input_channels}, ")
            + f"scale={self.scale}, device={str(self.device)!r})"
        )

    def __call__(
        self,
        image: Image.Image | np.ndarray | Tensor,
        *,
        tile: int | Literal["auto"] | None = "auto",
        tile_overlap: int = 64,
        self_ensemble: bool = False,
        precision: str = "no",
        batch: int = 1,
    ) -> Image.Image | np.ndarray | Tensor:
        """Return the restored image, of the same type and dtype as `image`, `scale` times as high and wide.

        `tile`: side in pixels of the input tiles, which share `tile_overlap` pixels and are blended there; None: the
        whole image; "auto": tiles if memory is short. `batch`: tiles per forward. `self_ensemble`: the mean over 8
        flips and rotations. `precision` of the network: "no", "bf16" or "fp16".

        Images have `input_channels` channels; the result has `channels`. Those of PIL have 1 or 3, or become so.

        Shapes: tensors (B, C, H, W) or (C, H, W), floats; arrays (H, W) or (H, W, C), uint8, uint16 or floats; 8-bit
        PIL images, restored as gray or RGB after EXIF orientation; 16-bit gray PIL images ("I;16"), which stay 16-bit
        gray (the luma of the output if the weights are for colour). The rules for PIL images are those for files:
        transparent pixels and CMYK are refused. `save` of the result keeps the original's metadata.

        Units: float arrays are in those of `data.range` of the training, by default [0, 1]. Tensors are on the scale of
        the network, on which [0, 1] stands for this range. Integers are divided by their largest value.
        Float input may exceed [0, 1] slightly, as noise does; the output is clamped, unless gt had float pixels. If gt
        had floats and the input integers, or the reverse, an array becomes one of the kind of gt.

        Raises: TypeError for other types; ValueError for a wrong number of channels, transparency, invalid options,
            NaN or inf, or floats far outside [0, 1], such as 0 to 255; UserError if the network's output is NaN or inf.
        """
        settings = Settings(tile, tile_overlap, self_ensemble, precision, batch)
        if isinstance(image, Tensor | np.ndarray):
            self.check_values(image, UNIT if isinstance(image, Tensor) else self.pixels.range)
        if isinstance(image, Tensor):
            if not image.is_floating_point():
                raise TypeError(f"a tensor must hold floats in [0, 1], not {image.dtype}")
            restored = self.restore(image if image.ndim == 4 else image[None], settings).to(image)
            return restored if image.ndim == 4 else restored[0]
        if isinstance(image, np.ndarray):
            return self._restore_array(image, settings)
        if isinstance(image, Image.Image):
            return self._restore_picture(image, settings)
        raise TypeError(f"cannot restore a {type(image).__name__}; give a PIL image, a numpy array or a tensor")

    def _restore_picture(self, image: Image.Image, settings: Settings) -> Image.Image:
        if image.mode.startswith(("I", "F")) and not image.mode.startswith("I;16"):
            raise TypeError(f"PIL images of mode {image.mode} cannot be restored; give 8-bit or I;16 ones, or an array")
        if not {self.channels, self.input_channels} <= {1, 3}:
            raise TypeError(f"a PIL image has 1 or 3 channels, but {self._in_words}; give an array or a tensor")
        try:
            pixels, orientation = read_pil(image, self.input_channels)
        except ImageError as error:
            raise ValueError(f"the image {error}") from None
        if is_float(self.pixels.kind_of_output(pixels.dtype)):
            raise TypeError("these weights make float images, which PIL images cannot hold; give an array or a tensor")
        restored = self._restore_array(pixels, settings)
        if restored.dtype == np.uint16 and self.channels == 3:  # Pillow has no 16-bit RGB
            restored = luma(restored)
        picture = Image.fromarray(restored[..., 0] if restored.shape[2] == 1 else restored)
        return with_metadata(picture, image, orientation, self.scale)

    def _restore_array(self, array: np.ndarray, settings: Settings) -> np.ndarray:
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype not in (np.uint8, np.uint16) and not np.issubdtype(array.dtype, np.floating):
            raise TypeError(
                f"an array must hold uint8, uint16, or floats in {_text(self.pixels.range)}, not {array.dtype}"
            )
        if array.ndim not in (2, 3):
            raise ValueError(f"an array must have shape (H, W) or (H, W, C), not {array.shape}")
        pixels = array[..., None] if array.ndim == 2 else array
        batch = torch.from_numpy(np.ascontiguousarray(to_unit(pixels, self.pixels.range))).permute(2, 0, 1)[None]
        output = self.restore(batch, settings)[0].permute(1, 2, 0).cpu().numpy()
        restored = from_unit(output, self.pixels.kind_of_output(array.dtype), self.pixels.range)
        return restored[..., 0] if array.ndim == 2 and self.channels == 1 else restored

    @property
    def _in_words(self) -> str:
        more = "" if self.images.keeps_channels else f", as {self.channels}-channel images"
        return f"these weights restore {self.input_channels}-channel images{more}"

    def restore(
        self, images: Tensor, settings: Settings, advance: Advance | None = None, clamp: bool | None = None
    ) -> Tensor:
        """Return float32 restored images (B, C, H, W), on the device of `images`; see `__call__`.

        `clamp` to [0, 1]; None: unless gt had float pixels.
        """
        if 0 in images.shape:
            raise ValueError(f"the image is empty, of shape {tuple(images.shape)}; give one with pixels")
        if images.ndim != 4 or images.shape[1] != self.input_channels:
            raise ValueError(f"{self._in_words}, not shape {tuple(images.shape)}")
        output = self._apply(images.to(torch.float32), settings, advance)
        return output.clamp(0, 1) if (not is_float(self.pixels.gt) if clamp is None else clamp) else output

    def check_values(self, image: Tensor | np.ndarray, range: Range) -> None:
        """Raise ValueError for NaN or inf, and for floats far outside the range, such as 255 or 65535.

        The weights may have been trained on floats; then they may be far outside.
        """
        floats = image.is_floating_point() if isinstance(image, Tensor) else np.issubdtype(image.dtype, np.floating)
        if not floats or 0 in image.shape:
            return
        (low, high), lowest, largest = range, float(image.min()), float(image.max())  # NaN if there is one
        if not (math.isfinite(lowest) and math.isfinite(largest)):
            raise ValueError(f"the image holds NaN or inf; give floats in {_text(range)}")
        if is_float(self.pixels.input):
            return
        room, must = _MAX_FLOAT * (high - low), f"floats must be in {_text(range)}, but the"
        if largest > low + room:
            remedy = "divide by 255 or 65535" if range == UNIT else f"scale them to {_text(range)}"
            raise ValueError(f"{must} largest is {largest:g}; {remedy}")
        if lowest < low - room:
            raise ValueError(f"{must} smallest is {lowest:g}; scale them to {_text(range)}")


def _text(range: Range) -> str:
    return f"[{range[0]:g}, {range[1]:g}]"


def load(path: str | Path, device: str | torch.device = "cpu", *, model: nn.Module | None = None) -> Restorer:
    """Return the restorer of a best.safetensors file.

    With `model`, the weights are loaded into this module, whose names and shapes must be those of the file. It becomes
    the restorer's model. A model that was given to `fit` as an object needs it, unless its class builds the same model
    without arguments.

    If `path` does not exist and has the form owner/name, the file comes from that repository of the Hugging Face Hub,
    where `accel-restore push` puts it.

    The file is not trusted. It may name any importable model class, so that your own models work, but only a
    `torch.nn.Module` class is called, and only if its tensors are no larger than those of the file.

    `load` and the restorer leave the settings that `fit` lists as they are, random numbers too.

    Raises: UserError if the file is missing, damaged, not available from the Hub, not from accel_restore, or does not
        fit `model`; TypeError if `model` is no module.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module object, not {model!r:.100}")
    try:
        with torch.random.fork_rng(devices=[]):  # a new module draws its weights, which the file's then replace
            loaded, info = load_module(find_weights(path), model)
        return Restorer(loaded.to(device), info, torch.device(device))
    except UserError as error:
        raise UserError(f"{path!s:.500}: {error}") from error.__cause__
