"""Models that spandrel, an optional library, recognises by their weights: names and shapes tell the architecture.

So such a file needs no arguments beside it, and one that we write is read by whatever else reads spandrel's.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel_restore.errors import UserError

RECOGNISED = "spandrel"  # the name of such a model in best.safetensors


def recognise(weights: dict[str, Tensor]) -> tuple[nn.Module, int, int]:
    """The module of these weights, in eval mode; the number of image channels; how many times larger its output is.

    It takes images of any size, and its parameters have the names of its own project.

    Raises: UserError where spandrel is missing, knows no such model, or it needs more than an image in [0, 1].
    """
    try:
        import spandrel
    except ImportError:
        raise UserError("needs the library spandrel to be recognised; pip install 'accel-restore[spandrel]'") from None
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(weights)
    except spandrel.UnsupportedModelError:
        raise UserError("holds weights of no model that spandrel recognises; name its class as model.name") from None
    what = f"is a model of the kind {descriptor.architecture.name}"
    channels, scale = descriptor.input_channels, descriptor.scale
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or channels != descriptor.output_channels:
        raise UserError(f"{what}, which does not make an image of equal channels from an image alone")
    _take_any_size(descriptor)
    if not _is_plain(descriptor):
        raise UserError(f"{what}, which needs more than an image, such as a noise level, or gives more")
    return descriptor.model.eval(), channels, scale


class _OfAnySize:
    """A base class put before a model's own, which pads images to what it demands and cuts its output to fit.

    A module around it would change the names of its parameters, which are what it is recognised by.
    """

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        right, bottom = self.accepted_sizes.get_padding(width, height)
        mirrored_right, mirrored_bottom = min(right, width - 1), min(bottom, height - 1)
        x = F.pad(input, (0, mirrored_right, 0, mirrored_bottom), "reflect")
        x = F.pad(x, (0, right - mirrored_right, 0, bottom - mirrored_bottom), "replicate")
        return super().forward(x)[..., : height * self.times_larger, : width * self.times_larger]


def _take_any_size(descriptor) -> None:
    model = descriptor.model
    if not descriptor.size_requirements.none:
        model.__class__ = type(type(model).__name__, (_OfAnySize, type(model)), {})
        model.accepted_sizes, model.times_larger = descriptor.size_requirements, descriptor.scale


def _is_plain(descriptor) -> bool:
    """Whether the module alone gives what spandrel makes of it, which knows its peculiarities."""
    tried = copy.deepcopy(descriptor)  # a model may keep what it computes for a size, in inference mode
    image = probe_image(descriptor.input_channels)
    expected = tried(image.clone())
    try:
        with torch.no_grad():
            output = tried.model(image.clone())
    except Exception:  # for want of what spandrel adds
        return False
    return fits(output, image, descriptor.scale) and torch.allclose(output.clamp(0, 1), expected, atol=1e-4)


def probe_image(channels: int, batch: int = 1, height: int = 17, width: int = 13) -> Tensor:
    """Images (batch, channels, height, width) to try a model with, always the same."""
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def fits(output: object, image: Tensor, scale: int) -> bool:
    """Whether a model's output is the images (B, C, H * scale, W * scale)."""
    batch, channels, height, width = image.shape
    return isinstance(output, Tensor) and output.shape == (batch, channels, height * scale, width * scale)
