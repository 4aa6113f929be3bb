"""The callback that compares the weights of all ranks, and ends the run if they differ."""

import torch
from accelerate import Accelerator
from torch import nn

from accel_restore.errors import RunAbortedError
from accel_restore.models.parameters import unwrapped
from accel_restore.state import Callback, TrainState


class ReplicaCheck(Callback):
    """Compares a checksum of each parameter over the ranks, every `every_steps` steps and before each commit.

    The checksum is the sum of the parameter's bits as integers, computed on the device in one pass over the weights.
    A single value that differs changes it.
    """

    def __init__(self, accelerator: Accelerator, every_steps: int):
        self.accelerator, self.every_steps = accelerator, every_steps

    def on_step(self, state: TrainState) -> None:
        if state.step % self.every_steps == 0:
            self.check(state)

    def check(self, state: TrainState) -> None:
        """Compare now.

        Raises: RunAbortedError, on all ranks, if one holds other weights; it names that rank.
        """
        if self.accelerator.num_processes == 1 or self.accelerator.is_fsdp2:  # no two ranks hold the same
            return
        networks = {"": unwrapped(state.model)}
        if state.adversary is not None:
            networks["discriminator."] = state.adversary.module
        sums = torch.cat([checksums(network) for network in networks.values()])
        ranks = self.accelerator.gather(sums[None]).cpu()  # (ranks, parameters)
        if (ranks == ranks[0]).all():
            return
        rows = [tuple(row) for row in ranks.tolist()]
        usual = max(rows, key=rows.count)  # the majority's; rank 0's where there is none
        good, bad = rows.index(usual), [rank for rank, row in enumerate(rows) if row != usual]
        names = [of + name for of, network in networks.items() for name, _ in network.named_parameters()]
        first = next(name for name, a, b in zip(names, rows[bad[0]], usual, strict=True) if a != b)
        majority = f"; rank {', '.join(map(str, bad))} differs from the majority" if rows.count(usual) > 1 else ""
        raise RunAbortedError(
            f"step {state.step}: rank {bad[0]}'s weights differ from those of rank {good} (first in {first})"
            f"{majority}. Memory or a device is faulty: continue from the last commit, if necessary without that device"
        )


def checksums(model: nn.Module) -> torch.Tensor:
    """The sum of the bits of each parameter, as integers: (parameters,) int64."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        parameter.detach().view(kinds[parameter.element_size()]).sum(dtype=torch.int64)
        for parameter in model.parameters()
    ]
    return torch.stack(sums)
