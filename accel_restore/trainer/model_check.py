"""A user's own model is tried before a run begins: what it cannot do is told while nothing is written yet."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_restore.config.schema import Config
from accel_restore.data.val_dataset import ValidationDataset
from accel_restore.errors import UserError
from accel_restore.metrics.protocol import Protocol
from accel_restore.models.spandrel_models import fits, probe_image
from accel_restore.utils.imports import describe_error
from accel_restore.utils.memory import is_out_of_memory

_SIZES = 8  # of validation images that are tried, the smallest


class Trial:
    """Tries a model on this rank's device, in the run's precision; the model is not to be used afterwards.

    Where memory does not suffice for a trial, nothing is told: training may take less.
    """

    def __init__(self, model: nn.Module, name: str, config: Config, accelerator: Accelerator):
        self.model, self.name, self.config, self.accelerator = model, name, config, accelerator

    def train(self) -> None:
        """A forward and a backward for each size of crops.

        Raises: UserError where the model makes no images of the right shape, or cannot be trained by them.
        """
        if any(isinstance(parameter, nn.UninitializedParameter) for parameter in self.model.parameters()):
            raise UserError(f"model: '{self.name}' has lazy layers, without weights as yet; give them their sizes")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError(f"model: '{self.name}' has no parameters to train")
        with _memory_permitting():
            self._train()
        self.model.zero_grad()

    def _train(self) -> None:
        data, layout = self.config.data, torch.contiguous_format
        if self.config.train.channels_last and not self.accelerator.is_fsdp2:
            layout = torch.channels_last
        with self._telling("be trained with train.channels_last"):
            self.model.to(self.accelerator.device, memory_format=layout).train()
        batch = 1 if 1 in (data.batch_size, *(stage.batch_size for stage in data.stages)) else 2
        for size in sorted(set(data.patch_sizes.values())):
            side = size // data.scale
            with self._telling(f"be trained on crops of {side}x{side}"):
                image = probe_image(data.channels, batch, side, side).to(memory_format=layout)
                output = self._output(self.model, image)
                output.float().sum().backward()
        unused = [name for name, own in self.model.named_parameters() if own.requires_grad and own.grad is None]
        if unused and self.accelerator.num_processes > 1 and not self.accelerator.is_fsdp2:
            raise UserError(
                f"model: its output does not depend on {', '.join(unused[:3])}{', ...' * (len(unused) > 3)}, which DDP "
                f"cannot train on several processes; leave such parameters out of '{self.name}', or name them in "
                "train.freeze"
            )

    @torch.no_grad()
    def restore(self, images: ValidationDataset, protocol: Protocol) -> None:
        """What validation does, for images as large as its smallest; the ranks share the sizes.

        Raises: UserError where the model makes no images of the right shape of them.
        """
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        sizes = {tuple(int(side) // images.scale for side in images.gt.sizes[image]) for image in images.images}
        restore = partial(protocol.output, self.model, scale=images.scale)
        with _memory_permitting():
            self.model.to(self.accelerator.device).eval()
            for height, width in sorted(sizes, key=math.prod)[:_SIZES][rank::ranks]:
                remedy = "; if it is the size, pad images in its forward"
                with self._telling(f"restore images of {width}x{height}, as validation has them", remedy):
                    self._output(restore, probe_image(self.config.data.channels, 1, height, width))
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # which the run reports as its own

    def _output(self, function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        image, scale = image.to(self.accelerator.device), self.config.data.scale
        version = image._version
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
    def _telling(self, what: str, remedy: str = "") -> Iterator[None]:
        """Within it, whatever the model raises becomes a `UserError`, but for want of memory."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"model: '{self.name}' cannot {what}: {describe_error(error)}{remedy}") from error


@contextmanager
def _memory_permitting() -> Iterator[None]:
    """What it holds ends where memory does not suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
