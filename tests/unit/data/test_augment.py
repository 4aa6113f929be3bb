"""A batch is turned and degraded in a number of operations that does not depend on its size."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from accel_restore.data.augment import FLIPS, finish_batch, turned


class Operations(TorchDispatchMode):
    """Counts the operations of torch in its context; on a GPU each is about one kernel."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operations_of(size, degrade=None):
    codes = torch.arange(size) % 8
    images = torch.randint(0, 256, (size, 16, 16, 3), dtype=torch.uint8)
    batch = {"gt": images, "flips": codes, "seeds": np.arange(size, dtype=np.uint64)}
    batch |= {"input": images} if degrade is None else {}
    finish_batch(batch, degrade, channels_last=True)  # the first batch of a size makes what all others use
    with Operations() as operations:
        finish_batch(batch, degrade, channels_last=True)
    return operations.count


def test_a_batch_is_turned_in_as_many_operations_as_one_sample():
    assert operations_of(32) == operations_of(1) < 30


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_each_code_turns_as_numpy_does(dtype, channels):
    levels = torch.arange(8 * 6 * 6 * channels).view(8, 6, 6, channels) % 251
    crops = levels.to(dtype)
    for code, (crop, output) in enumerate(zip(crops.numpy(), turned(crops, torch.arange(8)), strict=True)):
        crop = np.fliplr(crop) if code & FLIPS["hflip"] else crop
        crop = np.flipud(crop) if code & FLIPS["vflip"] else crop
        np.testing.assert_array_equal(output.numpy(), np.rot90(crop) if code & FLIPS["rot90"] else crop)
