"""Optimizers, learning-rate schedules, and the average of the weights."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from accel_restore.config.optim import AnyOptimizer, OwnOptimizer
from accel_restore.models.parameters import without_decay
from accel_restore.optim.muon import Muon
from accel_restore.optim.own import is_fused_adam, own_optimizer

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "muon": Muon,
    "sgd": torch.optim.SGD,
}


def get_optimizer(model: nn.Module, config: AnyOptimizer, fused: bool = False) -> Optimizer:
    """Return the configured optimizer over the model's trainable parameters.

    The parameters that `no_decay` selects form a second group, without weight decay. `fused` selects torch's kernels
    that update all parameters at once; an optimizer by import path has its own default.

    Raises: UserError for a pattern of `no_decay` that matches no parameter, and for what an import path names.
    """
    exempt = without_decay(model, config.no_decay)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = {"params": [parameter for name, parameter in trainable.items() if name not in exempt]}
    undecayed = {"params": [parameter for name, parameter in trainable.items() if name in exempt], "weight_decay": 0.0}
    groups = [group for group in (decayed, undecayed) if group["params"]]
    if isinstance(config, OwnOptimizer):
        return own_optimizer(config, groups)
    settings = config.model_dump(exclude={"name", "no_decay"})
    if config.name != "muon":
        settings["fused"] = fused or None
    return OPTIMIZERS[config.name](groups, **settings)


def arm_skip_if_nan(optimizer: AcceleratedOptimizer, accelerator: Accelerator, is_finite: Tensor) -> bool:
    """Make the next `optimizer.step()` change nothing if the gradient is not finite; return whether it can.

    torch's fused Adam and AdamW check this on the device, as they do for GradScaler, so the host does not wait. Fused
    SGD cannot in its first step, which creates the momentum, and FSDP2's shards cannot. With fp16 the scaler skips
    such a step and lowers its scale.
    """
    inner = optimizer.optimizer
    if is_fused_adam(inner) and not accelerator.is_fsdp2:
        inner.found_inf = (~is_finite).float()  # type: ignore[attr-defined]  # read by torch, declared nowhere
        return True
    return accelerator.scaler is not None
