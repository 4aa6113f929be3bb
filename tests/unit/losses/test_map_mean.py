"""Means over pixels are the same for blocks of any size, and large images need little memory."""

from functools import partial

import pytest
import torch
from torch import Tensor

from accel_restore.losses import build_loss, map_mean
from accel_restore.losses.map_mean import mean_of_map
from accel_restore.metrics.protocol import Protocol
from accel_restore.utils.memory import LiveBytes

PROTOCOLS = {
    "plain": Protocol(),
    "luma, border, 8 bits": Protocol(crop_border=3, y_channel=True, quantize=True),
    "float": Protocol(float_range=(0.0, 1.0)),
}
WHOLE = 2**40  # values of a block: any image is one


def pair(height: int, width: int, count: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    gt = torch.rand(count, 3, height, width, generator=generator)
    return gt + 0.1 * torch.randn(gt.shape, generator=generator), gt


def with_blocks(monkeypatch, most: int, function, *images: Tensor):
    with monkeypatch.context() as patch:
        patch.setattr(map_mean, "_MOST_ON_CPU", most)
        return function(*images)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("size", [(61, 143), (150, 27), (17, 17)])
def test_scores_are_bit_identical_for_blocks_of_any_size(monkeypatch, protocol, size):
    images = pair(*size, count=2)
    for score in protocol.scores.values():
        whole = with_blocks(monkeypatch, WHOLE, score, *images)
        assert whole.isfinite().all()
        for most in (1, 2**12, 2**15):
            assert with_blocks(monkeypatch, most, score, *images).equal(whole)


def test_a_block_that_lacks_its_margin_changes_the_mean():
    """The control."""
    output, gt = pair(40, 40)
    shifted = lambda output, gt: output[..., 3:, 3:] - gt[..., :-3, :-3]  # noqa: E731
    whole = shifted(output, gt).flatten(1).mean(1)
    assert mean_of_map(shifted, output, gt, 3, most=300).equal(whole)
    with pytest.raises(RuntimeError):
        mean_of_map(shifted, output, gt, 2, most=300)


@torch.no_grad()
def peak(function, *images: Tensor) -> float:
    """Return the most bytes of tensors, the two images among them, as a multiple of one image's."""
    with LiveBytes() as live:
        function(*images)
    return live.most / images[0].nbytes


def test_scores_of_a_large_image_need_one_float64_image_of_memory(monkeypatch):
    images = pair(600, 500)
    for name, score in Protocol().scores.items():
        assert peak(score, *images) < 2 + 3, name
        assert with_blocks(monkeypatch, WHOLE, partial(peak, score), *images) >= 2 + 6, name


@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_ssim_losses_of_a_large_image_need_little_memory_where_there_is_no_gradient(name):
    images, loss = pair(600, 500), build_loss({name: 1.0})
    with LiveBytes() as live:
        whole = loss(*images)  # the control: with gradients
    assert peak(loss, *images) < 2 + 2 < 10 < live.most / images[0].nbytes
    with torch.no_grad():
        torch.testing.assert_close(loss(*images), whole, rtol=0, atol=1e-6)


def test_an_image_without_a_place_for_the_window_has_no_score():
    assert Protocol().scores["ssim"](*pair(10, 30)).isnan().all()
