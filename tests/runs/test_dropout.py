"""Two ranks with dropout, accumulation and mid-epoch stops: the continued run is bit-identical; no state is stored."""

import pytest
import torch
from forked import launch
from runs import last_weights, small_config, succeed
from torch import nn

PHOTOS = 21, 2  # training, validation


class Net(nn.Module):
    def __init__(self, channels: int = 3):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, channels, 3, padding=1)
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout(0.3)

    def forward(self, x):
        return x + self.last(self.dropout(self.norm(self.first(x)).relu()))


@pytest.mark.parametrize(("mode", "is_equal"), [("", True), ("without=seeds,", False)], ids=["seeded", "control"])
def test_a_killed_run_with_dropout_ends_bit_identically_on_two_ranks(photos, tmp_path, mode, is_equal):
    whole, killed = (
        small_config(
            *photos,
            tmp_path,
            run={"name": name},
            data={"batch_size": 2},
            train={"gradient_accumulation_steps": 2, "epochs": 2},
            checkpoint={"every_steps": 2},
        )
        for name in ("whole", "killed")
    )
    for config in (whole, killed):
        config["model"] = {"name": "test_dropout:Net"}
    succeed(launch(whole, ranks=2, mode=mode.rstrip(",")))
    assert launch(killed, ranks=2, mode=f"{mode}kill:5").returncode != 0
    succeed(launch(killed, ranks=2, mode=mode.rstrip(",")))
    weights, others = last_weights(whole), last_weights(killed)
    equal = [name for name, tensor in weights.items() if torch.equal(tensor, others[name])]
    assert (len(equal) == len(weights)) == is_equal
