"""FSDP2 on CPU processes: Accelerate turns it on for GPUs alone, and here is made to take these for some."""

import faulthandler
import os

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import distributed

from accel_restore.trainer import setup as preparation


def install(policy: str, version: str = "2") -> None:
    """Set the environment up as `accelerate launch --config_file launch/fsdp2.yaml` does.

    A process crashed here once, in malloc, in a thread of gloo, with torch 2.14 on a busy machine. Neither 30 runs
    under load nor 24 of torch's `fully_shard` alone over gloo, half of them with glibc's checks of malloc, did so.
    Where it returns, the test fails, and faulthandler prints where each thread was.
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
    """Have Accelerate take CPU processes for such with GPUs, whose parts go over gloo."""

    def backend(*_: object, **__: object) -> tuple[str, DistributedType]:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    def device(state: PartialState) -> None:
        state.device = torch.device("cpu")

    PartialState._prepare_backend, PartialState.set_device = backend, device


def tell_backend() -> None:
    """Have training print what its processes are joined by."""
    setup = preparation.setup_model_and_optimizer

    def telling(*arguments):
        print("joined by", distributed.get_backend(), flush=True)
        return setup(*arguments)

    preparation.setup_model_and_optimizer = telling
