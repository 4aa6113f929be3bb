"""LPIPS and DISTS, compared with torchmetrics on networks with random weights. Nothing is downloaded."""

import functools

import numpy as np
import pytest
import torch
from photographs import photograph
from safetensors.torch import save_file
from torch import nn

from accel_restore.errors import UserError
from accel_restore.metrics import get_metric
from accel_restore.metrics.protocol import Protocol
from accel_restore.state import Scores

NETWORKS = {"lpips": "alexnet", "dists": "vgg16"}


@functools.cache
def features(network: str) -> nn.Sequential:
    """Return the network's convolutional layers, with random weights that preserve the variance of a signal."""
    from torchvision import models

    with torch.device("meta"):
        layers = getattr(models, network)(weights=None).features
    layers.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(3)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return layers.requires_grad_(False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights in the form of torchvision's files: a .pth and a .safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {"lpips": folder / "alexnet.pth", "dists": folder / "vgg16.safetensors"}
    for name, network in NETWORKS.items():
        tensors = {f"features.{key}": value for key, value in features(network).state_dict().items()}
        tensors["classifier.6.bias"] = torch.zeros(1000)
        (torch.save if paths[name].suffix == ".pth" else save_file)(tensors, paths[name])
    return {name: str(path) for name, path in paths.items()}


def reference(name: str, monkeypatch) -> nn.Module:
    from torchmetrics.functional.image import dists as reference_dists
    from torchmetrics.functional.image import lpips as reference_lpips

    if name == "dists":
        stub = type("Stub", (), {"features": features("vgg16")})
        monkeypatch.setattr(reference_dists, "vgg16", lambda weights: stub)
        return reference_dists.DISTSNetwork()
    monkeypatch.setattr(reference_lpips, "_get_tv_model_features", lambda network, pretrained: features(network))
    network = reference_lpips._LPIPS(pretrained=True, net="alex")
    return lambda output, gt: network(output, gt, normalize=True).flatten()


def pairs(side: int = 65) -> tuple[torch.Tensor, torch.Tensor]:
    photo = photograph("astronaut")
    gt = np.stack([photo[top : top + side, 90 : 90 + side + 4] for top in (0, 100, 200)]) / 255
    output = gt + np.random.default_rng(0).normal(0, np.array([0.02, 0.1, 0.3]).reshape(3, 1, 1, 1), gt.shape)
    return tuple(torch.from_numpy(images).permute(0, 3, 1, 2).clamp(0, 1) for images in (output, gt))


@pytest.mark.parametrize("name", NETWORKS)
def test_distances_equal_torchmetrics(name, files, monkeypatch):
    measure, (output, gt) = get_metric(name).build(files[name]), pairs()
    values = measure(output, gt)
    assert values.shape == (3,) and values.max() - values.min() > 1e-3
    torch.testing.assert_close(values, reference(name, monkeypatch)(output.float(), gt.float()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measure(gt, gt), torch.zeros(3), rtol=0, atol=1e-5)
    assert values[2] > values[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_distances_treat_gray_as_rgb_and_ignore_y_channel(name, files):
    measure, (output, gt) = get_metric(name).build(files[name]), pairs()
    gray = [images[:, :1] for images in (output, gt)]
    torch.testing.assert_close(measure(*gray), measure(*(images.repeat(1, 3, 1, 1) for images in gray)))
    score = {y: Protocol(metrics=(name,), weights=files, y_channel=y).scores[name](output, gt) for y in (True, False)}
    assert score[True].equal(score[False])


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_the_smallest_side_can_be_scored(name, files):
    measure, side = get_metric(name).build(files[name]), get_metric(name).smallest_side
    images = torch.rand(2, 1, 3, side, side)
    assert measure(*images).isfinite().all()
    assert Protocol(metrics=("psnr", name), crop_border=2).smallest_side == side + 4


def test_distances_are_monitored_as_lower_is_better_and_psnr_as_higher():
    for name, better, worse in (("lpips", 0.2, 0.3), ("psnr", 30.0, 29.0)):
        first, second = (Scores(loss, {name: value}, {}, {}) for loss, value in ((1.0, better), (0.5, worse)))
        protocol = Protocol(metrics=(name,), weights={})
        assert protocol.monitored_value(first, name) < protocol.monitored_value(second, name)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, r"validation\.weights\.lpips: missing; get alexnet"),
        ({"lpips": "nowhere.pth"}, r"validation\.weights\.lpips: nowhere\.pth is not a file; get alexnet"),
        ({"lpips": "dists"}, r"validation\.weights\.lpips: .* holds other weights"),
        ({"lpips": __file__}, r"validation\.weights\.lpips: .* is a text"),
    ],
)
def test_unusable_weights_are_rejected_with_their_key(weights, message, files):
    weights = {name: files.get(path, path) for name, path in weights.items()}
    with pytest.raises(UserError, match=message):
        _ = Protocol(metrics=("lpips",), weights=weights).scores
