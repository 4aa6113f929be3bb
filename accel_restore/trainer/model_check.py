"""Try a user's own model before the run writes anything, and report what it cannot do."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_restore.config.schema import Config
from accel_restore.data.previews import Previews
from accel_restore.data.val_dataset import ValidationDataset, ValidationSets
from accel_restore.errors import UserError
from accel_restore.metrics.protocol import Protocol
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.models.probe import fits, probe_image
from accel_restore.utils.memory import is_out_of_memory
from accel_restore.utils.own_code import reporting

_SIZES = 8  # the number of validation image sizes that are tried, smallest first


class Trial:
    """Tries a model on this rank's device, in the run's precision. The model must not be used afterwards.

    A trial that runs out of memory reports nothing, as training may need less.
    """

    def __init__(self, model: nn.Module, name: str, config: Config, accelerator: Accelerator):
        self.model, self.name, self.config, self.accelerator = model, name, config, accelerator
        self.cannot = f"model: '{name}' cannot"  # how a report starts

    def train(self) -> None:
        """Run forward and backward for each crop size.

        Raises: UserError if the output has a wrong shape, or the model cannot be trained on such crops.
        """
        if any(nn.parameter.is_lazy(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())):
            raise UserError(f"model: '{self.name}' has lazy layers without sizes; give them their sizes")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError(f"model: '{self.name}' has no parameters to train")
        before = _stored(self.model)
        with _memory_permitting():
            self._train()
        self.model.zero_grad()
        after = _stored(self.model)
        if changed := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
            raise UserError(
                f"model: '{self.name}' adds, removes or resizes {', '.join(changed[:3])} in its forward, so its "
                "weights could not be loaded again; create parameters and buffers in __init__, or register a buffer "
                "that depends on the image with persistent=False"
            )

    def _train(self) -> None:
        data, layout = self.config.data, torch.contiguous_format
        if self.config.train.channels_last and not self.accelerator.is_fsdp2:
            layout = torch.channels_last
        with reporting(f"{self.cannot} be trained with train.channels_last"):
            self.model.to(self.accelerator.device).to(memory_format=layout).train()
        batch = 1 if 1 in (data.batch_size, *(stage.batch_size for stage in data.stages)) else 2
        for size in sorted(set(data.patch_sizes.values())):
            side = size // data.scale
            remedy = "; if the memory layout is the cause, set train.channels_last=false"
            with reporting(
                f"{self.cannot} be trained on crops of {side}x{side}", remedy * (layout is torch.channels_last)
            ):
                image = probe_image(data.image_spec.input_channels, batch, side, side).to(memory_format=layout)
                output = self._output(self.model, image)
                output.float().sum().backward()
        self._check_unused()

    def _check_unused(self) -> None:
        unused = [name for name, own in self.model.named_parameters() if own.requires_grad and own.grad is None]
        if unused and self.accelerator.num_processes > 1 and not self.accelerator.is_fsdp2:
            raise UserError(
                f"model: the output of '{self.name}' does not depend on {', '.join(unused[:3])}"
                f"{', ...' * (len(unused) > 3)}; DDP cannot train such parameters on several processes: remove them, "
                "or name them in train.freeze"
            )

    @torch.no_grad()
    def restore(
        self, images: ValidationDataset | Previews, protocol: Protocol, what: str = "validation images"
    ) -> None:
        """Run what validation does, on the smallest sizes of its images; the ranks share the sizes.

        Raises: UserError if the output has a wrong shape.
        """
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        sizes = {(height // images.scale, width // images.scale) for height, width in images.sizes()}
        restore = partial(protocol.output, self.model, scale=images.scale)
        with _memory_permitting():
            self.model.to(self.accelerator.device).eval()
            for height, width in sorted(sizes, key=math.prod)[:_SIZES][rank::ranks]:
                remedy = "; if the size is the cause, pad images in the model's forward"
                with reporting(f"{self.cannot} restore {what} of {width}x{height}", remedy):
                    self._output(restore, probe_image(self.config.data.image_spec.input_channels, 1, height, width))
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # which the run reports as its own

    def _output(self, function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        image, images = image.to(self.accelerator.device), self.config.data.image_spec
        version = image._version
        with self.accelerator.autocast():
            output = function(image)
        if not fits(output, image, images):
            given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            wanted = (len(image), images.channels, *(side * images.scale for side in image.shape[2:]))
            inputs = "" if images.keeps_channels else f", data.input_channels={images.input_channels}"
            raise UserError(
                f"model: '{self.name}' returns {given} for images of shape {tuple(image.shape)}; its forward must "
                f"return images of shape {wanted} (data.channels={images.channels}{inputs}, data.scale={images.scale})"
            )
        if image._version != version:
            raise UserError(f"model: '{self.name}' changes its input in place; its forward must leave it unchanged")
        return output


def try_on_images(
    protocols: SetProtocols,
    images: ValidationSets,
    previews: Previews | None,
    trial: Trial | None,
    accelerator: Accelerator,
) -> None:
    """Try the metrics and a model of the user's own on the sizes of the images that a run restores; on all ranks."""
    for name, one in images.sets.items():
        protocols.sets[name].try_own(accelerator.device, [min(one.sizes(), key=math.prod)])
        if trial is not None:
            trial.restore(one, protocols.sets[name])
    if trial is not None and previews is not None:
        trial.restore(previews, protocols.whole, "previews")


def check_copy(model: nn.Module, second: nn.Module, name: str) -> None:
    """Raise `UserError` if `second`, built like the model, cannot hold averages or full copies of its weights."""
    if _stored(model) != _stored(second):
        raise UserError(
            f"model: '{name}' differs each time it is built; build equal layers, or set train.ema_decay=null"
        )
    own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if shared := [key for key, parameter in second.named_parameters() if id(parameter) in own]:
        raise UserError(
            f"model: '{name}' shares {', '.join(shared[:3])}{', ...' * (len(shared) > 3)} between all its instances; "
            "create its layers in __init__, or set train.ema_decay=null"
        )


def _stored(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the tensors that are saved, by name."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@contextmanager
def _memory_permitting() -> Iterator[None]:
    """Suppress out-of-memory errors."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
