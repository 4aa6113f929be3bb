"""Tiles fit the memory of the device."""

import pytest
import torch

from accel_restore.inference import apply as applying
from accel_restore.inference.apply import ModelRunner, Settings
from accel_restore.models import ImageSpec


class Limited(torch.nn.Module):
    """A network that runs out of memory above `most` pixels, and adds 0.1."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        if images.shape[0] * images.shape[2] * images.shape[3] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images + 0.1


def test_a_device_that_runs_out_of_memory_gets_smaller_tiles():
    images = torch.rand(1, 3, 200, 190)
    network = Limited(100 * 100)
    output = ModelRunner(network, ImageSpec.of(3), torch.device("cpu"))(images, Settings(tile=None, tile_overlap=32))
    torch.testing.assert_close(output, images + 0.1, rtol=0, atol=1e-6)
    sides = [max(shape[2:]) for shape in network.seen]
    assert sides[0] == 200 and sides[-1] <= 96 and sides == sorted(sides, reverse=True)
    with pytest.raises(applying.UserError, match="out of memory, even with small tiles"):
        ModelRunner(Limited(100), ImageSpec.of(3), torch.device("cpu"))(images, Settings(tile=None, tile_overlap=32))
    with pytest.raises(RuntimeError, match="something else"):  # the control: other errors are not hidden

        def fail(images):
            raise RuntimeError("something else")

        ModelRunner(fail, ImageSpec.of(3), torch.device("cpu"))(images, Settings(tile=None))


def test_a_network_that_cannot_be_measured_sees_the_whole_image():
    def picky(images):
        assert images.shape[-1] == 333, "takes nothing else"
        return images

    images = torch.rand(1, 3, 333, 333)
    assert ModelRunner(picky, ImageSpec.of(3), torch.device("cpu"))(images, Settings()).equal(images)


def test_only_bytes_of_live_tensors_are_counted():
    def network(images):
        wide = images.repeat(1, 10, 1, 1)
        narrow = wide[:, :3].clone()
        del wide
        return narrow + narrow

    counted = ModelRunner(network, ImageSpec.of(3), torch.device("cpu")).bytes_per_pixel("no")
    assert counted == (1 + 10 + 1) * 3 * 4  # the image, ten copies, the clone; not the later sum
