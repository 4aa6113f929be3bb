"""Gradient checkpointing of a model's repeated blocks: less memory, for a second forward of every block."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from types import new_class
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from accel_restore.errors import UserError
from accel_restore.models.compile import SMALL_SHARE, repeated_blocks

_Buffers = list[tuple[nn.Module, str, Tensor]]


def checkpoint_blocks(model: nn.Module) -> None:
    """Make the repeated blocks keep only their inputs for the backward, which then runs each block again.

    The change is in place, so parameters keep their names. Gradients are bit-identical: draws, autocast and buffers of
    the second forward are those of the first. Forwards without gradients, as in validation, are unchanged.

    Raises: UserError if the model has no repeated blocks.
    """
    blocks = repeated_blocks(model, SMALL_SHARE)
    if blocks in ([], [model]):
        raise UserError(
            f"train.checkpoint_blocks: {type(model).__name__} has no repeated blocks, that is, several modules of one "
            "class of its own that hold a part of its parameters; set train.checkpoint_blocks=false"
        )
    for block in blocks:
        own: type = type(block)
        block.__class__ = _checkpointed(own)


class _Checkpointed:
    """A base class, inserted before a block's own. It is outside of what `nn.Module.compile` compiles.

    A wrapping module would change the names of the parameters.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = super().__call__  # type: ignore[misc]  # the block's own
        if not torch.is_grad_enabled():
            return call(*args, **kwargs)
        # Torch finds the devices whose draws it repeats, and tensors that were changed in place, among its positional
        # arguments alone.
        leaves, structure = tree_flatten((args, kwargs))
        first = [(args, kwargs)]  # the lists and dictionaries of the caller, which the block may extend

        def run(*leaves: Any) -> Any:
            args, kwargs = first.pop() if first else tree_unflatten(leaves, structure)
            return call(*args, **kwargs)

        return checkpoint(run, *leaves, use_reentrant=False, context_fn=partial(_contexts, self))


@cache
def _checkpointed(block_class: type) -> type:
    made = new_class(block_class.__name__, (_Checkpointed, block_class))
    made.__module__, made.__qualname__ = block_class.__module__, block_class.__qualname__
    return made


def _contexts(block: Any) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return the contexts of the first and the second forward.

    The second one starts with the buffers of the first, and changes none: statistics of batch norms count a batch once,
    and the vectors of a spectral norm are those of the first forward.
    """
    changed: _Buffers = []
    return _copying_changed_buffers(block, changed), _with_buffers(changed)


def _buffers(block: nn.Module) -> _Buffers:
    return [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


@contextmanager
def _copying_changed_buffers(block: nn.Module, changed: _Buffers) -> Iterator[None]:
    """Add the former values of the buffers that the body changes to `changed`. Other copies are dropped at once.

    Statistics, which are vectors, are always added: torch's batch norm changes them without a new version.
    """
    before = [(module, name, buffer, buffer._version, buffer.clone()) for module, name, buffer in _buffers(block)]
    yield
    changed += [
        (module, name, copy)
        for module, name, buffer, version, copy in before
        if buffer.ndim < 2 or buffer._version != version or module._buffers.get(name) is not buffer
    ]


@contextmanager
def _with_buffers(values: _Buffers) -> Iterator[None]:
    """Give the modules these buffers while the body runs."""
    now = [(module, name, module._buffers[name]) for module, name, _ in values]
    for module, name, value in values:
        module._buffers[name] = value.clone()
    try:
        yield
    finally:
        for module, name, buffer in now:
            module._buffers[name] = buffer
