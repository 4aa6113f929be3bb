"""A program that trains its own objects with `fit`, on any number of ranks; see `forked.start_ranks`."""

import os
import sys
from pathlib import Path

import torch
import yaml
from torch import nn

import accel_restore
from accel_restore.errors import CallbackError, UserError


class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 1)

    def forward(self, x):
        return x + self.last(self.first(x))


class Count(accel_restore.Callback):
    def __init__(self):
        self.steps = 0

    def on_step(self, state):
        self.steps += 1

    def on_exit(self, state, error):
        print(f"steps on rank {os.environ.get('RANK', '0')}: {self.steps}", flush=True)


def mean_error(output, gt):
    return (output - gt).abs().flatten(1).mean(1)


def main(file: str, width_of_rank_1: int = 4) -> int:
    """Train; each rank draws its model from another seed."""
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(5 + rank)
    model = Net(width_of_rank_1 if rank == 1 else 4)
    config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    try:
        accel_restore.fit(config, model=model, loss=mean_error, callbacks=[Count()], cpu=True)
    except (UserError, CallbackError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0
