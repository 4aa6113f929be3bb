"""DISTS and the contextual loss: against torchmetrics and against the formulas, written out position by position."""

import numpy as np
import pytest
import torch
from reference_losses import photo_tensors
from vgg import read_network, write_weights

from accel_restore.errors import UserError
from accel_restore.losses import build_loss, contextual
from accel_restore.losses.perceptual import torchmetrics_file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vgg")
    return {network: write_weights(folder, network) for network in ("vgg16", "vgg19")}


# DISTS ----------------------------------------------------------------------------------------------------------------


def test_dists_equals_torchmetrics(files, monkeypatch):
    from torchmetrics.functional.image import dists as reference_dists

    stub = type("Stub", (), {"features": read_network("vgg16", files["vgg16"])})
    monkeypatch.setattr(reference_dists, "vgg16", lambda weights: stub)
    theirs = reference_dists.DISTSNetwork()
    output, gt = photo_tensors(3, 50, 65)
    output.requires_grad_()
    expected = theirs(output, gt, require_grad=True)
    found = build_loss({"dists": {"weights": files["vgg16"]}})(output, gt)
    assert found.shape == (3,) and len(set(found.tolist())) == 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(values.sum(), output)[0] for values in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-7)


def test_dists_of_gray_images_is_that_of_gray_rgb(files):
    loss = build_loss({"dists": {"weights": files["vgg16"]}}, channels=1)
    output, gt = photo_tensors(2, 24, 24, 1)
    assert loss(output, gt).equal(loss(output.expand(-1, 3, -1, -1), gt.expand(-1, 3, -1, -1)))


def test_dists_reads_the_learned_weights_from_a_file(files, tmp_path):
    output, gt = photo_tensors(1, 24, 24)
    setting = {"weights": files["vgg16"]}
    learned = torch.load(torchmetrics_file("dists_models/weights.pt"), weights_only=True)
    torch.save(
        {name: 3 * value for name, value in learned.items()}, tmp_path / "scaled.pt"
    )  # they are divided by a sum
    torch.save({"alpha": learned["beta"], "beta": learned["alpha"]}, tmp_path / "swapped.pt")
    expected, scaled, swapped = (
        build_loss({"dists": setting | more})(output, gt)
        for more in ({}, *({"alpha_beta": str(tmp_path / f"{name}.pt")} for name in ("scaled", "swapped")))
    )
    torch.testing.assert_close(scaled, expected)
    assert (swapped - expected).abs().item() > 1e-4
    with pytest.raises(UserError, match=r"^loss\.dists\.weights: missing; get vgg16-397923af\.pth"):
        build_loss({"dists": 1.0})
    with pytest.raises(
        UserError, match=r"^loss\.dists\.alpha_beta: .*vgg16\.pth holds other weights \(alpha is missing"
    ):
        build_loss({"dists": setting | {"alpha_beta": files["vgg16"]}})


# Contextual -----------------------------------------------------------------------------------------------------------


def by_hand(x: np.ndarray, y: np.ndarray, h: float) -> float:
    """Return the contextual loss of features (F, H, W) of one image, as in the paper."""
    x, y = (values.reshape(len(values), -1) for values in (x, y))
    centre = y.mean(1, keepdims=True)
    x, y = x - centre, y - centre
    similarity = np.zeros((x.shape[1], y.shape[1]))
    for i in range(x.shape[1]):
        d = np.array([1 - x[:, i] @ column / (np.linalg.norm(x[:, i]) * np.linalg.norm(column)) for column in y.T])
        w = np.exp((1 - d / (d.min() + 1e-5)) / h)
        similarity[i] = w / w.sum()
    return -np.log(similarity.max(0).mean())


