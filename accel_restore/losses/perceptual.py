"""Losses on the features of a pretrained classification network, whose weights come from a local file.

Nothing is downloaded. The network is frozen, follows the images to their device and precision, and belongs to neither
the model nor its checkpoints. `metrics/perceptual.py` scores images with the same classes.
"""

from functools import reduce
from importlib.util import find_spec
from operator import add
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel_restore.errors import UserError
from accel_restore.models.torch_file import read_torch_file
from accel_restore.models.weights_file import read_safetensors, starts_as_safetensors
from accel_restore.utils.imports import unknown_choice

# The names of torchvision's files.
_FILES = {"alexnet": "alexnet-owt-7be5be79.pth", "vgg16": "vgg16-397923af.pth", "vgg19": "vgg19-dcbb9e9d.pth"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on which the networks were trained

# The layers that LPIPS compares, with their numbers of channels; and the files of weights for these channels.
LPIPS_LAYERS = {
    "alexnet": {"relu1_1": 64, "relu2_1": 192, "relu3_1": 384, "relu3_2": 256, "relu3_3": 256},
    "vgg16": {"relu1_2": 64, "relu2_2": 128, "relu3_3": 256, "relu4_3": 512, "relu5_3": 512},
}
_LINEAR = {"alexnet": "alex.pth", "vgg16": "vgg.pth"}


class Features(nn.Module):
    """The outputs of some layers of a frozen torchvision network, by the names of the layers.

    Shapes: images (B, 1 or 3, H, W) in [0, 1] to one tensor (B, F, H', W') per layer.
    """

    def __init__(
        self, network: str, layers: list[str], weights: str | None, key: str, pooling: nn.Module | None = None
    ):
        """Build `network` up to the last of `layers`, named as in the papers: conv3_4, relu3_4, pool3.

        `weights` is the file of its weights, `key` the configuration key of that file. `pooling` replaces max-pooling.

        Raises: UserError where `weights` does not hold this network; ValueError for a layer that it does not have.
        """
        super().__init__()
        architecture = _architecture(network)
        names = _layer_names(architecture)
        for name in layers:
            if name not in names:
                raise ValueError(f"layers: {unknown_choice(name, names)}")
        self.layers = {names.index(name): name for name in layers}
        modules = architecture[: max(self.layers) + 1]
        self.smallest_side = 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in modules)  # of images, in pixels
        wanted = {f"features.{name}": value.shape for name, value in modules.state_dict().items()}
        source = f"{_FILES[network]} (https://download.pytorch.org/models/{_FILES[network]})"
        found = read_tensors(weights, wanted, key, source)
        modules.load_state_dict({name.removeprefix("features."): value for name, value in found.items()}, assign=True)
        self.network = nn.Sequential(*(pooling if pooling and isinstance(m, nn.MaxPool2d) else m for m in modules))
        self.mean, self.std = (nn.Buffer(torch.tensor(values).view(1, 3, 1, 1)) for values in (_MEAN, _STD))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features by layer; gray images are repeated to three channels."""
        values, found = (images.expand(-1, 3, -1, -1) - self.mean) / self.std, {}
        for position, layer in enumerate(self.network):
            values = layer(values)
            if position in self.layers:
                found[self.layers[position]] = values
        return found


class FeatureLoss(nn.Module):
    """The sum over layers of a distance between the features of output and gt, for each sample."""

    image_channels = (1, 3)  # gray images count as gray RGB

    def __init__(self, features: Features):
        super().__init__()
        self.features = features
        self.eval().requires_grad_(False)

    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        """Return the distance of each sample, (B,)."""
        self.to(output.device, output.dtype)  # does nothing from the second call on
        with torch.no_grad():
            expected = self.compared(gt)
        found = self.compared(output)
        return reduce(add, (self.distance(name, found[name], expected[name]) for name in found))

    def compared(self, images: Tensor) -> dict[str, Tensor]:
        """Return what is compared of images (B, 1 or 3, H, W): by default their features by layer."""
        return self.features(images)

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        """Return the distance (B,) between features (B, F, H, W) of one layer."""
        raise NotImplementedError


class Perceptual(FeatureLoss):
    """The mean absolute or squared difference of VGG features, summed over weighted layers.

    `weights` is the file of torchvision's network. `layers` maps names to weights; conv5_4 is a convolution's output
    before the activation, relu5_4 after it. The default is the last convolution before its activation, as in ESRGAN.

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
        for key, value, choices in (("network", network, ("vgg16", "vgg19")), ("criterion", criterion, ("l1", "mse"))):
            if value not in choices:
                raise ValueError(f"{key}: {unknown_choice(value, choices)}")
        layers = {"conv5_4" if network == "vgg19" else "conv5_3": 1.0} if layers is None else layers
        if not isinstance(layers, dict) or not layers or not all(0 < w < float("inf") for w in layers.values()):
            raise ValueError("layers: must map names of layers to weights above 0, such as {conv3_4: 0.5, conv5_4: 1}")
        super().__init__(Features(network, list(layers), weights, "loss.perceptual.weights"))
        self.layer_weights, self.criterion = layers, criterion
        self.smallest_side = self.features.smallest_side

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        """Return the weighted difference (B,) of the features of one layer."""
        difference = found - expected
        values = difference.abs() if self.criterion == "l1" else difference.square()
        return self.layer_weights[layer] * values.flatten(1).mean(1)


