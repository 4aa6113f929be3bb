"""The Accelerator of a run, its precision, and checks that the launch can be used."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch import distributed

from accel_restore.config.optim import AnyOptimizer, OwnOptimizer
from accel_restore.config.schema import Config
from accel_restore.distributed.fsdp import use_float32_weights
from accel_restore.distributed.heartbeat import is_communication
from accel_restore.distributed.rendezvous import meet
from accel_restore.errors import RunAbortedError, UserError
from accel_restore.utils.imports import describe_error
from accel_restore.utils.launch import Launch, find_launch, set_joined
from accel_restore.utils.threads import num_threads

_FSDP = "ACCELERATE_USE_FSDP"
_OFF = ("false", "0", "no", "off", "n", "f")
# Settings of Accelerate that the environment may hold: the values that change nothing, and what to set instead.
_SETTINGS = {
    "ACCELERATE_USE_DEEPSPEED": (_OFF, ""),
    "ACCELERATE_USE_MEGATRON_LM": (_OFF, ""),
    "ACCELERATE_USE_SAGEMAKER": (_OFF, ""),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (_OFF, ""),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), " (set train.compile instead)"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), " (set train.gradient_accumulation_steps instead)"),
}


def create_accelerator(config: Config, cpu: bool) -> Accelerator:
    """Return the Accelerator of this process.

    The engine steps the scheduler and accumulates gradients; Accelerate splits each batch among the ranks.

    Raises: UserError if the launch cannot be used, or the precision is not available.
    """
    cpu = cpu or torch.backends.mps.is_available()  # Apple's GPUs have no float64, which exact sums need
    launch = find_launch()
    _check_settings()
    if not cpu and not torch.accelerator.is_available() and launch.world_size > 1:
        raise UserError(
            f"this machine has no GPU and several processes were started ({', '.join(launch.variables)}); add --cpu to "
            f"train on the CPU, or, {launch.hint}"
        )
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    mixed_precision = precision(config.train.mixed_precision, cpu)
    with launch.environment(settings=True):
        store = join(launch, cpu, config.train.rank_timeout, "train.rank_timeout")
        # `fit` may have run before in this process, with another precision or (as a single process) on another device.
        AcceleratorState._reset_state(reset_partial_state=not distributed.is_initialized())
        GradientState._reset_state()
        try:
            accelerator = Accelerator(
                cpu=cpu,
                mixed_precision=mixed_precision,
                step_scheduler_with_optimizer=False,
                dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
                kwargs_handlers=[
                    DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                    InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.rank_timeout)),
                ],
            )
        except Exception as error:  # a plugin that the environment asks for may raise anything
            if is_communication(error):
                raise RunAbortedError(f"a rank was lost before all ranks had met: {describe_error(error)}") from error
            raise UserError(f"Accelerate cannot start: {describe_error(error)}{_named_settings()}") from error
    del store
    _check_launch(accelerator, config, launch)
    use_float32_weights(accelerator)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    return accelerator


def second_accelerator(accelerator: Accelerator) -> Accelerator:
    """Return another Accelerator of the same processes, for a network that is trained with the model.

    With fp16 it has a scale of its own.
    """
    own = Accelerator(
        cpu=accelerator.device.type == "cpu",
        step_scheduler_with_optimizer=False,
        dataloader_config=accelerator.dataloader_config,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    assert own.mixed_precision == accelerator.mixed_precision  # shared by all Accelerators of a process
    return own


def _check_settings() -> None:
    """Raise `UserError` if the environment asks Accelerate for what would change the flow of weights."""
    env = {name: value for name, value in os.environ.items() if value}
    asked = [
        f"{name}={env[name]}{remedy}"
        for name, (harmless, remedy) in _SETTINGS.items()
        if name in env and env[name].lower() not in harmless
    ]
    if env.get(_FSDP, "no").lower() not in _OFF and env.get("FSDP_VERSION") != "2":
        asked.append(f"{_FSDP}={env[_FSDP]} without FSDP_VERSION=2")
    if asked:
        raise UserError(
            f"the environment sets {', '.join(asked)}, which would change how the run trains; unset it, or, if "
            "accelerate launch has set it, use one of launch/*.yaml with --config_file"
        )


def _named_settings() -> str:
    """The environment's settings of Accelerate, for a message."""
    prefixes = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "FORK_LAUNCHED", "OMP_NUM_THREADS")
    found = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes) and not (name == "OMP_NUM_THREADS" and value.isdecimal())
    ]
    return f"; the environment sets {', '.join(found)}: unset what is wrong" if found else ""


