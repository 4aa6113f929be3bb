"""The device of a command that applies weights, and the processes that share its work under a launcher."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from accel_restore.errors import UserError
from accel_restore.utils.launch import Launch, find_launch, set_joined

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

_TIMEOUT = timedelta(days=7)  # for processes with larger images; if one dies, the launcher ends all


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work."""

    device: "torch.device"
    state: "PartialState | None" = None  # None: the only process

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return 0 if self.state is None else self.state.process_index

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return 1 if self.state is None else self.state.num_processes

    def gather(self, items: list) -> list:
        """Return the items of all processes, in the order of their ranks; every process calls it."""
        if self.state is None:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def run_together(self, action: Callable[[], Any]) -> Any:
        """Return the result of an action that every process runs; all raise the `UserError` of one."""
        if self.state is None:
            return action()
        from accel_restore.distributed.collective import on_all_ranks

        return on_all_ranks(self.state, action)


def choose_precision(wanted: str, device: "torch.device") -> str:
    """Return the precision for `--precision` on a device. Raises: UserError if the device does not support it."""
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--precision: fp16 needs a GPU; on a CPU use bf16 or no")
    if wanted != "auto":
        return wanted
    from accel_restore.distributed.accelerator import precision

    return precision("auto", device.type == "cpu")


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Yield this process and its device; under a launcher, a member of the group of processes.

    Raises: UserError for an unavailable device, or if Accelerate does not see all processes.
    """
    launch = find_launch()
    world_size = launch.world_size
    chosen = _choose_device(device, launch)
    if world_size == 1:
        yield Processes(chosen)
        return
    if chosen.index is not None:
        raise UserError(f"--device: {device} is one device for {world_size} processes; omit its number")
    from accelerate import PartialState

    from accel_restore.distributed.rendezvous import DEFAULT_SECONDS, meet

    store = meet(launch, DEFAULT_SECONDS, "fixed")
    set_joined(launch.rank)
    with launch.environment():
        state = PartialState(cpu=chosen.type == "cpu", timeout=_TIMEOUT)
    del store
    if state.num_processes != world_size:
        raise UserError(
            f"the launcher started {world_size} processes, but Accelerate sees {state.num_processes}; use torchrun"
        )
    try:
        yield Processes(state.device, state)
    finally:
        state.destroy_process_group()


def _choose_device(device: str | None, launch: Launch) -> "torch.device":
    """Return the device to use, after a test allocation; without an index for several processes with a GPU each."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type == "mps":  # Apple's GPUs have no float64, which scores need
        found = torch.device("cpu")
    try:
        chosen = tested = torch.device(device or found)
        if launch.world_size > 1 and chosen.type != "cpu" and chosen.index is None:
            # The device that Accelerate chooses; all ranks on the first GPU would cost it memory for each.
            local_rank = launch.rank if launch.local_rank is None else launch.local_rank
            index = local_rank % torch.accelerator.device_count()
            tested = torch.device(chosen.type, index)
        torch.empty(1, device=tested)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {device} cannot be used here ({str(error).splitlines()[0]:.200})") from error
    return chosen