def features_after(path: str, count: int, images: torch.Tensor) -> np.ndarray:
    mean, std = (torch.tensor(v).view(3, 1, 1).double() for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network = read_network("vgg19", path)[:count].double()
    with torch.no_grad():
        return network((images.expand(-1, 3, -1, -1).double() - mean) / std).numpy()


@pytest.mark.parametrize(
    ("arguments", "counts", "h"),
    [
        ({}, {18: 1.0}, 0.5),  # the activation of conv3_4
        ({"layers": {"conv2_2": 0.5, "relu3_2": 2}, "bandwidth": 0.1}, {8: 0.5, 14: 2}, 0.1),
    ],
)
def test_the_contextual_loss_is_that_of_the_paper(files, arguments, counts, h):
    output, gt = photo_tensors(2, 24, 33, dtype=torch.float64)
    loss = build_loss({"contextual": {"weights": files["vgg19"], **arguments}})
    expected = np.zeros(2)
    for count, weight in counts.items():
        pairs = zip(*(features_after(files["vgg19"], count, images) for images in (output, gt)), strict=True)
        expected += weight * np.array([by_hand(x, y, h) for x, y in pairs])
    assert loss(output, gt).tolist() == pytest.approx(expected, rel=1e-6)
    assert loss(output.float(), gt.float()).tolist() == pytest.approx(expected, rel=1e-2)


def test_moved_textures_cost_little(files):
    gt, other = torch.rand(2, 1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    loss = build_loss({"contextual": {"weights": files["vgg19"]}})
    moved, other = loss(gt.roll((8, 4), (2, 3)), gt).item(), loss(other, gt).item()
    assert moved < 0.75 * other


def test_large_features_are_compared_in_regions(files, monkeypatch):
    output, gt = photo_tensors(2, 40, 72, dtype=torch.float64)  # 10x18 features
    loss = build_loss({"contextual": {"weights": files["vgg19"]}})
    whole = loss(output, gt)
    monkeypatch.setattr(contextual, "_MOST", 9)  # 2 x 2 regions
    found = loss(output, gt)
    x, y = (features_after(files["vgg19"], 18, images) for images in (output, gt))
    assert x.shape[2:] == (10, 18)
    expected = [
        np.mean(
            [by_hand(x[i, :, r : r + 5, c : c + 9], y[i, :, r : r + 5, c : c + 9], 0.5) for r in (0, 5) for c in (0, 9)]
        )
        for i in range(2)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-6) and not torch.allclose(found, whole, rtol=1e-2)
    monkeypatch.setattr(contextual, "_MOST", 7)  # regions of unequal sizes: each position counts the same
    parts = [(r, c) for r in (slice(0, 5), slice(5, 10)) for c in (slice(0, 6), slice(6, 12), slice(12, 18))]
    weighted = sum(
        by_hand(x[0][:, r, c], y[0][:, r, c], 0.5) * (r.stop - r.start) * (c.stop - c.start) for r, c in parts
    )
    assert loss(output, gt)[0].item() == pytest.approx(weighted / 180, rel=1e-6)


def test_the_contextual_loss_has_a_finite_gradient_where_all_features_are_equal(files):
    output = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    build_loss({"contextual": {"weights": files["vgg19"]}})(output, torch.full((1, 3, 16, 16), 0.25)).sum().backward()
    assert output.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": {"conv5_5": 1.0}}, r"loss\.contextual: .*unknown choice 'conv5_5'"),
        ({"layers": {}}, "layers: must map"),
        ({"layers": {"relu3_4": -1}}, "layers: must map"),
        ({"bandwidth": 0}, r"bandwidth=0 is not allowed: it must be a number above 0"),
        ({"band_width": 0.1}, r"loss\.contextual\.band_width: unknown key; did you mean 'loss\.contextual\.bandwidth'"),
        ({"weights": None}, r"loss\.contextual\.weights: missing; get vgg19-dcbb9e9d\.pth"),
    ],
)
def test_invalid_arguments_are_refused_with_their_key(files, arguments, message):
    with pytest.raises(UserError, match=message):
        build_loss({"contextual": {"weights": files["vgg19"], **arguments}})


@pytest.mark.parametrize("name", ["dists", "contextual"])
def test_images_of_other_channels_are_refused(files, name):
    with pytest.raises(UserError, match=rf"loss\.{name}: needs images of 1 or 3 channels, but gt has 4"):
        build_loss({name: {"weights": files["vgg16" if name == "dists" else "vgg19"]}}, channels=4)
