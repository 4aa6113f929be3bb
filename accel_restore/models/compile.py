"""The repeated blocks of a model. Each kind is compiled once, and FSDP2 gathers one block at a time."""

from collections import Counter

import torch
from torch import nn


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the model's outermost modules whose class occurs several times and is not torch's, in order.

    The list is empty if they hold less than half of the parameters: repeated custom norms are not blocks.
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
    """Make torch compile the model's repeated blocks, or the whole model if there are none, when it first runs.

    Compilation is in place, so parameters keep their names. Blocks of one kind, width and image size share their code.
    Code is specific to one image size, because inductor fails for some dynamic sizes. Each stage of progressive
    training therefore compiles again.
    """
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(
        64, dynamo.recompile_limit
    )  # per kind of block; beyond this limit code runs uncompiled
    for part in repeated_blocks(model) or [model]:
        part.compile(dynamic=False)
