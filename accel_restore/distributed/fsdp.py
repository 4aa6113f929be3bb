"""FSDP2, turned on in Accelerate's configuration: each rank holds a part of the weights, averages and moments.

The engine trains parts exactly as it trains full weights. Validation, commits and the audit need full weights and get
them here.
"""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from accel_restore.models.compile import repeated_blocks
from accel_restore.optim.ema import Average, Ema


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor, gathered from all ranks if they hold parts of it. Every rank calls it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_state_dict(
    model: nn.Module, accelerator: Accelerator, copy: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return copies of the model's full tensors by name; empty except on the main process. Every rank calls it."""
    state = {}
    for name, tensor in model.state_dict().items():  # one at a time: with FSDP2, a full tensor takes memory of its own
        tensor = full_tensor(tensor.detach())
        if accelerator.is_main_process:
            state[name] = copy(name, tensor)
    return state


def copy_full_state(target: nn.Module, model: nn.Module) -> nn.Module:
    """Copy the state of the sharded `model` into `target`, an ordinary model, and return it. Every rank calls it.

    Ranks validate images of different sizes, so they cannot gather weights within a forward. They validate `target`.
    """
    own = target.state_dict()
    for name, tensor in model.state_dict().items():  # one at a time, so that only one full tensor exists twice
        storage = own[name].untyped_storage()
        storage.resize_(max(storage.nbytes(), _end(own[name])))
        own[name].copy_(full_tensor(tensor.detach()))
    return target


def free_copy(target: nn.Module | None) -> None:
    """Free the memory of `target`, if there is one, until `copy_full_state` fills it again."""
    for tensor in {} if target is None else target.state_dict().values():
        tensor.untyped_storage().resize_(0)


def _end(tensor: Tensor) -> int:
    """Return where the tensor's last element ends in its storage, in bytes."""
    last = sum(int(stride) * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return (int(tensor.storage_offset()) + last + 1) * tensor.element_size() if tensor.numel() else 0


def prepare(
    model: nn.Module, optimizer: Any, scheduler: Any, ema: Average | None, accelerator: Accelerator
) -> tuple[Any, Any, Any]:
    """Return model, optimizer and scheduler, prepared by Accelerate; with FSDP2 the averaged model is sharded too."""
    if not accelerator.is_fsdp2:
        # True: move the model; otherwise Accelerate first imports DTensor, which takes as long as half of torch.
        return accelerator.prepare(model, optimizer, scheduler, device_placement=[True, None, None])
    _gather_by_block(model, accelerator)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    _autocast_forward(model, accelerator)
    if isinstance(ema, Ema):
        from accelerate.utils import fsdp2_prepare_model

        ema.module = fsdp2_prepare_model(accelerator, ema.module)
    return model, optimizer, scheduler


def _gather_by_block(model: nn.Module, accelerator: Accelerator) -> None:
    """Gather the weights of one repeated block at a time, unless Accelerate's policy names the blocks."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in repeated_blocks(model)})


def use_float32_weights(accelerator: Accelerator) -> None:
    """Gather weights and sum gradients in float32, in mixed precision too, as without FSDP2.

    Accelerate's default policy rounds weights, gradients and the model's own sums to half precision.
    """
    if accelerator.is_fsdp2:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def _autocast_forward(model: nn.Module, accelerator: Accelerator) -> None:
    """Run the model's forward in mixed precision, as `accelerator.prepare` does for models that are not sharded."""
    forward = model.forward

    def in_mixed_precision(*arguments: Any, **named: Any) -> Any:
        with accelerator.autocast():
            return forward(*arguments, **named)

    model.forward = in_mixed_precision
