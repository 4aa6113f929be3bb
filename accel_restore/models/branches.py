"""Trials of a network of another project: what its training mode does otherwise, and what it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn

from accel_restore.models import ImageSpec
from accel_restore.models.probe import fits, probe_image


@torch.no_grad()
def keep_training_branches(model: nn.Module, input_channels: int) -> None:
    """Keep modules in training mode for good if they compute the same in it, and only in another way in eval mode.

    SPAN's convolutions compute their fused weights in eval mode and store them, but weights change in the optimizer's
    step alone. SeemoRe selects its experts for the first image of a batch in eval mode.
    """
    kinds = {type(module) for module in model.modules() if _has_branches(module)}
    for kind in sorted(kinds, key=lambda kind: kind.__qualname__):
        modules = [module for module in model.modules() if type(module) is kind]
        with _restored(model):
            is_same = all(
                _computes_the_same(model.eval(), modules, probe_image(input_channels, 1, *size)) for size in _SIZES
            )
        if is_same:
            for module in modules:
                # A bound method, so that copies of the model have their own.
                module.train = MethodType(_stay_in_training, module)  # type: ignore[method-assign]  # this one alone
                module.train()


_SIZES = ((17, 13), (40, 64))  # height, width; RGT's branches are equal for some sizes only


def _has_branches(module: nn.Module) -> bool:
    """Return whether the class of a module, other than torch's, reads `training` in its forward."""
    kinds = [kind for kind in type(module).__mro__ if "forward" in vars(kind)]
    code = getattr(vars(kinds[0])["forward"], "__code__", None) if kinds else None
    return code is not None and "training" in code.co_names and not kinds[0].__module__.startswith("torch.")


def _computes_the_same(model: nn.Module, modules: list[nn.Module], image: Tensor) -> bool:
    """Return whether the model in eval mode gives the same output if these modules are in training mode.

    A module that draws random numbers in training mode is not the same, whatever the output.
    """
    expected, state = model(image), torch.random.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        for module in modules:
            module.training = True
        output = model(image)
        for module in modules:
            module.training = False
        draws = not state.equal(torch.random.get_rng_state())
    return not draws and torch.allclose(output, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _stay_in_training(module: nn.Module, mode: bool = True) -> nn.Module:
    """Set the mode of a module's parts; the module itself stays in training mode."""
    module.training = True
    for part in module.children():
        part.train(mode)
    return module


def freeze_unused(model: nn.Module, images: ImageSpec) -> None:
    """Freeze the parameters on which the output does not depend. The model is left in training mode.

    DDP waits for the gradient of each trained parameter, and the state of the optimizer needs one.

    Raises: ValueError if the model cannot be trained, or if it changes its own weights when it is called.
    """
    for module in model.modules():
        if vars(module).get("requires_grad", True) is False:  # RCAN means its mean colour by this
            module.requires_grad_(False)
    with _restored(model) as is_changed:
        model.eval()
        with torch.no_grad():
            model(probe_image(images.input_channels))
        if is_changed():
            raise ValueError("changes its own weights in eval mode")
        image = probe_image(images.input_channels, batch=2)
        with torch.random.fork_rng(devices=[]):
            output = model.train()(image)
        if not fits(output, image, images):
            raise ValueError("returns something other than an image in training mode")
        if not output.requires_grad:
            raise ValueError("returns images that do not depend on its parameters")
        output.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None


@contextmanager
def _restored(model: nn.Module) -> Iterator:
    """Provide a function that reports whether the state has changed; restore the parameters and buffers at the end."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    before = [tensor.detach().clone() for _, tensor in tensors]

    def is_changed() -> bool:
        return any(not old.equal(now) for old, (_, now) in zip(before, tensors, strict=True))

    try:
        yield is_changed
    finally:
        with torch.no_grad():
            for old, (_, now) in zip(before, tensors, strict=True):
                now.copy_(old)
