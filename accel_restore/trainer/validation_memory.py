"""The memory that validation needs, for the plan."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_restore.config.schema import Config
from accel_restore.data.val_dataset import ValidationDataset, ValidationSets
from accel_restore.errors import PART_ERRORS
from accel_restore.losses import Loss
from accel_restore.losses.map_mean import small_blocks
from accel_restore.metrics.protocol import Protocol
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.models import ImageSpec
from accel_restore.models.compile import force_eager
from accel_restore.models.probe import probe_image
from accel_restore.utils.launch import launch_or_alone
from accel_restore.utils.memory import LiveBytes, memory_bytes
from accel_restore.utils.words import counted

_FLOAT = 4  # bytes
_LEAST = 2**20  # pixels of images that are reported; smaller ones need no more memory than training
_PROBES = (64, 128)  # pixels of a side of the inputs that are measured
_SCORED = 128  # pixels of a side of the images whose scores are measured


@dataclass(frozen=True)
class Largest:
    """The largest batch of a validation set."""

    images: int
    height: int  # of gt
    width: int
    several: bool  # there are other batches: the next one is read while this one is processed

    @property
    def pixels(self) -> int:
        """The pixels of all gts."""
        return self.images * self.height * self.width

    @classmethod
    def of(cls, one: ValidationDataset, batch_size: int) -> "Largest":
        """Return the largest batch of a set."""
        groups, sizes = one.batches(batch_size), one.sizes()
        found = (cls(len(group), *sizes[group[0]], len(groups) > 1) for group in groups)
        return max(found, key=lambda largest: largest.pixels)


def validation_memory_rows(
    config: Config,
    accelerator: Accelerator,
    build: Callable[[], nn.Module],
    images: ValidationSets,
    protocols: SetProtocols,
    loss_fn: Loss,
) -> list[tuple[str, str]]:
    """Return the row of the plan with the memory that the largest validation image needs, and a note if it is too much.

    Losses, metrics and the model that `build` returns are measured on small images; the list is empty if one of them
    fails on these. It is not the model that is trained, which might be changed: some fit their weights to the first
    image. Images of less than a megapixel are not reported.
    """
    needs: list[tuple[float, Largest]] = []
    model: nn.Module | None = None
    for name, one in images.sets.items():
        largest, protocol = Largest.of(one, config.validation.batch_size), protocols.sets[name]
        if largest.pixels < _LEAST:
            continue
        try:
            model = build().to(accelerator.device).eval() if model is None else model
            work = max(
                _work_of_network(model, config.data.image_spec, accelerator, protocol, largest),
                _work_of_scores(config.data.image_spec, accelerator, protocol, loss_fn) * largest.pixels,
            )
        except PART_ERRORS:  # the user's own parts may accept only larger images
            return []
        needs.append((_held(config.data.image_spec, largest) + work, largest))
    if not needs:
        return []
    need, largest = max(needs, key=lambda item: item[0])
    images_in_words = f"{largest.width}x{largest.height}"
    if largest.images > 1:
        images_in_words = f"{counted(largest.images, 'image')} of {images_in_words}"
    rows = [("validation memory", f"about {_in_words(need)} for {images_in_words}, the largest")]
    free = _free(accelerator.device)
    if need > free:
        smaller = "validation.batch_size=1" if largest.images > 1 else "validation.tile (such as 512)"
        rows.append(("note", f"validation needs more memory than the {_in_words(free)} that are free; set {smaller}"))
    return rows


def _held(spec: ImageSpec, largest: Largest) -> float:
    """Return the bytes of input, enlarged input, output and gt, and of the next input and gt."""
    gt, input = spec.channels * largest.pixels, spec.input_channels * largest.pixels / spec.scale**2
    enlarged = spec.input_channels * largest.pixels if spec.scale > 1 else 0
    return _FLOAT * (2 * gt + input + enlarged + (gt + input) * largest.several)


def _work_of_network(
    model: nn.Module, spec: ImageSpec, accelerator: Accelerator, protocol: Protocol, largest: Largest
) -> float:
    """Return the peak bytes of tensors in a forward, without input and output; tiles are forwarded one by one."""

    def forward(side: int) -> int:
        image = probe_image(spec.input_channels, 1, side, side).to(accelerator.device)
        with accelerator.autocast(), force_eager():
            return _most(lambda: model(image))

    height, width = (side // spec.scale for side in (largest.height, largest.width))
    if protocol.tile is not None:
        height, width = min(height, protocol.tile), min(width, protocol.tile)
    copies = 3 * _FLOAT * spec.channels * largest.pixels if protocol.self_ensemble else 0
    return _slope(forward, _PROBES) * largest.images * height * width + copies


def _work_of_scores(spec: ImageSpec, accelerator: Accelerator, protocol: Protocol, loss_fn: Loss) -> float:
    """Return the peak bytes of tensors per pixel of gt while an image is scored."""

    def measured(score: Callable[[Tensor, Tensor], object]) -> float:
        def of(side: int) -> int:
            return _most(
                lambda: score(*(probe_image(spec.channels, 1, side, side).to(accelerator.device) for _ in "12"))
            )

        least = max(_SCORED, loss_fn.smallest_side, protocol.smallest_side)
        with small_blocks():  # a large image has many blocks, and the memory for one of them does not grow with it
            slope = _slope(of, (least, 2 * least))
        return slope - 2 * _FLOAT * spec.channels  # of the two images, which are held anyway

    maps = [2.0 * _FLOAT * spec.channels for metric in protocol.built.values() if metric.prepares]  # in float64
    others = [measured(protocol.scores[name]) for name, metric in protocol.built.items() if not metric.prepares]
    return max(measured(loss_fn.terms), *maps, *others)


def _slope(measure: Callable[[int], int], sides: tuple[int, int]) -> float:
    """Return the bytes per pixel. Taking a difference excludes memory that does not grow with the image."""
    small, large = map(measure, sides)
    return max(0, large - small) / (sides[1] ** 2 - sides[0] ** 2)


@torch.no_grad()
def _most(function: Callable[[], object]) -> int:
    with LiveBytes() as live:
        function()
    return live.most


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory_bytes() / launch_or_alone().local_world_size


def _in_words(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
