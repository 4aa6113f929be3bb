"""A user's own model is tried before a run begins: what it cannot do is told while nothing is written yet."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_restore.applying import is_out_of_memory
from accel_restore.config import Config
from accel_restore.data.whole import WholeImages
from accel_restore.errors import UserError
from accel_restore.models.recognised import fits, probe_image
from accel_restore.naming import told
from accel_restore.quality import Protocol

_SIZES = 8  # of validation images that are tried, the smallest


class Trial:
    """Tries a model on this rank's device, in the run's precision; the model is not to be used afterwards."""

    def __init__(self, model: nn.Module, name: str, config: Config, accelerator: Accelerator):
        self.name, self.config, self.accelerator = name, config, accelerator
        self.layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self.model = model

    def train(self) -> None:
        """A forward and a backward for each size of crops.

        Raises: UserError where the model makes no images of the right shape, or cannot be trained by them.
        """
        if any(isinstance(parameter, nn.UninitializedParameter) for parameter in self.model.parameters()):
            raise UserError(
                f"model: '{self.name}' has lazy layers, which have no weights yet; give them all their sizes"
            )
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError(f"model: '{self.name}' has no parameters to train")
        data = self.config.data
        self.model.to(self.accelerator.device, memory_format=self.layout).train()
        for size in sorted(set(data.patch_sizes.values())):
            side = size // data.scale
            with self._telling(f"be trained on crops of {side}x{side}"):
                output = self._output(self.model, 1 if data.batch_size == 1 else 2, side, side)
                output.float().sum().backward()
        unused = [name for name, own in self.model.named_parameters() if own.requires_grad and own.grad is None]
        if unused and self.accelerator.num_processes > 1:
            raise UserError(
                f"model: its output does not depend on {', '.join(unused[:3])}{', ...' * (len(unused) > 3)}, which "
                f"several processes cannot train together; leave such parameters out of '{self.name}', or name them in "
                "train.freeze"
            )

    @torch.no_grad()
    def restore(self, images: WholeImages, protocol: Protocol) -> None:
        """What validation does, for its smallest images.

        Raises: UserError where the model makes no images of the right shape of them.
        """
        self.model.eval()
        sizes = {tuple(int(side) // images.scale for side in images.gt.sizes[image]) for image in images.images}
        for height, width in sorted(sizes, key=math.prod)[:_SIZES]:
            with self._telling(f"restore images of {width}x{height}, as validation has them; pad them in its forward"):
                self._output(partial(protocol.output, self.model, scale=images.scale), 1, height, width)

    def _output(self, function: Callable[[Tensor], Tensor], *size: int) -> Tensor:
        image = probe_image(self.config.data.channels, *size).to(self.accelerator.device, memory_format=self.layout)
        version, scale = image._version, self.config.data.scale
        with self.accelerator.autocast():
            output = function(image)
        if not fits(output, image, scale):
            given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            wanted = (*image.shape[:2], *(side * scale for side in image.shape[2:]))
            raise UserError(
                f"model: '{self.name}' gives {given} for images of shape {tuple(image.shape)}; its forward must give "
                f"images of shape {wanted} (data.channels={image.shape[1]}, data.scale={scale})"
            )
        if image._version != version:
            raise UserError(f"model: '{self.name}' changes its input in place; let its forward leave it as it is")
        return output

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Within it, whatever the model raises becomes a `UserError`; for want of memory the trial is left out."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise UserError(f"model: '{self.name}' cannot {what}: {told(error)}") from error
