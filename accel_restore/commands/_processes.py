"""The device of a command that applies weights, and the processes that share its work under a launcher."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from accel_restore.errors import UserError

if TYPE_CHECKING:
    import torch

_PATIENCE = timedelta(days=7)  # for a process that has the larger images; the launcher ends all when one dies


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work."""

    device: "torch.device"
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, items: list) -> list:
        """The items of all processes, in order of their ranks; every process calls it."""
        if self.world_size == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def together(self, action: Callable[[], Any]) -> Any:
        """The result of an action that every process does; a `UserError` of one is raised by all."""
        result, error = None, None
        try:
            result = action()
        except UserError as raised:
            error = raised
        for raised in self.gather([error]):
            if raised is not None:
                raise raised
        return result


def add_device(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where and how the network computes, the same for every command that applies one."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--device", help="such as cuda:1 (default: a GPU where there is one; one a process)")
    group.add_argument("--cpu", action="store_const", const="cpu", dest="device", help="the same as --device cpu")
    parser.add_argument(
        "--precision",
        choices=["no", "bf16", "fp16", "auto"],
        default="no",
        help="of the network (default: no, float32; with --run that of the run)",
    )


def choose_precision(wanted: str, device: "torch.device") -> str:
    """The precision that `--precision` means on a device. Raises: UserError for one that cannot be had."""
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--precision: fp16 needs a GPU; on a CPU use bf16 or no")
    if wanted != "auto":
        return wanted
    from accel_restore.distributed.accelerator import precision

    return precision("auto", device.type == "cpu")


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """This process and its device; under a launcher of several, a member of their group.

    Raises: UserError for a device that is not there, or a launch that is not what it seems.
    """
    import torch

    promised = int(os.environ.get("WORLD_SIZE", 1))
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type == "mps":  # Apple's GPUs have no float64, which scores need
        found = torch.device("cpu")
    try:
        chosen = torch.device(device or found)
        is_shared = promised > 1 and chosen.type != "cpu" and chosen.index is None
        if is_shared:  # as Accelerate does; all ranks on the first GPU would cost it memory for each
            index = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
            torch.empty(1, device=torch.device(chosen.type, index))
        else:
            torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {device} cannot be used here ({str(error).splitlines()[0]:.200})") from error
    if promised == 1:
        yield Processes(chosen)
        return
    if chosen.index is not None:
        raise UserError(f"--device: {device} is one device for {promised} processes; leave its number out")
    from accelerate import PartialState

    state = PartialState(cpu=chosen.type == "cpu", timeout=_PATIENCE)
    if state.num_processes != promised:
        raise UserError(
            f"the launcher started {promised} processes, but Accelerate sees {state.num_processes}; start with torchrun"
        )
    try:
        yield Processes(state.device, state.process_index, state.num_processes)
    finally:
        state.destroy_process_group()
