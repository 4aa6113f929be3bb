"""The Accelerator of a run, the precision it computes in, and checks that the launch is what it seems."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, InitProcessGroupKwargs

from accel_restore.config import Config
from accel_restore.errors import UserError


def create_accelerator(config: Config, cpu: bool) -> Accelerator:
    """The Accelerator of this process.

    The scheduler steps when the engine says so (not with the optimizer), batches are dealt out (not multiplied), and
    accumulation is the engine's.

    Raises: UserError where the launch does not give what it promises, or the precision cannot be had.
    """
    if not cpu and not torch.accelerator.is_available() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("this machine has no GPU and several processes were started; add --cpu to train on the CPU")
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=precision(config.train.mixed_precision, cpu),
            step_scheduler_with_optimizer=False,
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
            ],
        )
    except ValueError as error:
        raise UserError(f"the launch does not fit this machine: {error}") from error
    promised = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != promised:
        raise UserError(
            f"the launcher started {promised} processes, but Accelerate sees {accelerator.num_processes}; each would "
            "train alone. On CPUs add --cpu; on GPUs start with 'accelerate launch --multi_gpu' or torchrun"
        )
    torch.backends.cudnn.benchmark = not config.train.deterministic
    return accelerator


def precision(wanted: str, cpu: bool) -> str:
    """The mixed precision to use for what the configuration wants; `auto` is bf16 where the hardware computes in it.

    Raises: UserError for fp16 without a GPU: it would compute in float32 without a word.
    """
    on_cpu = cpu or not torch.accelerator.is_available()
    if wanted == "fp16" and on_cpu:
        raise UserError("train.mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no")
    if wanted != "auto":
        return wanted
    if on_cpu:
        return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "no"
