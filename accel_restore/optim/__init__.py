"""Optimizers, learning-rate schedules, and the average of the weights."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from accel_restore.config.optim import AnyOptimizer, OwnOptimizer
from accel_restore.distributed import fsdp
from accel_restore.models.parameters import without_decay
from accel_restore.optim.eager import SGD, Adam, AdamW
from accel_restore.optim.muon import Muon
from accel_restore.optim.own import is_fused_adam, own_optimizer

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": AdamW, "adam": Adam, "muon": Muon, "sgd": SGD}


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


def propagate_nan(loss: Tensor) -> Tensor:
    """Return the loss. If it is not finite, its gradients are all NaN, so after the exchange every rank sees NaN."""
    return loss * (1 + 0 * loss.detach())


def gradient_norm(model: nn.Module, accelerator: Accelerator, max_norm: float | None) -> Tensor:
    """Return the L2 norm of all gradients together (unscaled, with fp16); then clip them to `max_norm` if it is set.

    It is 0 where there are none: a network that is not trained in this step.
    """
    if all(parameter.grad is None for parameter in model.parameters()):
        return torch.zeros((), device=accelerator.device)
    if max_norm is not None:
        return fsdp.full_tensor(accelerator.clip_grad_norm_(model.parameters(), max_norm))
    accelerator.unscale_gradients()
    return fsdp.full_tensor(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def step_unless(skip: Tensor, optimizer: AcceleratedOptimizer, accelerator: Accelerator) -> bool:
    """Step the optimizer unless `skip`, a tensor on the device, is true; return whether the step was made.

    torch's fused Adam and AdamW decide on the device, as they do for GradScaler, so the step is queued before the host
    waits. Fused SGD cannot in its first step, which creates the momentum, and FSDP2's shards cannot. With fp16, a
    skipped step lowers the scale if this optimizer's gradient is not finite.
    """
    inner = optimizer.optimizer
    if is_fused_adam(inner) and not accelerator.is_fsdp2:
        inner.found_inf = skip.float()  # type: ignore[attr-defined]  # read by torch, declared nowhere
        optimizer.step()
    elif not skip:
        optimizer.step()
    elif accelerator.scaler is not None:
        accelerator.scaler.update()
    return not skip
