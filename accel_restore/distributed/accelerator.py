"""The Accelerator of a run, its precision, and checks that the launch gives what it promises."""

import ctypes
import os
from datetime import timedelta

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, DynamoBackend
from torch import distributed

from accel_restore.config.schema import Config
from accel_restore.distributed.fsdp import use_float32_weights
from accel_restore.errors import UserError


def create_accelerator(config: Config, cpu: bool) -> Accelerator:
    """Return the Accelerator of this process.

    The engine steps the scheduler and accumulates gradients; Accelerate splits each batch among the ranks.

    Raises: UserError if the launch does not give what it promises, or the precision is not available.
    """
    cpu = cpu or torch.backends.mps.is_available()  # Apple's GPUs have no float64, which exact sums need
    if not cpu and not torch.accelerator.is_available() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("this machine has no GPU and several processes were started; add --cpu to train on the CPU")
    if cpu or not torch.accelerator.is_available():
        keep_freed_memory()
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    rejoin(cpu, config.train.rank_timeout)
    # `fit` may have run before in this process, with another precision or (as a single process) on another device.
    AcceleratorState._reset_state(reset_partial_state=not distributed.is_initialized())
    GradientState._reset_state()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=precision(config.train.mixed_precision, cpu),
            step_scheduler_with_optimizer=False,
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.rank_timeout)),
            ],
        )
    except ValueError as error:
        raise UserError(f"the launch does not fit this machine: {error}") from error
    _check_launch(accelerator, config)
    use_float32_weights(accelerator)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    return accelerator


def _check_launch(accelerator: Accelerator, config: Config) -> None:
    promised = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != promised:
        raise UserError(
            f"the launcher started {promised} processes, but Accelerate sees {accelerator.num_processes}, so each "
            "would train alone. On CPUs add --cpu; on GPUs start with 'accelerate launch --multi_gpu' or torchrun"
        )
    kinds = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    kinds += (DistributedType.FSDP,) if accelerator.is_fsdp2 else ()
    unfit = [
        (accelerator.distributed_type not in kinds, f"distributed_type {accelerator.distributed_type}"),
        (accelerator.state.dynamo_plugin.backend != DynamoBackend.NO, "dynamo_backend (set train.compile instead)"),
        (accelerator.gradient_accumulation_steps != 1, "gradient_accumulation_steps (set it in the configuration)"),
    ]
    if found := [what for wrong, what in unfit if wrong]:
        raise UserError(
            f"the launcher's configuration sets {', '.join(found)}, which would change the flow of weights; use one of "
            "launch/*.yaml with --config_file"
        )
    if accelerator.is_fsdp2 and config.optimizer.name == "muon":
        raise UserError(
            "optimizer.name: muon needs full weights, but FSDP2 shards them; use adamw, or train without FSDP2"
        )


def rejoin(cpu: bool, timeout: float) -> None:
    """Join the process group of an attempt that torchrun has restarted. At the first attempt Accelerate joins it.

    torchrun keeps one key-value store for all attempts. Without keys of its own, a restarted rank would find the
    addresses of dead ranks there (with gloo and 2 ranks, more often than not). On several hosts the attempts are not
    counted alike, so this covers one host only; see launch/.
    """
    env = os.environ
    attempt = env.get("TORCHELASTIC_RESTART_COUNT", "0")
    on_one_host = env.get("LOCAL_WORLD_SIZE") == env.get("WORLD_SIZE")
    if attempt == "0" or not on_one_host or env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    limit = timedelta(seconds=timeout)
    store = distributed.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=limit)
    distributed.init_process_group(
        "gloo" if cpu or not torch.cuda.is_available() else "nccl",
        store=distributed.PrefixStore(f"attempt-{attempt}", store),
        rank=int(env["RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        timeout=limit,
    )


def keep_freed_memory() -> None:
    """Set glibc's malloc to keep freed memory instead of returning it to the system; elsewhere, do nothing.

    Each training step frees and allocates tensors of the same sizes. Fresh pages make a CPU step 15 to 20 % slower
    (measured).
    """
    trim_threshold, mmap_threshold = -1, -3  # parameters of mallopt, as malloc.h numbers them
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    if mallopt(mmap_threshold, 2**30):  # if refused, keep the default, which adapts itself
        mallopt(trim_threshold, 2**31 - 1)


def precision(wanted: str, cpu: bool) -> str:
    """Return the mixed precision for `train.mixed_precision`; `auto` is bf16 on hardware that is faster in it.

    Raises: UserError for fp16 without a GPU, which would silently compute in float32.
    """
    on_cpu = cpu or not torch.accelerator.is_available()
    if wanted == "fp16" and on_cpu:
        raise UserError("train.mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no")
    if wanted != "auto":
        return wanted
    if on_cpu:
        return "bf16" if torch.cpu._is_amx_tile_supported() else "no"  # with AVX-512 alone it is a quarter slower
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "no"
