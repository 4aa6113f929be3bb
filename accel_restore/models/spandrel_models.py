"""Networks of the library spandrel, made ready for images of any size.

Their parameters keep the names of their own projects, so all other programs that use spandrel read the files too.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from accel_restore.errors import UserError
from accel_restore.models import ImageSpec
from accel_restore.models.branches import keep_training_branches
from accel_restore.models.probe import fits, probe_image

RECOGNISED = "spandrel"  # the name in best.safetensors of a model that its weights alone describe
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)  # pixels, by which a network's window or stride may divide an image


def recognise(weights: dict[str, Tensor]) -> tuple[nn.Module, ImageSpec]:
    """Return the module of these weights in eval mode, and the images that it maps.

    The module accepts images of any size.

    Raises: UserError if spandrel does not know the model, or if the model needs more than an image in [0, 1].
    """
    try:
        import spandrel
    except ImportError:
        raise UserError(
            "needs the library spandrel to be recognised; run pip install 'accel-restore[spandrel]'"
        ) from None
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(dict(weights))
    except spandrel.UnsupportedModelError:
        raise UserError("holds weights that spandrel does not recognise; set model.name to the model's class") from None
    what = f"is a {descriptor.architecture.name} model"
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise UserError(f"{what}, which does not map an image to an image")
    model = descriptor.model.eval()
    images = ImageSpec(descriptor.output_channels, descriptor.scale, descriptor.input_channels)
    try:
        network = accept_any_size(model, images, _fit(descriptor))
        if not _is_plain(network, images.input_channels):
            raise ValueError("adds what the network needs")
    except ValueError:
        raise UserError(f"{what}, which needs more than an image, such as a noise level, or returns more") from None
    keep_training_branches(model, images.input_channels)
    call_in_batches_if_equal(network, images.input_channels)
    return model, images


def find_fit(model: nn.Module, scale: int) -> "Fit | None":
    """Return what spandrel knows of a network that is one of its own, by its weights; None if it cannot tell.

    Raises: ValueError if the network needs more than an image.
    """
    from spandrel import ImageModelDescriptor

    try:
        with torch.random.fork_rng(devices=[]):  # it builds the network a second time
            descriptor = _architecture(model).load(model.state_dict())
    except Exception:  # of any type: its rules cover the published arguments
        return None
    if not isinstance(descriptor, ImageModelDescriptor):
        raise ValueError("needs more than an image")
    return replace(_fit(descriptor), scale=scale)


def _fit(descriptor: Any) -> "Fit":
    sizes = descriptor.size_requirements
    return Fit(sizes.minimum, sizes.multiple_of, sizes.square, descriptor.scale, descriptor._call_fn)


@torch.no_grad()
def _is_plain(model: "AnyImage", input_channels: int) -> bool:
    """Return whether the network alone gives the same output as spandrel, which adds what a network needs."""
    image, with_additions = probe_image(input_channels), model.fit
    model.fit = replace(with_additions, call=_call)
    try:
        output = model(image)
    except Exception:  # of any type: it lacks what spandrel adds
        return False
    finally:
        model.fit = with_additions
    return torch.allclose(output, model(image), atol=1e-4)


def convert_names(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights by the names of the network, where its project or an older version of it has others."""
    architecture = _architecture(model)
    if not weights.keys() - model.state_dict().keys() or not architecture.detect(weights):
        return weights
    try:
        with torch.random.fork_rng(devices=[]):
            return architecture.load(dict(weights)).model.state_dict()
    except Exception:  # of any type: the weights may be of a third network
        return weights


def _architecture(model: nn.Module) -> Any:
    """Return spandrel's description of the architecture of one of its networks."""
    from spandrel import Architecture

    package = importlib.import_module(type(model).__module__.partition(".__arch")[0])
    (kind,) = (
        entry for entry in vars(package).values()
        if isinstance(entry, type) and issubclass(entry, Architecture) and entry.__module__ == package.__name__
    )  # fmt: skip
    return kind()


