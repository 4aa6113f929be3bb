"""From best.safetensors to restored images: `accel_restore.load`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from accel_restore.errors import UserError
from accel_restore.models import build_model


class Restorer:
    """Restores images; `.model` is the float32 module in eval mode, (B, C, H, W) in [0, 1] to the same, not clamped.

    `.metadata` holds what was stored beside the weights, `.channels` the number of image channels, `.scale` how many
    times larger the output is.
    """

    def __init__(self, model: nn.Module, metadata: dict[str, Any], device: torch.device):
        self.model, self.metadata, self.device = model, metadata, device
        self.channels: int = metadata["data"]["channels"]
        self.scale: int = metadata["data"].get("scale", 1)

    def __call__(self, image: Image.Image | np.ndarray | Tensor) -> Image.Image | np.ndarray | Tensor:
        """The restored image, of the kind and type that was given, `scale` times as high and wide.

        Shapes: tensors (B, C, H, W) or (C, H, W), floats in [0, 1]; arrays (H, W) or (H, W, C), uint8, uint16 or floats
        in [0, 1]; 8-bit PIL images, restored as gray or RGB after EXIF orientation. Floats are clamped to [0, 1].

        Raises: TypeError for other kinds, ValueError for a wrong number of channels.
        """
        if isinstance(image, Tensor):
            if not image.is_floating_point():
                raise TypeError(f"a tensor must be of floats in [0, 1], not {image.dtype}")
            restored = self._restore(image if image.ndim == 4 else image[None]).to(image)
            return restored if image.ndim == 4 else restored[0]
        if isinstance(image, np.ndarray):
            return self._restore_array(image)
        if isinstance(image, Image.Image):
            if image.mode.startswith(("I", "F")):
                raise TypeError(f"PIL images of mode {image.mode} cannot be restored yet; give 8-bit ones or an array")
            upright = ImageOps.exif_transpose(image).convert("L" if self.channels == 1 else "RGB")
            return Image.fromarray(self._restore_array(np.asarray(upright)))
        raise TypeError(f"cannot restore a {type(image).__name__}; give a PIL image, a numpy array or a tensor")

    def _restore_array(self, array: np.ndarray) -> np.ndarray:
        if array.dtype in (np.uint8, np.uint16):
            white = np.iinfo(array.dtype).max
        elif np.issubdtype(array.dtype, np.floating):
            white = 1
        else:
            raise TypeError(f"an array must be of uint8, uint16, or floats in [0, 1], not {array.dtype}")
        if array.ndim not in (2, 3):
            raise ValueError(f"an array must be of shape (H, W) or (H, W, C), not {array.shape}")
        pixels = array[..., None] if array.ndim == 2 else array
        batch = torch.from_numpy(np.ascontiguousarray(pixels, np.float32) / np.float32(white)).permute(2, 0, 1)[None]
        output = self._restore(batch)[0].permute(1, 2, 0).cpu() * white
        restored = (output if white == 1 else output.round()).numpy().astype(array.dtype)
        return restored[..., 0] if array.ndim == 2 else restored

    @torch.inference_mode()
    def _restore(self, batch: Tensor) -> Tensor:
        if batch.ndim != 4 or batch.shape[1] != self.channels:
            raise ValueError(f"these weights restore {self.channels}-channel images, not shape {tuple(batch.shape)}")
        return self.model(batch.to(self.device, torch.float32)).clamp(0, 1)


def load(path: str | Path, device: str | torch.device = "cpu") -> Restorer:
    """The restorer in a best.safetensors file.

    Raises: UserError where the file is missing, damaged, or was not written by accel_restore.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; name the best.safetensors in it" if path.is_dir() else "does not exist"
        raise UserError(f"{path}: {what}")
    try:
        with safe_open(path, "pt") as file:
            stored = file.metadata() or {}
        weights = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from None
    try:
        model_info, data_info = json.loads(stored["model"]), json.loads(stored["data"])
        scores = json.loads(stored.get("metrics", "{}"))
        name, arguments, channels = str(model_info["name"]), dict(model_info["arguments"]), data_info["channels"]
        scale = data_info.get("scale", 1)
        if channels not in (1, 3) or scale not in (1, 2, 3, 4):
            raise ValueError(channels, scale)
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path}: holds no accel_restore model; use the best.safetensors of a run") from None
    if stored.get("sha256") not in (None, digest(weights)):
        raise UserError(f"{path}: is damaged (sha256 of the weights differs); copy it again")
    try:
        model = build_model(name, arguments, channels, scale)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit the model '{name}' ({error})") from None
    device = torch.device(device)
    metadata = {**stored, "model": model_info, "data": data_info, "metrics": scores}
    return Restorer(model.float().eval().to(device), metadata, device)


def digest(weights: dict[str, Tensor]) -> str:
    """The sha256 of the tensors' bytes in order of their names; safetensors loads a flipped bit without a word."""
    state = hashlib.sha256()
    for name in sorted(weights):
        state.update(name.encode())
        state.update(weights[name].contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
