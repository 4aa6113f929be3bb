"""Models that the optional library spandrel recognises by the names and shapes of their weights.

A file of such weights needs no arguments. The files that accel_restore writes for such a model can be read by all other
programs that use spandrel.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel_restore.errors import UserError

RECOGNISED = "spandrel"  # the name of such a model in best.safetensors


def recognise(weights: dict[str, Tensor]) -> tuple[nn.Module, int, int]:
    """Return the module of these weights in eval mode, the number of image channels, and the scale of its output.

    The module accepts images of any size. Its parameters keep the names of their own project.

    Raises: UserError if spandrel is not installed or does not know the model, or if the model needs more than an image
        in [0, 1].
    """
    try:
        import spandrel
    except ImportError:
        raise UserError(
            "needs the library spandrel to be recognised; run pip install 'accel-restore[spandrel]'"
        ) from None
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(weights)
    except spandrel.UnsupportedModelError:
        raise UserError("holds weights that spandrel does not recognise; set model.name to the model's class") from None
    what = f"is a {descriptor.architecture.name} model"
    channels, scale = descriptor.input_channels, descriptor.scale
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or channels != descriptor.output_channels:
        raise UserError(f"{what}, which does not map an image to an image with equal channels")
    _accept_any_size(descriptor)
    if not _is_plain(descriptor):
        raise UserError(f"{what}, which needs more than an image, such as a noise level, or returns more")
    return descriptor.model.eval(), channels, scale


class _AnySize(nn.Module):
    """A base class, inserted before a model's own, that pads images to an accepted size and crops the output to fit.

    A wrapping module would change the names of the parameters, by which the model is recognised.
    """

    accepted_sizes: Any  # spandrel's SizeRequirements
    times_larger: int

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        right, bottom = self.accepted_sizes.get_padding(width, height)
        mirrored_right, mirrored_bottom = min(right, width - 1), min(bottom, height - 1)
        x = F.pad(input, (0, mirrored_right, 0, mirrored_bottom), "reflect")
        x = F.pad(x, (0, right - mirrored_right, 0, bottom - mirrored_bottom), "replicate")
        return super().forward(x)[..., : height * self.times_larger, : width * self.times_larger]


def _accept_any_size(descriptor: Any) -> None:
    model = descriptor.model
    if not descriptor.size_requirements.none:
        model.__class__ = type(type(model).__name__, (_AnySize, type(model)), {})
        model.accepted_sizes, model.times_larger = descriptor.size_requirements, descriptor.scale


def _is_plain(descriptor: Any) -> bool:
    """Return whether the module alone gives the same output as spandrel, which adds what a model needs."""
    tried = copy.deepcopy(descriptor)  # a model may cache tensors for a size, in inference mode
    image = probe_image(descriptor.input_channels)
    expected = tried(image.clone())
    try:
        with torch.no_grad():
            output = tried.model(image.clone())
    except Exception:  # it lacks what spandrel adds
        return False
    return fits(output, image, descriptor.scale) and torch.allclose(output.clamp(0, 1), expected, atol=1e-4)


def probe_image(channels: int, batch: int = 1, height: int = 17, width: int = 13) -> Tensor:
    """Return the fixed images (batch, channels, height, width) with which models are tried."""
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def fits(output: object, image: Tensor, scale: int) -> bool:
    """Return whether a model's output is a tensor (B, C, H * scale, W * scale) for images (B, C, H, W)."""
    batch, channels, height, width = image.shape
    return isinstance(output, Tensor) and output.shape == (batch, channels, height * scale, width * scale)