class LPIPSDistance(FeatureLoss):
    """The LPIPS distance, version 0.1, on the features of a network.

    `linear` is the file of the learned weights of the channels, by default the copy in torchmetrics.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018. Deviation:
        features are divided by sqrt(norm² + 1e-10), which has a gradient at zero, rather than by norm + 1e-10.
    """

    def __init__(self, network: str, weights: str | None, key: str, linear: str | None, linear_key: str):
        layers = LPIPS_LAYERS[network]
        super().__init__(Features(network, list(layers), weights, key))
        names = {layer: f"lin{number}.model.1.weight" for number, layer in enumerate(layers)}
        wanted = {names[layer]: torch.Size((1, width, 1, 1)) for layer, width in layers.items()}
        file = torchmetrics_file(f"lpips_models/{_LINEAR[network]}") if linear is None else linear
        source = f"lpips/weights/v0.1/{_LINEAR[network]} from the wheel of the PyPI package lpips"
        found = read_tensors(file, wanted, linear_key, source)
        for layer, name in names.items():
            self.register_buffer(f"linear_{layer}", found[name])

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        """Return the weighted squared difference (B,) of the normalised features of one layer."""
        difference = (self._normalised(found) - self._normalised(expected)).square()
        return F.conv2d(difference, self.get_buffer(f"linear_{layer}")).flatten(1).mean(1)

    @staticmethod
    def _normalised(features: Tensor) -> Tensor:
        """Return the features with norm 1 at every pixel."""
        return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


class LPIPS(LPIPSDistance):
    """The LPIPS distance of each sample, on the features of VGG16.

    `weights` is the file of torchvision's VGG16, `linear` the file of the learned weights of its channels, by default
    the copy in torchmetrics.
    """

    smallest_side = 16  # halved four times

    def __init__(self, *, weights: str | None = None, linear: str | None = None):
        super().__init__("vgg16", weights, "loss.lpips.weights", linear, "loss.lpips.linear")