@torch.no_grad()
def call_in_batches_if_equal(model: "AnyImage", input_channels: int) -> None:
    """Call the network with one image at a time if a batch of several fails or gives another output in eval mode."""
    images = probe_image(input_channels, batch=2)
    expected = torch.cat([model(image) for image in images.split(1)])
    try:
        is_equal = torch.allclose(model(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    except Exception:  # of any type
        is_equal = False
    model.fit = replace(model.fit, is_batched=is_equal)


_SET_VALUES = {
    getattr(torch.Tensor, name)
    for name in ("add_", "clamp_", "copy_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_")
} | {function for name, function in vars(nn.init).items() if name.endswith("_") and callable(function)}


class _Mixed(TorchFunctionMode):
    """Let networks that read values while they are built do so without memory for their tensors.

    A list of rates is computed on the CPU, and what meets a tensor without values loses its own. What only sets values
    is left out: on tensors without values it would take most of the time.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target = next(iter((*args, *(kwargs or {}).values())), None)
        if func in _SET_VALUES and isinstance(target, Tensor) and target.is_meta:
            return target
        kwargs = {**(kwargs or {}), **({"device": "cpu"} if func is torch.linspace else {})}
        kinds = {leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if len(kinds) > 1:
            args, kwargs = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def skeleton_device() -> Iterator[None]:
    """Build models without values: their tensors have shapes, and take no memory."""
    with torch.device("meta"), _Mixed():
        yield


def _call(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return model(images)


@dataclass(frozen=True)
class Fit:
    """How a network is called with images: the sizes it accepts, its scale, and what spandrel adds to its input."""

    minimum: int = 0
    multiple: int = 1
    square: bool = False
    scale: int = 1
    call: Callable[[Any, Tensor], Tensor] = _call
    is_batched: bool = True  # `call` is given all images of a batch at once; spandrel calls networks with one image

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest accepted height and width for an image of this size, or symbols while exporting."""
        sides = [torch.sym_max(side, self.minimum) + self.multiple - 1 for side in (height, width)]
        if self.square:
            sides = [torch.sym_max(*sides)] * 2
        down, right = (side // self.multiple * self.multiple for side in sides)
        return down, right  # type: ignore[return-value]  # symbols act like numbers


class _Original:
    """A network as its project wrote it: called without padding, and otherwise the network."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any]) -> None:
        self._model, self.forward = model, forward

    def __call__(self, *inputs: Any) -> Tensor:
        output = self.forward(*inputs)
        if not isinstance(output, Tensor):
            raise TypeError(f"returns a {type(output).__name__}, not an image")
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class AnyImage(nn.Module):
    """A base class, inserted before a network's own, that pads images to an accepted size and crops the output to fit.

    A wrapping module would change the names of the parameters, by which the network is recognised.
    """

    fit: Fit

    def forward(self, input: Tensor) -> Tensor:
        """Return the restored images, (B, C, H * scale, W * scale)."""
        height, width = input.shape[-2:]
        output = self.restore_accepted(_pad(input, *self.fit.padded(height, width)))
        return output[..., : height * self.fit.scale, : width * self.fit.scale]

    def restore_accepted(self, images: Tensor) -> Tensor:
        """Return the network's output for images of an accepted size."""
        original = _Original(self, super().forward)
        parts = [images] if self.fit.is_batched else images.split(1)
        return torch.cat([self.fit.call(original, part) for part in parts])


def _pad(x: Tensor, height: int, width: int) -> Tensor:
    """Return a copy of `x`, mirrored at the bottom and right, and then repeated, as spandrel pads.

    It is a copy without padding too, because some networks change their input in place. There is no branch on the size,
    which is a symbol while a network is exported.
    """
    for dim, side in ((-2, height), (-1, width)):
        last = x.shape[dim] - 1
        x = x.index_select(dim, (last - (torch.arange(side, device=x.device) - last).abs()).clamp(min=0))
    return x


def accept_any_size(model: nn.Module, images: ImageSpec, fit: Fit) -> AnyImage:
    """Return the network itself, which now accepts images of any size, also where spandrel does not know its sizes.

    Raises: ValueError, with what the network does, unless it maps these images.
    """
    model.__class__ = type(type(model).__name__, (AnyImage, type(model)), {"__module__": type(model).__module__})
    assert isinstance(model, AnyImage)  # for mypy
    failure = ValueError("returns no images")
    for multiple in _MULTIPLES:
        model.fit = replace(fit, minimum=max(fit.minimum, multiple), multiple=math.lcm(fit.multiple, multiple))
        try:
            image = _pad(probe_image(images.input_channels), *model.fit.padded(17, 13))
            with torch.no_grad():
                output = model.restore_accepted(image)
        except TypeError as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # of any type: it does not accept this size
            failure = failure if failure.__cause__ else ValueError(f"fails on an image ({error})")
            failure.__cause__ = error
            continue
        if fits(output, image, images):
            return model
        failure = ValueError(f"returns images of {list(output.shape[1:])} for images of {list(image.shape[1:])}")
    raise failure
