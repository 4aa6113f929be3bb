"""FSDP2 on CPU processes. Accelerate enables it only on GPUs, so it is made to treat CPU processes as GPU processes."""

import faulthandler
import os

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import distributed

from accel_restore.trainer import setup as preparation


def install(policy: str, version: str = "2") -> None:
    """Set the environment as `accelerate launch --config_file launch/fsdp2.yaml` does.

    A process crashed once in malloc, in a thread of gloo, with torch 2.14 on a busy machine. Neither 30 runs under load
    nor 48 runs of torch's `fully_shard` alone over gloo, half of them with glibc's malloc checks, repeated it. If it
    happens again, the test fails and faulthandler prints the stack of each thread.
    """
    faulthandler.enable()
    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION=version,
        FSDP_AUTO_WRAP_POLICY=policy,
        FSDP_CPU_RAM_EFFICIENT_LOADING="false",
    )
    take_for_gpus()


def take_for_gpus() -> None:
    """Make Accelerate treat CPU processes as GPU processes; the shards are exchanged by gloo."""

    def backend(*_: object, **__: object) -> tuple[str, DistributedType]:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    def device(state: PartialState) -> None:
        state.device = torch.device("cpu")

    PartialState._prepare_backend, PartialState.set_device = backend, device


def tell_backend() -> None:
    """Make training print its distributed backend."""
    setup = preparation.setup_model_and_optimizer

    def telling(*arguments):
        print("joined by", distributed.get_backend(), flush=True)
        return setup(*arguments)

    preparation.setup_model_and_optimizer = telling