class DISTSDistance(FeatureLoss):
    """The DISTS distance of structure and texture, on the images and their features of VGG16.

    `alpha_beta` is the file of the learned weights of the channels, by default the copy in torchmetrics.

    Source: Ding et al., "Image quality assessment: unifying structure and texture similarity", 2020. Deviation: images
        are not resized.
    """

    def __init__(self, weights: str | None, key: str, alpha_beta: str | None, alpha_beta_key: str):
        layers = LPIPS_LAYERS["vgg16"]  # DISTS compares the same layers, and the images
        super().__init__(Features("vgg16", list(layers), weights, key, HannPool()))
        wanted = dict.fromkeys(("alpha", "beta"), torch.Size((1, 3 + sum(layers.values()), 1, 1)))
        name = "dists_models/weights.pt"
        file = torchmetrics_file(name) if alpha_beta is None else alpha_beta
        found = read_tensors(file, wanted, alpha_beta_key, f"{name} from the PyPI package torchmetrics")
        total = found["alpha"].sum() + found["beta"].sum()
        for part, learned in (("texture", "alpha"), ("structure", "beta")):
            shares = (found[learned] / total).split([3, *layers.values()], 1)
            for layer, share in zip(("image", *layers), shares, strict=True):
                self.register_buffer(f"{part}_{layer}", share)

    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        """Return the distance of each sample, (B,): 1 minus the sum of weighted similarities."""
        return 1 - super().forward(output, gt)

    def compared(self, images: Tensor) -> dict[str, Tensor]:
        """Return the images themselves and their features by layer."""
        return {"image": images.expand(-1, 3, -1, -1), **self.features(images)}

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        """Return the weighted similarity (B,) of the features of one layer."""
        mean_x, mean_y = (values.mean((2, 3), keepdim=True) for values in (found, expected))
        x, y = found - mean_x, expected - mean_y
        var_x, var_y, covariance = (values.mean((2, 3), keepdim=True) for values in (x * x, y * y, x * y))
        texture = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
        structure = (2 * covariance + 1e-6) / (var_x + var_y + 1e-6)
        weights = self.get_buffer(f"texture_{layer}"), self.get_buffer(f"structure_{layer}")
        return (weights[0] * texture + weights[1] * structure).flatten(1).sum(1)


class DISTS(DISTSDistance):
    """The DISTS distance of each sample, on the features of VGG16.

    `weights` is the file of torchvision's VGG16, `alpha_beta` the file of the learned weights of its channels, by
    default the copy in torchmetrics.
    """

    def __init__(self, *, weights: str | None = None, alpha_beta: str | None = None):
        super().__init__(weights, "loss.dists.weights", alpha_beta, "loss.dists.alpha_beta")


class HannPool(nn.Module):
    """Halve the height and width of features (B, F, H, W): the root of the mean square under a Hann window of 3."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the pooled features, (B, F, ceil(H / 2), ceil(W / 2))."""
        side = features.new_tensor([0.25, 0.5, 0.25])
        window = (side[:, None] * side).expand(features.shape[1], 1, 3, 3)
        means = F.conv2d(features.square(), window, stride=2, padding=1, groups=features.shape[1])
        return (means + 1e-12).sqrt()


def _architecture(network: str) -> nn.Sequential:
    """Return the convolutional layers of torchvision's network, without memory for weights or a random draw."""
    from torchvision import models  # takes a second to import

    with torch.device("meta"):
        features = getattr(models, network)(weights=None).features
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # in place it would change the features before it
    return features


def _layer_names(features: nn.Sequential) -> list[str]:
    """Return conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1, …: the block and the position in it."""
    names, block, place = [], 1, 0
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            names.append(f"pool{block}")
            block, place = block + 1, 0
            continue
        place += isinstance(layer, nn.Conv2d)
        names.append(f"{'conv' if isinstance(layer, nn.Conv2d) else 'relu'}{block}_{place}")
    return names


def torchmetrics_file(name: str) -> str:
    """Return the path of a file that torchmetrics installs with its image metrics."""
    spec = find_spec("torchmetrics")
    assert spec is not None and spec.origin is not None  # torchmetrics is a dependency of accel_restore
    return str(Path(spec.origin).with_name("functional") / "image" / name)


def read_tensors(path: str | None, wanted: dict[str, torch.Size], key: str, source: str) -> dict[str, Tensor]:
    """Return the wanted tensors of a .pth or .safetensors file, in float32 on the CPU.

    `key` is the configuration key of the file; `source` says where to get it.

    Raises: UserError where the file does not exist, cannot be read or holds other tensors.
    """
    remedy = f"get {source} and set {key} to its path (nothing is downloaded)"
    if path is None:
        raise UserError(f"{key}: missing; {remedy}")
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}: {file} is not a file; {remedy}")
    try:
        tensors = read_safetensors(file) if starts_as_safetensors(file) else read_torch_file(file)
    except UserError as error:
        raise UserError(f"{key}: {file} {error} (it should be {source})") from error  # which has a remedy
    for name, shape in wanted.items():
        value = tensors.get(name) if isinstance(tensors, dict) else None
        if not isinstance(value, Tensor) or value.shape != shape:
            has = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
            raise UserError(f"{key}: {file} holds other weights ({name} is {has}, not {tuple(shape)}); {remedy}")
    return {name: tensors[name].float() for name in wanted}
