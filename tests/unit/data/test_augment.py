"""A GPU turns and degrades a batch in as many operations as one sample; the CPU shows that the results are equal."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from accel_restore.data.augment import FLIPS, turned, turned_together
from accel_restore.data.degradations.pipeline import build_degradation


class Operations(TorchDispatchMode):
    """Counts the operations of torch in its context; on a GPU each is at most one kernel."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operations_of(function, make_arguments):
    counts = []
    for size in (1, 32):
        function(*make_arguments(size))  # the first call makes tables that all others use
        with Operations() as operations:
            function(*make_arguments(size))
        counts.append(operations.count)
    return counts


def crops_of(dtype, channels, size=8):
    return (torch.arange(size * 36 * channels).view(size, 6, 6, channels) % 251).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_each_code_turns_as_numpy_does_alone_and_together(dtype, channels):
    crops = crops_of(dtype, channels)
    together = turned_together(crops, torch.arange(8)).numpy()
    for code, crop in enumerate(crops.numpy()):
        expected = np.fliplr(crop) if code & FLIPS["hflip"] else crop
        expected = np.flipud(expected) if code & FLIPS["vflip"] else expected
        expected = np.rot90(expected) if code & FLIPS["rot90"] else expected
        np.testing.assert_array_equal(turned(crops[code], code).numpy(), expected)
        np.testing.assert_array_equal(together[code], expected)


def test_a_batch_is_turned_in_as_many_operations_as_one_sample():
    codes = torch.arange(32) % 8
    one, many = operations_of(
        lambda crops: turned_together(crops, codes[: len(crops)]), lambda n: (crops_of(torch.uint8, 3, n),)
    )
    assert one == many < 16  # most of them only make views


@pytest.mark.parametrize("steps", [[("gaussian_noise", {"sigma": [5, 50], "gray": 0.5})], [("gaussian_noise", {})] * 2])
def test_noise_is_added_to_a_batch_in_as_many_operations_as_to_one_sample(steps):
    def arguments(size):
        return torch.zeros(size, 3, 8, 8), np.arange(4, 4 + size, dtype=np.uint64)

    degrade = build_degradation(steps)
    one, many = operations_of(degrade.for_training(), arguments)
    assert many <= one + 6 and one < 40 * len(steps)  # 6: the first sample has no gray noise, some others have
    control_one, control_many = operations_of(degrade, arguments)
    assert control_many > 10 * control_one
