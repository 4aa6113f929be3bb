"""Optimizers by name: torch's own, and Muon."""

import torch
from torch import nn
from torch.optim import Optimizer

from accel_restore.config.schema import AnyOptimizer
from accel_restore.models.parameters import without_decay
from accel_restore.optim.muon import Muon

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "muon": Muon, "sgd": torch.optim.SGD}


def get_optimizer(model: nn.Module, config: AnyOptimizer, fused: bool = False) -> Optimizer:
    """The configured optimizer over the model's trainable parameters; those of `no_decay` are a second group.

    `fused`: torch's kernels that update all of them at once.

    Raises: UserError for a pattern of `no_decay` that no parameter matches.
    """
    exempt = without_decay(model, config.no_decay)
    groups: tuple[list, list] = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in exempt].append(parameter)
    settings = ({}, {"weight_decay": 0.0})
    filled = [{"params": group, **own} for group, own in zip(groups, settings, strict=True) if group]
    kernels = {} if config.name == "muon" else {"fused": fused or None}
    return OPTIMIZERS[config.name](filled, **config.model_dump(exclude={"name", "no_decay"}), **kernels)
