"""Losses on VGG features, compared with torchvision, torchmetrics and lpips; and the files that they read."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from reference_losses import photo_tensors
from vgg import random_weights, read_network, write_weights

from accel_restore.errors import UserError
from accel_restore.losses import build_loss
from accel_restore.losses.perceptual import torchmetrics_file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vgg")
    return {network: write_weights(folder, network) for network in ("vgg16", "vgg19")}


def features_after(network: str, path: str, images: torch.Tensor, count: int) -> torch.Tensor:
    """Return the output of torchvision's first `count` layers for images in [0, 1]."""
    from torchvision import transforms

    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = images.expand(-1, 3, -1, -1)
    with torch.no_grad():
        return read_network(network, path)[:count].to(images.dtype)(normalize(images))


@pytest.mark.parametrize(
    ("arguments", "network", "counts", "criterion"),
    [
        ({}, "vgg19", {35: 1.0}, torch.nn.L1Loss()),  # conv5_4, as in ESRGAN
        ({"network": "vgg16"}, "vgg16", {29: 1.0}, torch.nn.L1Loss()),
        ({"network": "vgg16", "layers": {"relu2_2": 1.0}, "criterion": "mse"}, "vgg16", {9: 1.0}, torch.nn.MSELoss()),
        ({"layers": {"conv1_2": 0.5, "relu1_2": 2, "pool3": 1.0}}, "vgg19", {3: 0.5, 4: 2, 19: 1}, torch.nn.L1Loss()),
    ],
)
def test_perceptual_loss_compares_the_named_layers(files, arguments, network, counts, criterion):
    output, gt = photo_tensors(2, 33, 40, dtype=torch.float64)
    loss = build_loss({"perceptual": {"weights": files[network], **arguments}})
    expected = [
        sum(
            weight * criterion(*(features_after(network, files[network], images, count) for images in pair)).item()
            for count, weight in counts.items()
        )
        for pair in zip(output.split(1), gt.split(1), strict=True)
    ]
    assert loss(output, gt).tolist() == pytest.approx(expected, rel=1e-7)
    assert loss(output.float(), gt.float()).tolist() == pytest.approx(expected, rel=1e-3)
    gray = output[:, :1], gt[:, :1]
    assert loss(*gray).equal(loss(*(images.expand(-1, 3, -1, -1) for images in gray)))


def test_lpips_equals_torchmetrics(files):
    from torchmetrics.functional.image.lpips import _LPIPS

    output, gt = photo_tensors(3, 50, 64)
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    copy_network(theirs.net, files["vgg16"])
    check_lpips(theirs.eval(), files["vgg16"], output, gt)


def test_lpips_equals_the_authors_implementation(files):
    lpips = pytest.importorskip("lpips")
    output, gt = photo_tensors(3, 50, 64)
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    copy_network(theirs.net, files["vgg16"])
    check_lpips(theirs.eval(), files["vgg16"], output, gt)


def copy_network(theirs: torch.nn.Module, path: str) -> None:
    """Load the weights of a file into the five slices, whose layers have torchvision's numbers."""
    state = torch.load(path, weights_only=True)
    theirs.load_state_dict({name: state["features." + name.partition(".")[2]] for name in theirs.state_dict()})


def check_lpips(theirs: torch.nn.Module, path: str, output: torch.Tensor, gt: torch.Tensor) -> None:
    with torch.no_grad():
        expected = theirs(output, gt, normalize=True).flatten().tolist()
    assert min(expected) > 1e-3
    assert build_loss({"lpips": {"weights": path}})(output, gt).tolist() == pytest.approx(expected, rel=1e-4)


def test_lpips_has_a_gradient_where_all_features_are_zero(files, tmp_path):
    state = {name: torch.zeros_like(value) for name, value in random_weights("vgg16").items()}
    torch.save(state, tmp_path / "dead.pth")
    output, gt = photo_tensors(1, 16, 16)
    output.requires_grad_()
    build_loss({"lpips": {"weights": str(tmp_path / "dead.pth")}})(output, gt).sum().backward()
    assert output.grad.eq(0).all()


