"""Tiles and the self-ensemble, compared with the network's output for the whole image."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from photographs import photograph
from torch import nn
from torch.nn import functional as F

from accel_restore.metrics.protocol import Protocol
from accel_restore.models import tiling as inference
from accel_restore.models.tiling import cuts, self_ensemble, tiled
from accel_restore.models.unet import pad_to_multiple


def photo(height: int, width: int) -> torch.Tensor:
    pixels = photograph("coffee")[:height, :width].astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def network(radius: int, scale: int = 1) -> nn.Module:
    """Return a network with a receptive field of `radius` pixels and asymmetric weights; nearest neighbours enlarge."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(radius)]
    return nn.Sequential(*layers, nn.Upsample(scale_factor=scale) if scale > 1 else nn.Identity()).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (7, 200), (64, 64), (65, 64), (97, 130), (128, 81), (200, 7)], ids=str
)
@pytest.mark.parametrize(("tile", "overlap", "scale"), [(64, 16, 1), (32, 16, 2), (40, 16, 1), (80, 60, 1)], ids=str)
def test_tiles_equal_the_whole_image_if_the_overlap_covers_the_receptive_field(height, width, tile, overlap, scale):
    model, images = (
        network(6, scale),
        photo(height, width).repeat(2, 1, 1, 1) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1),
    )
    seen = []

    def spy(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape[-2:])
        return model(part)

    output = tiled(spy, images, tile, overlap, scale)
    assert output.shape == (2, 3, height * scale, width * scale)
    torch.testing.assert_close(output, model(images), rtol=0, atol=1e-6)
    assert max(max(shape) for shape in seen) <= tile
    assert len(seen) > 1 or (height <= tile and width <= tile)


def test_a_larger_receptive_field_gives_no_seams():
    """The control has no overlap, so tiles meet without a transition."""

    def brighten(images: torch.Tensor) -> torch.Tensor:  # by the mean over its tile
        return images + images.mean((-2, -1), keepdim=True)

    def steepest(overlap: int) -> float:
        added = tiled(brighten, images, 96, overlap) - images
        return max(added.diff(dim=dim).abs().max().item() for dim in (-2, -1))

    images = photo(300, 400)
    means = [brighten(images[..., top : top + 96, :96]) - images[..., top : top + 96, :96] for top in (0, 64, 128)]
    assert max(mean.max() for mean in means) - min(mean.min() for mean in means) > 0.05
    assert steepest(32) < 0.25 * steepest(0)


def test_networks_that_halve_the_size_see_the_whole_images_grid(monkeypatch):
    """In the control, tiles start anywhere."""

    def coarse(images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        small = F.avg_pool2d(pad_to_multiple(images, 16), 16)
        return F.interpolate(small, scale_factor=16)[..., :height, :width]

    images = photo(203, 331)
    torch.testing.assert_close(tiled(coarse, images, 100, 48), coarse(images), rtol=0, atol=1e-6)
    monkeypatch.setattr(inference, "GRID", 1)
    assert (tiled(coarse, images, 100, 48) - coarse(images)).abs().max() > 0.01


@pytest.mark.parametrize("side", [33, 64, 65, 100, 127, 128, 1000])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 16), (32, 0), (40, 10), (64, 48)])
def test_tiles_cover_a_side_overlap_enough_and_start_on_the_grid(side, tile, overlap):
    parts = cuts(side, tile, overlap)
    assert parts[0][0] == 0 and parts[-1][1] == side
    for (start, end), (after, _) in pairwise(parts):
        assert start < after <= end - overlap and after % 16 == 0
    assert all(0 < end - start <= tile for start, end in parts)


@pytest.mark.parametrize(("tile", "overlap"), [(16, 16), (31, 16), (64, -1)])
def test_a_tile_too_small_for_its_overlap_is_rejected(tile, overlap):
    with pytest.raises(ValueError, match="overlap"):
        tiled(nn.Identity(), torch.zeros(1, 3, 100, 100), tile, overlap)


@torch.no_grad()
def test_self_ensemble_is_the_mean_over_flips_and_rotations():
    model, images = network(2), photo(20, 31)
    expected = []
    for dims in ([], [-1], [-2], [-1, -2]):
        for turned in (False, True):
            given = images.flip(dims).mT if turned else images.flip(dims)
            back = model(given).mT if turned else model(given)
            expected.append(back.flip(dims))
    mean = torch.stack(expected).mean(0)
    torch.testing.assert_close(self_ensemble(model, images), mean)
    assert (mean - model(images)).abs().max() > 1e-3
    assert len({tuple(output.flatten().tolist()[:9]) for output in expected}) == 8


@torch.no_grad()
def test_self_ensemble_is_equivariant_and_enlarges():
    model, images = network(2, scale=2), photo(20, 31)
    output = self_ensemble(model, images)
    assert output.shape == (1, 3, 40, 62)
    torch.testing.assert_close(self_ensemble(model, images.rot90(1, (-2, -1))), output.rot90(1, (-2, -1)))
    torch.testing.assert_close(self_ensemble(model, images.flip(-1)), output.flip(-1))
    assert not torch.allclose(
        model(images.flip(-1)), model(images).flip(-1), atol=1e-3
    )  # the network alone is not equivariant


@torch.no_grad()
def test_the_protocol_determines_how_the_network_is_applied():
    model, images = network(3), photo(90, 75)
    plain = Protocol().output(model, images)
    assert plain.equal(model(images))
    torch.testing.assert_close(Protocol(tile=48, tile_overlap=16).output(model, images), plain, rtol=0, atol=1e-6)
    both = Protocol(self_ensemble=True, tile=48, tile_overlap=16).output(model, images)
    torch.testing.assert_close(both, self_ensemble(model, images), rtol=0, atol=1e-6)
    assert not torch.allclose(both, plain, atol=1e-3)
    enlarged = Protocol(tile=48, tile_overlap=16).output(network(3, 2), images, 2)
    torch.testing.assert_close(enlarged, F.interpolate(plain, scale_factor=2), rtol=0, atol=1e-6)
