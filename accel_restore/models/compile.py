"""The repeated blocks of a model. Each kind is compiled once, and FSDP2 gathers one block at a time."""

import os
import sys
import uuid
from collections import Counter
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from accel_restore.errors import UserError

SMALL_SHARE = 0.1  # of the parameters, where the tail of a small network may hold most


def repeated_blocks(model: nn.Module, least: float = 0.5) -> list[nn.Module]:
    """Return the model's outermost modules whose class occurs several times and is not torch's, in order.

    The list is empty if they hold less than the share `least` of the parameters: repeated custom norms are not blocks.
    """

    def kind(module: nn.Module) -> tuple[str, str]:  # the same with and without checkpointing
        return type(module).__module__, type(module).__qualname__

    counts = Counter(kind(module) for module in model.modules() if not kind(module)[0].startswith("torch."))

    def parts(module: nn.Module) -> list[nn.Module]:
        if counts[kind(module)] > 1:
            return [module]
        return [part for child in module.children() for part in parts(child)]

    def size(*modules: nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    blocks = [block for block in parts(model) if size(block)]
    return blocks if size(*blocks) >= least * size(model) else []


def compile_blocks(model: nn.Module, setting: bool | str) -> None:
    """Make torch compile the model's repeated blocks, or the whole model if there are none, when it first runs.

    `setting` is `train.compile`: false compiles nothing, true uses torch's default mode, and a name is a mode.
    Compilation is in place, so parameters keep their names. Blocks of one kind, width and image size share their code.
    Code is specific to one image size, because inductor fails for some dynamic sizes. Each stage of progressive
    training therefore compiles again.
    """
    if setting is False:
        return
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(64, dynamo.recompile_limit)  # per kind of block; beyond it, code runs uncompiled
    for part in repeated_blocks(model) or [model]:
        part.compile(dynamic=False, mode=None if setting is True else setting)


def force_eager() -> AbstractContextManager:
    """Run compiled modules uncompiled within this context, for sizes or derivatives that are not worth compiling."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled; torch would import its compiler here
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class _Probe(nn.Module):
    """A model of one kernel. Its constant is new, so that torch finds no compiled code of an earlier trial."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.constant = nn.Parameter(torch.ones(4)), uuid.uuid4().int / 2**128

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.weight * x * self.constant)


def check_compiler(device: torch.device) -> None:
    """Compile one small kernel for the device, forward and backward. It takes seconds, and 50 KB of torch's cache.

    Raises: UserError if torch cannot compile here: without a compiler, Python's headers, Triton or a writable cache.
    """
    try:
        probe = _Probe().to(device)
        compile_blocks(probe, True)
        probe(torch.ones(4, device=device)).sum().backward()
    except UserError:
        raise
    except Exception as error:  # of many types, from torch, Triton and the compiler
        raise UserError(
            f"train.compile: torch cannot compile for {device.type} ({_reason(error)}); install g++ and Python's "
            "headers, on a GPU also triton; make sure that torch's cache folder, "
            f"{os.environ.get('TORCHINDUCTOR_CACHE_DIR')}, is writable; or set train.compile=false"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first error in the compiler's output, which torch's message repeats, or else the innermost error."""
    lines = [line.strip() for line in str(error).splitlines() if "error: " in line]
    if lines:
        return f"{lines[0]:.200}"
    while (cause := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = cause
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}"
