"""The whole model that a sharded run validates takes memory only while it is filled."""

import torch
from torch import nn

from accel_restore.distributed.fsdp import copy_full_state, free_copy


class Net(nn.Module):
    """A network with tied weights, a buffer that is a view, and one that is in no state."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.tied = self.one.weight
        self.register_buffer("view", torch.arange(12.0).view(3, 4)[1:, ::2])
        self.register_buffer("constant", torch.tensor([2.0]), persistent=False)

    def forward(self, x):
        return self.norm(self.one(x)) * self.constant + self.view.sum()


def size_of(module):
    return sum(tensor.untyped_storage().nbytes() for tensor in module.state_dict().values())


def test_a_freed_copy_is_filled_with_the_state_of_the_model():
    target, model = (Net().to(memory_format=torch.channels_last).eval() for _ in range(2))
    model.view.mul_(3), model.norm.running_mean.add_(1)
    before = size_of(target)  # the buffer that is a view ends before its storage does
    for _ in range(2):
        free_copy(target)
        assert size_of(target) == 0
        assert copy_full_state(target, model) is target
        assert before - 8 <= size_of(target) <= before and target.tied is target.one.weight
        x = torch.rand(1, 3, 8, 8)
        assert target(x).equal(model(x))


def test_nothing_is_freed_without_a_copy():
    free_copy(None)