def test_weights_are_read_from_both_torch_formats_and_safetensors(files, tmp_path):
    output, gt = photo_tensors(1, 24, 24)
    expected = build_loss({"perceptual": {"weights": files["vgg19"]}})(output, gt)
    whole = {**random_weights("vgg19"), "classifier.0.weight": torch.zeros(3, 3)}
    torch.save(whole, tmp_path / "old.pth", _use_new_zipfile_serialization=False)  # the format of torchvision's files
    safetensors.torch.save_file(whole, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        assert build_loss({"perceptual": {"weights": str(tmp_path / name)}})(output, gt).equal(expected)


def test_missing_weights_are_reported_with_their_source(files, tmp_path):
    for setting in ({}, {"weights": str(tmp_path / "vgg19.pth")}):
        with pytest.raises(UserError) as error:
            build_loss({"perceptual": {"weight": 0.1, **setting}})
        said = str(error.value)
        assert said.startswith("loss.perceptual.weights: ") and "\n" not in said
        assert "vgg19-dcbb9e9d.pth (https://download.pytorch.org/models/vgg19-dcbb9e9d.pth)" in said
    with pytest.raises(UserError, match=r"^loss\.lpips\.weights: missing; get vgg16-397923af\.pth"):
        build_loss({"lpips": 1.0})
    with pytest.raises(
        UserError, match=r"^loss\.lpips\.linear: .*none\.pth is not a file; get lpips/weights/v0\.1/vgg"
    ):
        build_loss({"lpips": {"weights": files["vgg16"], "linear": "none.pth"}})


def test_unusable_weights_are_rejected_on_one_line(files, tmp_path):
    paths = {name: tmp_path / name for name in ("text.pth", "cut.pth", "text.safetensors", "list.pth", "hostile.pth")}
    paths["text.pth"].write_text("no weights")
    paths["text.safetensors"].write_text("no weights")
    with Path(files["vgg16"]).open("rb") as file:
        paths["cut.pth"].write_bytes(file.read(10_000))
    torch.save([1, 2], paths["list.pth"])
    torch.save({"features.0.weight": Touch(tmp_path / "touched")}, paths["hostile.pth"])
    for path in paths.values():
        with pytest.raises(UserError, match=rf"^loss\.perceptual\.weights: .*{path.name} [^\n]*dcbb9e9d[^\n]*$"):
            build_loss({"perceptual": {"weights": str(path)}})
    assert not (tmp_path / "touched").exists()
    torch.load(paths["hostile.pth"], weights_only=False)
    assert (tmp_path / "touched").exists(), "control: unpickling executes code"
    with pytest.raises(UserError, match=r"vgg16\.pth holds other weights \(features\.16\.weight is missing, not \(256"):
        build_loss({"perceptual": {"weights": files["vgg16"]}})
    with pytest.raises(UserError, match=r"loss\.lpips\.linear: .*vgg16\.pth holds other weights"):
        build_loss({"lpips": {"weights": files["vgg16"], "linear": files["vgg16"]}})


def test_a_pointer_of_git_lfs_has_one_remedy(tmp_path):
    (tmp_path / "vgg.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=r"git lfs pull") as raised:
        build_loss({"perceptual": {"weights": str(tmp_path / "vgg.pth")}})
    assert "; get " not in str(raised.value)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "vgg91"}, r"loss\.perceptual: .*unknown choice 'vgg91'.*did you mean 'vgg19'"),
        ({"criterion": "l2"}, r"unknown choice 'l2'; choose one of: l1, mse"),
        ({"layers": {"conv5_5": 1.0}}, r"unknown choice 'conv5_5'; choose one of: .*, pool5$"),
        ({"layers": {}}, "layers: must map"),
        ({"layers": {"conv5_4": 0}}, "layers: must map"),
        ({"layers": ["conv5_4"]}, "layers: must map"),
        ({"layer": {"conv5_4": 1}}, r"loss\.perceptual\.layer: unknown key; did you mean 'loss\.perceptual\.layers'"),
    ],
)
def test_invalid_arguments_are_rejected_with_their_key(files, arguments, message):
    with pytest.raises(UserError, match=message):
        build_loss({"perceptual": {"weights": files["vgg19"], **arguments}})


def test_shallow_layers_accept_smaller_images(files):
    sides = {"relu1_2": 1, "conv2_1": 2, "relu3_3": 4, "pool5": 32}
    for layer, side in sides.items():
        loss = build_loss({"perceptual": {"weights": files["vgg19"], "layers": {layer: 1.0}}})
        assert loss.smallest_side == side
        assert loss(*photo_tensors(1, side, side)).isfinite().all()


def test_the_default_linear_weights_equal_those_of_lpips():
    lpips = pytest.importorskip("lpips")
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).state_dict()
    for name, value in torch.load(
        torchmetrics_file("lpips_models/vgg.pth"), weights_only=True, map_location="cpu"
    ).items():
        assert value.equal(theirs[name])
