"""Actions that all ranks take together."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn

from accel_restore.errors import UserError, permission_denied
from accel_restore.models.compile import force_eager


def on_all_ranks(accelerator: Accelerator, action: Callable[[], Any], only_main: bool = False) -> Any:
    """Run an action on every rank, or on the main process only, and return its result.

    If a rank raises a UserError, all ranks raise it.
    """
    result, error = None, None
    if accelerator.is_main_process or not only_main:
        try:
            result = action()
        except UserError as raised:
            error = raised
        except PermissionError as raised:
            error = permission_denied(raised)
    ranks = gather_object([(error, result if only_main else None)])
    if errors := [raised for raised, _ in ranks if raised is not None]:
        raise errors[0]
    return ranks[0][1] if only_main else result


def broadcast_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all ranks the main process's buffers: each rank's batch statistics come from its own samples."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def warm_up_ddp_buckets(model: nn.Module, image: tuple[int, int, int], accelerator: Accelerator) -> None:
    """Run backward passes on a zero image (C, H, W) and discard the gradients; only with three or more ranks.

    DDP rebuilds its gradient buckets after the first backward, which changes the order in which ranks are summed. A
    resumed run would then round differently from an uninterrupted one.
    """
    if accelerator.num_processes < 3 or accelerator.is_fsdp2:
        return
    was_training = model.training
    model.eval()  # leaves batch statistics alone
    for _ in range(2):  # the buckets change at the second forward
        with force_eager():
            accelerator.backward(model(torch.zeros(1, *image, device=accelerator.device)).sum())
    model.zero_grad()
    model.train(was_training)