def _check_launch(accelerator: Accelerator, config: Config, launch: Launch) -> None:
    if accelerator.num_processes != launch.world_size:
        raise UserError(
            f"the launcher started {launch.world_size} processes, but Accelerate sees {accelerator.num_processes}, so "
            "each would train alone. On CPUs add --cpu; on GPUs start with 'accelerate launch --multi_gpu' or torchrun"
        )
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP):
        raise UserError(f"the launch is of the unsupported type {kind.value}; use one of launch/*.yaml")
    if os.environ.get(_FSDP, "").lower() == "true" and not accelerator.is_fsdp2:
        raise UserError(
            f"{_FSDP}=true: FSDP2 needs GPUs and a launcher; unset it, or, if accelerate launch has set it, use "
            "another one of launch/*.yaml with --config_file"
        )
    name = config.optimizer.name
    if accelerator.is_fsdp2 and (name == "muon" or isinstance(config.optimizer, OwnOptimizer)):
        raise UserError(
            f"optimizer.name: {name} needs full weights, but FSDP2 shards them; use adamw, or train without FSDP2"
        )
    optimizers: dict[str, AnyOptimizer] = {"": config.optimizer}
    if config.adversarial is not None:
        optimizers["adversarial."] = config.adversarial.optimizer
    for place, section in optimizers.items():
        is_fused = isinstance(section, OwnOptimizer) and section.arguments.get("fused")
        if accelerator.mixed_precision == "fp16" and is_fused:
            raise UserError(
                f"{place}optimizer.fused: fused kernels unscale fp16's gradients themselves, after clipping; remove "
                "it, or use train.mixed_precision=bf16"
            )


def join(launch: Launch, cpu: bool, seconds: float, limit: str) -> Any:
    """Meet all ranks, and return the store that keeps rank 0's port until the group is formed.

    Accelerate forms the group, except in an attempt that torchrun has restarted. torchrun keeps one key-value store for
    all attempts. Without keys of its own, a restarted rank would find the addresses of dead ranks there (with gloo and
    2 ranks, more often than not). On several hosts the attempts are not counted alike, so this covers one host only;
    see launch/.
    """
    if distributed.is_initialized():
        return None
    store = meet(launch, seconds, limit)
    set_joined(launch.rank)
    if launch.attempt and launch.has_agent and launch.local_world_size == launch.world_size > 1:
        distributed.init_process_group(
            "gloo" if cpu or not torch.cuda.is_available() else "nccl",
            store=distributed.PrefixStore(f"attempt-{launch.attempt}", store),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timedelta(seconds=seconds),
        )
    return store


@contextmanager
def restored_states() -> Iterator[None]:
    """Restore the states that all Accelerators of a process share at the end of the block, also after an exception.

    A process group that was formed stays joined, and what Accelerate knows of it is kept.
    """
    former = [(owner, dict(owner._shared_state)) for owner in (PartialState, AcceleratorState, GradientState)]
    try:
        yield
    finally:
        for owner, state in former:
            if owner is PartialState and distributed.is_initialized():
                continue
            owner._shared_state.clear()
            owner._shared_state.update(state)


def tune_cpu(cpu: bool) -> None:
    """Choose the number of threads, and let malloc keep freed memory, if this process computes on CPUs.

    Both apply to the whole process, so only commands call it, which own their process.
    """
    if not cpu and torch.accelerator.is_available():
        return
    if (threads := num_threads()) is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Set glibc's malloc to keep freed memory instead of returning it to the system.

    Each training step frees and allocates tensors of the same sizes. Fresh pages make a CPU step 15 to 20 % slower
    (measured). malloc's settings cannot be read and restored, so this is for commands, which own their process.
    """
    trim_threshold, mmap_threshold = -1, -3  # parameters of mallopt, as malloc.h numbers them
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    if mallopt(mmap_threshold, 2**30):  # if refused, keep the default, which adapts itself
        mallopt(trim_threshold, 2**31 - 1)


def precision(wanted: str, cpu: bool) -> str:
    """Return the mixed precision for `train.mixed_precision`.

    `auto` is bf16 on CPUs and NVIDIA GPUs with instructions for it (on CPUs: AVX512_BF16), fp16 on other NVIDIA GPUs,
    and `no` elsewhere.

    Raises: UserError for fp16 without a GPU, which would silently compute in float32.
    """
    on_cpu = cpu or not torch.accelerator.is_available()
    if wanted == "fp16" and on_cpu:
        raise UserError("train.mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no")
    if wanted != "auto":
        return wanted
    if on_cpu:
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"  # others are slower in it
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "no"
