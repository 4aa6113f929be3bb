"""FSDP2, which Accelerate's configuration turns on: each rank holds a part of the weights, averages and moments.

The engine trains parts as it trains whole weights. What needs them whole asks here: validation, commits, the audit.
"""

from accelerate import Accelerator
from torch import Tensor, nn

from accel_restore.models.compile import repeated_blocks


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor, gathered from the ranks that hold its parts; every rank calls it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_state_dict(model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor] | None:
    """The model's state by name, tensors whole and on the CPU; None but on the main process. Every rank calls it."""
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = full_tensor(tensor.detach())
        if accelerator.is_main_process:
            state[name] = tensor.cpu()
    return state or None


def copy_full_state(copy: nn.Module, model: nn.Module) -> nn.Module:
    """The `copy`, a plain one, with the state of the sharded `model`; every rank calls it."""
    targets = copy.state_dict()
    for name, tensor in model.state_dict().items():  # one at a time is whole twice
        targets[name].copy_(full_tensor(tensor.detach()))
    return copy


def gather_by_block(model: nn.Module, accelerator: Accelerator) -> None:
    """Have the weights of one block at a time gathered, where Accelerate's policy is left to name the blocks."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in repeated_blocks(model)})


def use_float32_weights(accelerator: Accelerator) -> None:
    """Have parts gathered and added up in float32 where mixed precision is on, as without FSDP2.

    Accelerate's own policy rounds weights, gradients and what a model adds up to half precision.
    """
    if accelerator.is_fsdp2:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def autocast_forward(model: nn.Module, accelerator: Accelerator) -> None:
    """Have the model's forward run in mixed precision, as `accelerator.prepare` does for other models than sharded."""
    forward = model.forward

    def in_mixed_precision(*arguments, **named):
        with accelerator.autocast():
            return forward(*arguments, **named)

    model.forward = in_mixed_precision


def shard(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A second model (averaged weights) in the same parts as the trained one."""
    from accelerate.utils import fsdp2_prepare_model

    return fsdp2_prepare_model(accelerator, model)
