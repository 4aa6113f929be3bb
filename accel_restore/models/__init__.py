"""Models: plain modules that know nothing of training. A new one takes a file and a line in `registry.py`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.models.architectures import is_architecture
from accel_restore.registry import MODELS
from accel_restore.utils.imports import check_arguments, describe_error, resolve
from accel_restore.utils.words import counted

if TYPE_CHECKING:  # names are checked before torch is imported
    from torch import nn


MOST_CHANNELS = 2**16 - 1  # of an image; as many as a TIFF can have


class ImageSpec(NamedTuple):
    """The images that a model maps: (B, input_channels, H, W) to (B, channels, H * scale, W * scale)."""

    channels: int
    scale: int
    input_channels: int

    @classmethod
    def of(cls, channels: int, scale: int = 1, input_channels: int | None = None) -> ImageSpec:
        """Return the images with as many channels in the input as in the output, unless `input_channels` is given."""
        return cls(channels, scale, channels if input_channels is None else input_channels)

    @property
    def keeps_channels(self) -> bool:
        """Whether input and output have equal numbers of channels."""
        return self.input_channels == self.channels

    @property
    def in_words(self) -> str:
        """The numbers for a message: 3 channels and scale 2."""
        inputs = "" if self.keeps_channels else f" ({self.input_channels} in the input)"
        return f"{counted(self.channels, 'channel')}{inputs} and scale {self.scale}"


def build_model(
    name: str, arguments: dict[str, Any], channels: int, scale: int = 1, input_channels: int | None = None
) -> nn.Module:
    """Return a new module of the class that `name` stands for: a key of `MODELS`, an architecture
    of spandrel, or `package.module:Class`.

    `arguments` are its keyword parameters. A class with a parameter `channels` receives the number of image channels,
    one with a parameter `scale` the factor by which it enlarges, and one with a parameter `input_channels` the number
    of channels of the input; null: the same.

    Raises: UserError for a name that cannot be imported or is not a `torch.nn.Module`, and for invalid arguments.
    """
    from torch import nn

    images = ImageSpec.of(channels, scale, input_channels)
    if is_architecture(name):
        from accel_restore.models.build_spandrel import build_architecture

        return build_architecture(name, arguments, images)
    model_class = resolve(name, MODELS, "model.name")
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise UserError(f"model.name: '{name}' is not a torch.nn.Module class")
    parameters = inspect.signature(model_class).parameters
    given = dict(arguments)
    for key, value in images._asdict().items():
        if key in arguments:
            raise UserError(f"model.{key}: unknown key; set data.{key}, from which the model takes it")
        if key in parameters:
            given[key] = value
    if scale > 1 and "scale" not in parameters:
        raise UserError(f"data.scale: {scale}, but the model '{name}' cannot enlarge (it has no parameter scale)")
    if not images.keeps_channels and "channels" in parameters and "input_channels" not in parameters:
        raise UserError(
            f"data.input_channels: {images.input_channels}, but the model '{name}' has no parameter input_channels; "
            f"its input has data.channels={channels} channels, as its output"
        )
    check_arguments(model_class, given, "model")
    try:
        return model_class(**given)
    except UserError:
        raise
    except PART_ERRORS as error:  # a user's own class may raise anything
        raise UserError(f"model: {name} cannot be built: {describe_error(error)}") from error
