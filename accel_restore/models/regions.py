"""The blocks of which a model is made: each kind is compiled once, and with FSDP2 gathered one at a time."""

from collections import Counter

from torch import nn


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's outermost parts of its own classes (none of torch's) that occur several times, in order."""
    counts = Counter(type(module) for module in model.modules() if not type(module).__module__.startswith("torch."))

    def parts(module: nn.Module) -> list[nn.Module]:
        if counts[type(module)] > 1:
            return [module]
        return [part for child in module.children() for part in parts(child)]

    return [block for block in parts(model) if any(True for _ in block.parameters())]


def compile_blocks(model: nn.Module) -> None:
    """Have torch compile the model's blocks, or all of it where none repeats, when it first runs.

    In place: parameters keep their names. Blocks of one kind and width share what is compiled.
    """
    for part in repeated_blocks(model) or [model]:
        part.compile()
