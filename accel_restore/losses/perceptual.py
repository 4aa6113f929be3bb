"""Losses on the features of a network that has learnt to recognise objects; its weights come from a local file.

Nothing is ever downloaded. The network is frozen, follows the images to their device and precision, and is part of
neither the model nor its checkpoints.
"""

import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from accel_restore.errors import UserError
from accel_restore.utils.imports import unknown_choice

_FILES = {"vgg16": "vgg16-397923af.pth", "vgg19": "vgg19-dcbb9e9d.pth"}  # as torchvision names them
_LINEAR = "lpips/weights/v0.1/vgg.pth out of the wheel of the PyPI package lpips"
_SHIPPED = str(Path(find_spec("torchmetrics").origin).with_name("functional") / "image/lpips_models/vgg.pth")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the networks were trained on


class FeatureLoss(nn.Module):
    """(output, gt) → (B,): the sum over layers of a distance between the features of output and gt."""

    def __init__(self, key: str, network: str, layers: list[str], weights: str | None):
        """`key` is the loss's name in the configuration; `layers` are named as in the paper: conv3_4, relu3_4, pool3.

        Raises: UserError where `weights` is no file of that network's weights; ValueError for a layer it does not have.
        """
        super().__init__()
        features = _architecture(network)
        names = _layer_names(features)
        for name in layers:
            if name not in names:
                raise ValueError(f"layers: {unknown_choice(name, names)}")
        self.layers = {names.index(name): name for name in layers}
        self.network = features[: max(self.layers) + 1]
        self.smallest_side = 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in self.network)
        source = f"{_FILES[network]} (https://download.pytorch.org/models/{_FILES[network]})"
        wanted = {f"features.{name}": value.shape for name, value in self.network.state_dict().items()}
        found = read_tensors(weights, wanted, f"loss.{key}.weights", source)
        self.network.load_state_dict({name.removeprefix("features."): v for name, v in found.items()}, assign=True)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of the layers for images (B, 1 or 3, H, W) in [0, 1]."""
        values, found = (images.expand(-1, 3, -1, -1) - self.mean) / self.std, {}
        for position, layer in enumerate(self.network):
            values = layer(values)
            if position in self.layers:
                found[self.layers[position]] = values
        return found

    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        self.to(output.device, output.dtype)  # nothing to do from the second call on
        with torch.no_grad():
            expected = self.features(gt)
        found = self.features(output)
        return sum(self.distance(name, found[name], expected[name]) for name in found)

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        """The distance (B,) between features (B, C, H, W) of one layer."""
        raise NotImplementedError


class Perceptual(FeatureLoss):
    """The mean absolute, or squared, difference of VGG features of each sample, summed over weighted layers.

    `weights` is the file of torchvision's network, `layers` maps names (conv5_4: before the activation, relu5_4: after)
    to weights. By default the last convolution before its activation, as in ESRGAN.
    Source: Johnson et al., "Perceptual losses for real-time style transfer and super-resolution", 2016 (`network:
    vgg16, layers: {relu2_2: 1.0}, criterion: mse`); Wang et al., "ESRGAN", 2018 (the defaults).
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        network: Literal["vgg16", "vgg19"] = "vgg19",
        layers: dict[str, float] | None = None,
        criterion: Literal["l1", "mse"] = "l1",
    ):
        if network not in _FILES:
            raise ValueError(f"network: {unknown_choice(network, _FILES)}")
        if criterion not in ("l1", "mse"):
            raise ValueError(f"criterion: {unknown_choice(criterion, ('l1', 'mse'))}")
        layers = {"conv5_4" if network == "vgg19" else "conv5_3": 1.0} if layers is None else layers
        if not isinstance(layers, dict) or not layers or not all(0 < w < float("inf") for w in layers.values()):
            raise ValueError("layers: must map names of layers to weights above 0, such as {conv3_4: 0.5, conv5_4: 1}")
        super().__init__("perceptual", network, list(layers), weights)
        self.layer_weights, self.criterion = layers, criterion

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        difference = found - expected
        values = difference.abs() if self.criterion == "l1" else difference.square()
        return self.layer_weights[layer] * values.flatten(1).mean(1)


class LPIPS(FeatureLoss):
    """The LPIPS distance (version 0.1, VGG16) of each sample.

    `weights` is the file of torchvision's VGG16, `linear` that of the five learnt weightings of its channels, for which
    the default is the copy that torchmetrics ships.
    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018. Features are
    divided by sqrt(norm² + 1e-10), which has a gradient at zero, rather than by norm + 1e-10.
    """

    LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

    def __init__(self, *, weights: str | None = None, linear: str | None = None):
        super().__init__("lpips", "vgg16", list(self.LAYERS), weights)
        widths = zip(self.LAYERS, (64, 128, 256, 512, 512), strict=True)
        names = {layer: (f"lin{number}.model.1.weight", width) for number, (layer, width) in enumerate(widths)}
        wanted = {name: torch.Size((1, width, 1, 1)) for name, width in names.values()}
        linear = _SHIPPED if linear is None else linear
        found = read_tensors(linear, wanted, "loss.lpips.linear", _LINEAR)
        for layer, (name, _) in names.items():
            self.register_buffer(f"linear_{layer}", found[name])

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        difference = (_unit(found) - _unit(expected)).square()
        return F.conv2d(difference, self.get_buffer(f"linear_{layer}")).flatten(1).mean(1)


def _unit(features: Tensor) -> Tensor:
    """The features, of norm 1 at every pixel."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


def _architecture(network: str) -> nn.Sequential:
    """The convolutional layers of torchvision's VGG, without memory for weights and without a random draw."""
    from torchvision import models

    with torch.device("meta"):
        features = getattr(models, network)(weights=None).features
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # it would change the features before it
    return features


def _layer_names(features: nn.Sequential) -> list[str]:
    """conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1, …: the block and the place in it."""
    names, block, place = [], 1, 0
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            names.append(f"pool{block}")
            block, place = block + 1, 0
            continue
        place += isinstance(layer, nn.Conv2d)
        names.append(f"{'conv' if isinstance(layer, nn.Conv2d) else 'relu'}{block}_{place}")
    return names


def read_tensors(path: str | None, wanted: dict[str, torch.Size], key: str, source: str) -> dict[str, Tensor]:
    """The wanted tensors of a .pth or .safetensors file, in float32 on the CPU; `source` says where to get the file.

    Raises: UserError where there is no such file, or it holds other tensors.
    """
    remedy = f"get {source} and set {key} to its path; nothing is downloaded"
    if path is None:
        raise UserError(f"{key}: missing; {remedy}")
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}: {file} is no file; {remedy}")
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:  # torchvision's are of the old format, which cannot be mapped
            mmap = zipfile.is_zipfile(file)
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever torch raises on a file that is something else
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{key}: {file} cannot be read ({reason:.200}); {remedy}") from error
    for name, shape in wanted.items():
        value = tensors.get(name) if isinstance(tensors, dict) else None
        if not isinstance(value, Tensor) or value.shape != shape:
            has = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
            raise UserError(f"{key}: {file} holds other weights ({name} is {has}, not {tuple(shape)}); {remedy}")
    return {name: tensors[name].float() for name in wanted}
