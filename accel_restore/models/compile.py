"""The blocks of which a model is made: each kind is compiled once, and with FSDP2 gathered one at a time."""

from collections import Counter

import torch
from torch import nn


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's outermost parts of its own classes (none of torch's) that occur several times, in order.

    None, where they hold less than half of its parameters: norms of its own do not make a model one of blocks.
    """
    counts = Counter(type(module) for module in model.modules() if not type(module).__module__.startswith("torch."))

    def parts(module: nn.Module) -> list[nn.Module]:
        if counts[type(module)] > 1:
            return [module]
        return [part for child in module.children() for part in parts(child)]

    def size(*modules: nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    blocks = [block for block in parts(model) if size(block)]
    return blocks if 2 * size(*blocks) >= size(model) else []


def compile_blocks(model: nn.Module) -> None:
    """Have torch compile the model's blocks, or all of it where none repeats, when it first runs.

    In place: parameters keep their names. Blocks of one kind, width and size of image share what is compiled: sizes
    are not generalised (inductor fails at some that are), so each stage of progressive training compiles anew.
    """
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(64, dynamo.recompile_limit)  # of one kind of block; what is beyond runs uncompiled
    for part in repeated_blocks(model) or [model]:
        part.compile(dynamic=False)
