"""Losses and scores against plain formulas and other implementations."""

import numpy as np
import pytest
import skimage.color
import skimage.data
import skimage.metrics
import torch
from torch.nn import functional as F

from accel_restore.errors import UserError
from accel_restore.losses import LOSSES, build_loss
from accel_restore.quality import Protocol, luma, psnr, ssim

PLAIN = {
    "l1": lambda output, gt: F.l1_loss(output, gt),
    "mse": lambda output, gt: F.mse_loss(output, gt),
    "charbonnier": lambda output, gt: ((output - gt) ** 2 + 1e-6).sqrt().mean(),
}


def random_pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    gt = torch.rand(shape, generator=generator, dtype=dtype)
    return gt + 0.1 * torch.randn(shape, generator=generator, dtype=dtype), gt


def photo_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(H, W, C) floats in [0, 1], the first one degraded; of odd sizes, dark, flat, tiny and gray."""
    random = np.random.default_rng(0)
    astronaut = skimage.data.astronaut() / 255
    parts = {
        "photo": astronaut[3:104, 7:80],
        "dark": astronaut[300:350, 100:133] * 0.05,
        "flat": np.full((24, 31, 3), 0.8),
        "tiny": astronaut[:11, :11],
        "gray": skimage.data.camera()[100:161, 200:255, None] / 255,
    }
    return {name: (np.clip(gt + random.normal(0, 0.05, gt.shape), 0, 1), gt) for name, gt in parts.items()}


PHOTOS = photo_pairs()


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()


def reference_ssim(output: np.ndarray, gt: np.ndarray) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return skimage.metrics.structural_similarity(output, gt, channel_axis=2, **options)


def test_every_loss_has_a_formula_here():
    assert set(PLAIN) == set(LOSSES)


@pytest.mark.parametrize("name", PLAIN)
def test_a_loss_gives_one_value_per_sample(name):
    output, gt = random_pair(4, 3, 9, 7)
    values = build_loss({name: 1.0})(output, gt)
    assert values.shape == (4,)
    torch.testing.assert_close(values, torch.stack([PLAIN[name](o, g) for o, g in zip(output, gt, strict=True)]))
    assert len(set(values.tolist())) == 4


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_are_finite_also_where_the_error_is_zero(name):
    output, gt = random_pair(2, 3, 5, 5, dtype=torch.float32)
    output[0] = gt[0]
    output.requires_grad_()
    build_loss({name: 1.0})(output, gt).sum().backward()
    assert output.grad.isfinite().all()
    assert output.grad[0].eq(0).all() and output.grad[1].ne(0).any()


def test_terms_are_weighted_and_take_arguments():
    output, gt = random_pair(3, 3, 8, 8)
    loss = build_loss({"l1": 0.5, "mse": {"weight": 2}, "charbonnier": {"eps": 0.1}})
    expected = [
        0.5 * F.l1_loss(o, g) + 2 * F.mse_loss(o, g) + ((o - g) ** 2 + 0.01).sqrt().mean()
        for o, g in zip(output, gt, strict=True)
    ]
    torch.testing.assert_close(loss(output, gt), torch.stack(expected))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"charbonnier": {"esp": 1e-3}}, r"loss\.charbonnier\.esp: unknown key; did you mean 'eps'"),
        ({"charbonnier": {"eps": "small"}}, r"loss\.charbonnier.*eps"),
        ({"l1": {"weight": 0}}, r"loss\.l1\.weight"),
        ({"l1": {"weight": True}}, r"loss\.l1\.weight"),
        ({"l1": {"weight": float("inf")}}, r"loss\.l1\.weight"),
        ({"no.such.package:loss": 1.0}, "no.such.package:loss"),
        ({"accel_restore.losses:nothing": 1.0}, "accel_restore.losses:nothing"),
        ({".losses:l1": 1.0}, ".losses:l1"),
        ({"os:system": 1.0}, "os:system"),
        ({"os:sep": 1.0}, r"loss.*os:sep"),
    ],
)
def test_what_cannot_be_a_loss_is_refused_by_its_key(terms, message):
    with pytest.raises(UserError, match=message):
        build_loss(terms)


def test_a_loss_by_import_path():
    output, gt = random_pair(2, 3, 8, 8)
    theirs = build_loss({"accel_restore.losses:charbonnier": {"eps": 0.5}})(output, gt)
    assert theirs.equal(build_loss({"charbonnier": {"eps": 0.5}})(output, gt))


@pytest.mark.parametrize("name", PHOTOS)
def test_psnr_equals_that_of_skimage(name):
    output, gt = PHOTOS[name]
    expected = skimage.metrics.peak_signal_noise_ratio(gt, output, data_range=1)
    assert psnr(tensor(output), tensor(gt)).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", PHOTOS)
def test_ssim_equals_that_of_skimage(name):
    output, gt = PHOTOS[name]
    expected = reference_ssim(output, gt)
    assert expected < 0.99
    assert ssim(tensor(output), tensor(gt)).item() == pytest.approx(expected, abs=1e-4)


def test_scores_are_per_image():
    batch = [tensor(image)[:, :, :20, :20] for image in (*PHOTOS["photo"], *PHOTOS["flat"])]
    output, gt = torch.cat(batch[::2]), torch.cat(batch[1::2])
    for metric in (psnr, ssim):
        values = metric(output, gt)
        assert values.shape == (2,)
        single = torch.cat([metric(output[i : i + 1], gt[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(values, single, rtol=1e-5, atol=1e-5)
        assert abs(values[0] - values[1]) > 1e-3
    assert psnr(gt, gt).isinf().all()
    torch.testing.assert_close(ssim(gt, gt), torch.ones(2).double())


def test_luma_is_that_of_bt601():
    photo = PHOTOS["photo"][1]
    expected = skimage.color.rgb2ycbcr(photo)[..., :1] / 255
    torch.testing.assert_close(luma(tensor(photo)), tensor(expected), rtol=0, atol=1e-6)
    black_and_white = luma(torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])).flatten()
    torch.testing.assert_close(black_and_white, torch.tensor([16 / 255, 235 / 255]))


@pytest.mark.parametrize(("border", "y_channel"), [(0, False), (4, False), (3, True)])
def test_the_protocol_decides_what_is_scored(border, y_channel):
    output, gt = PHOTOS["photo"]
    protocol = Protocol(crop_border=border, y_channel=y_channel)
    scored = [image[border : len(image) - border, border : image.shape[1] - border] for image in (output, gt)]
    if y_channel:
        scored = [skimage.color.rgb2ycbcr(image)[..., :1] / 255 for image in scored]
    prepared = [protocol.prepare(tensor(image)) for image in (output, gt)]
    expected = skimage.metrics.peak_signal_noise_ratio(scored[1], scored[0], data_range=1)
    assert psnr(*prepared).item() == pytest.approx(expected, abs=1e-4)
    assert ssim(*prepared).item() == pytest.approx(reference_ssim(*scored), abs=1e-4)
    assert protocol.describe()["crop_border"] == border and protocol.describe()["y_channel"] == y_channel


def test_images_are_clamped_before_they_are_scored():
    images = torch.tensor([-0.5, 0.25, 1.5]).view(1, 1, 1, 3)
    assert Protocol().prepare(images).flatten().tolist() == [0, 0.25, 1]
