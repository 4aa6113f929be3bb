"""Selection of parameters by name: which are trained, and which have no weight decay."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.models.compile import SMALL_SHARE, repeated_blocks
from accel_restore.utils.imports import describe_error, did_you_mean

PRESETS = {"all_but_new", "body", "all_but_tail"}  # of train.freeze

# The parameters of these layers are kernels, matrices and biases, whatever their shape.
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that Accelerate has prepared, without DDP's wrapper.

    Accelerate's `unwrap_model` also looks for a compiled model, and imports torch's compiler for it. Here blocks are
    compiled in place.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


def freeze(
    model: nn.Module, patterns: Iterable[str], taken: Iterable[str] | None = None, image: Tensor | None = None
) -> None:
    """Set `requires_grad` to False for all parameters that match one of the glob patterns, or that a preset selects.

    Presets: `all_but_new` selects the parameters in `taken`, which `model.partial` took from a file; `body` those of
    the repeated blocks; `all_but_tail` all but those of modules that run after the last repeated block for `image`.

    A normalisation layer with only frozen parameters also keeps its running statistics: it stays in eval mode. The
    statistics would otherwise drift away from the frozen weights.

    Raises: UserError for a pattern that matches no parameter, a preset that does not apply or that is also the name of
        a parameter, and if no parameter is left to train.
    """
    patterns = list(patterns)
    if not patterns:
        return
    frozen = _matching(model, [pattern for pattern in patterns if pattern not in PRESETS], "train.freeze")
    for preset in sorted(set(patterns) & PRESETS):
        frozen |= _selected(model, preset, taken, image)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"train.freeze: {', '.join(patterns)} freeze all parameters; leave some to train")
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._NormBase) and own and not any(p.requires_grad for p in own):
            keep_in_eval(module)


def _selected(model: nn.Module, preset: str, taken: Iterable[str] | None, image: Tensor | None) -> set[str]:
    """Return the names of the parameters that a preset of `train.freeze` selects."""
    names = {name for name, _ in model.named_parameters()}
    if preset in names:
        raise UserError(
            f"train.freeze: '{preset}' is a preset and the name of a parameter; for the parameter, write "
            f"'[{preset[0]}]{preset[1:]}'"
        )
    if preset == "all_but_new":
        if taken is None:
            raise UserError(
                "train.freeze: all_but_new freezes what model.partial takes from a file; set model.checkpoint and "
                "model.partial=true, or use another preset"
            )
        return names & set(taken)
    blocks = repeated_blocks(model, SMALL_SHARE)
    if blocks in ([], [model]):
        raise UserError(
            f"train.freeze: {preset} needs repeated blocks, which {type(model).__name__} does not have; use patterns "
            "of names"
        )
    if preset == "body":
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        return {name for name, parameter in model.named_parameters() if id(parameter) in inside}
    assert image is not None
    return names - _tail(model, blocks, image)


@torch.no_grad()
def _tail(model: nn.Module, blocks: list[nn.Module], image: Tensor) -> set[str]:
    """Return the names of the parameters of modules that run after the last block. The order of names may be another.

    The forward changes no buffer, and leaves torch's generator as it was.
    """
    calls: dict[nn.Module, int] = {}  # module → the number of modules that were called before its last call
    ended = 0  # the number of calls when the last block returned

    def called(module: nn.Module, _: object) -> None:
        calls[module] = len(order)
        order.append(module)

    def returned(*_: object) -> None:
        nonlocal ended
        ended = len(order)

    order: list[nn.Module] = []
    handles = [module.register_forward_pre_hook(called) for module in model.modules()]
    handles += [block.register_forward_hook(returned) for block in blocks]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            model(image)
    except PART_ERRORS as error:  # of a user's own model
        raise UserError(
            f"train.freeze: all_but_tail runs the model once, which failed ({describe_error(error)}); use patterns of "
            "names"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for buffer, value in buffers:
            buffer.copy_(value)
    return {
        name
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(prefix, recurse=False)
        if calls.get(module, -1) >= ended
    }


def keep_in_eval(module: nn.Module) -> None:
    """Put a layer into eval mode for good: `train()` of the model no longer affects it."""
    module.eval()
    # A bound method, so that copies of the model have their own.
    module.train = MethodType(_stay, module)  # type: ignore[method-assign]  # for this layer alone, not its class


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Return the module unchanged."""
    return module


def without_decay(model: nn.Module, choices: Iterable[str]) -> set[str]:
    """Return the names of the parameters that `optimizer.no_decay` selects.

    `biases` selects all parameters with this name. `norms` selects the parameters of normalisation layers, and those
    that scale whole channels or heads: any parameter outside convolutions and linear layers with at most one dimension
    longer than 1, such as NAFNet's beta and gamma, (1, C, 1, 1), Restormer's temperature, and the slopes of a PReLU.
    Any other choice is a glob pattern.

    Raises: UserError for a pattern that matches no parameter.
    """
    choices = list(choices)
    found = _matching(model, [choice for choice in choices if choice not in ("norms", "biases")], "optimizer.no_decay")
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(prefix, recurse=False):
            last = key.rpartition(".")[2]
            is_bias = last == "bias" or last.endswith("_bias")
            scales = sum(side > 1 for side in parameter.shape) <= 1 and not isinstance(module, _LAYERS)
            if ("biases" in choices and is_bias) or ("norms" in choices and (scales or isinstance(module, _NORMS))):
                found.add(key)
    return found


def _matching(model: nn.Module, patterns: Iterable[str], key: str) -> set[str]:
    """Return the names of the parameters that match a pattern. Each pattern must match one."""
    names, found = [name for name, _ in model.named_parameters()], set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise UserError(f"{key}: no parameter matches '{pattern}'; {_hint(pattern, names)}")
        found |= matched
    return found


def _hint(pattern: str, names: list[str]) -> str:
    parts = dict.fromkeys(".".join(name.split(".")[:depth]) for name in names for depth in range(1, 9))
    guess = did_you_mean(pattern.rstrip("*."), parts)
    if guess is not None:
        return f"did you mean '{guess}'?" if guess in names else f"did you mean '{guess}.*'?"
    return f"names start with {', '.join(dict.fromkeys(name.split('.')[0] for name in names))}"
