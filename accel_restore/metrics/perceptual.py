"""LPIPS and DISTS as scores: distances by what a network sees, whose weights come from a local file.

`perceptual.py` has distances of this kind to train with. Nothing is ever downloaded; computed in float32.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel_restore.losses.perceptual import read_tensors

_FILES = {"alexnet": "alexnet-owt-7be5be79.pth", "vgg16": "vgg16-397923af.pth"}  # as torchvision names them
_COMPARED = {"alexnet": (1, 4, 7, 9, 11), "vgg16": (3, 8, 15, 22, 29)}  # the last relu before each pooling or the end
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the networks were trained on


class Features(nn.Module):
    """Images (B, 1 or 3, H, W) in [0, 1] → the outputs of the compared layers of torchvision's network."""

    def __init__(self, network: str, weights: str | None, key: str, pool: nn.Module | None = None):
        """`pool` stands in the place of the network's max-pooling.

        Raises: UserError where `weights`, the value of `key`, is no file of that network's weights.
        """
        from torchvision import models  # a second to import

        super().__init__()
        with torch.device("meta"):  # takes no memory and draws nothing
            layers = getattr(models, network)(weights=None).features[: _COMPARED[network][-1] + 1]
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        wanted = {f"features.{name}": value.shape for name, value in layers.state_dict().items()}
        source = f"{_FILES[network]} (https://download.pytorch.org/models/{_FILES[network]})"
        found = read_tensors(weights, wanted, key, source)
        layers.load_state_dict({name.removeprefix("features."): value for name, value in found.items()}, assign=True)
        self.layers = nn.Sequential(*(pool if pool and isinstance(x, nn.MaxPool2d) else x for x in layers))
        self.compared = _COMPARED[network]
        self.register_buffer("mean", torch.tensor(_MEAN, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        values, found = (images - self.mean) / self.std, []
        for position, layer in enumerate(self.layers):
            values = layer(values)
            if position in self.compared:
                found.append(values)
        return found


class Distance(nn.Module):
    """A frozen (output, gt) → (B,), of images (B, 1 or 3, H, W) in [0, 1]; gray ones are seen as gray RGB."""

    @torch.no_grad()
    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        self.to(output.device)  # nothing to do from the second call on
        with torch.autocast(output.device.type, enabled=False):
            return self.between(*(images.float().expand(-1, 3, -1, -1) for images in (output, gt)))

    def between(self, output: Tensor, gt: Tensor) -> Tensor:
        raise NotImplementedError


class Lpips(Distance):
    """The learned perceptual distance of images, version 0.1 by AlexNet: 0 for equal ones.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018. The learnt
        weights of the channels are those that torchmetrics ships.
    """

    def __init__(self, weights: str | None):
        super().__init__()
        self.features = Features("alexnet", weights, "validation.weights.lpips")
        names = {f"lin{i}.model.1.weight": (1, size, 1, 1) for i, size in enumerate((64, 192, 384, 256, 256))}
        self.weights = list(read_shipped("lpips_models/alex.pth", names).values())

    def between(self, output: Tensor, gt: Tensor) -> Tensor:
        layers = zip(self.features(output), self.features(gt), self.weights, strict=True)
        return sum((((_unit(x) - _unit(y)) ** 2) * w.to(x)).sum(1).flatten(1).mean(1) for x, y, w in layers)


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


class Dists(Distance):
    """The distance of structure and texture of images, by VGG16: 0 for equal ones. Images are not resized.

    Source: Ding et al., "Image quality assessment: unifying structure and texture similarity", 2020. The learnt weights
        of the channels are those that torchmetrics ships.
    """

    def __init__(self, weights: str | None):
        super().__init__()
        self.features = Features("vgg16", weights, "validation.weights.dists", HannPool())
        found = read_shipped("dists_models/weights.pt", dict.fromkeys(("alpha", "beta"), (1, 1475, 1, 1)))
        total = sum(value.sum() for value in found.values())
        sizes = (3, 64, 128, 256, 512, 512)
        self.texture, self.structure = ((found[name] / total).split(sizes, 1) for name in ("alpha", "beta"))

    def between(self, output: Tensor, gt: Tensor) -> Tensor:
        similar, found, expected = 0.0, [output, *self.features(output)], [gt, *self.features(gt)]
        for x, y, texture, structure in zip(found, expected, self.texture, self.structure, strict=True):
            mean_x, mean_y = (values.mean((2, 3), keepdim=True) for values in (x, y))
            x, y = x - mean_x, y - mean_y
            var_x, var_y, covariance = (v.mean((2, 3), keepdim=True) for v in (x * x, y * y, x * y))
            alike_means = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
            alike_shapes = (2 * covariance + 1e-6) / (var_x + var_y + 1e-6)
            similar += (texture.to(x) * alike_means + structure.to(x) * alike_shapes).flatten(1).sum(1)
        return 1 - similar


class HannPool(nn.Module):
    """Features (B, C, H, W) of half the height and width: the root of the mean square under a window of 3."""

    def forward(self, features: Tensor) -> Tensor:
        side = features.new_tensor([0.25, 0.5, 0.25])
        window = (side[:, None] * side).expand(features.shape[1], 1, 3, 3)
        means = F.conv2d(features.square(), window, stride=2, padding=1, groups=features.shape[1])
        return (means + 1e-12).sqrt()


def read_shipped(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of a file that torchmetrics ships."""
    folder = Path(find_spec("torchmetrics").origin).with_name("functional") / "image"
    wanted = {key: torch.Size(shape) for key, shape in shapes.items()}
    return read_tensors(str(folder / name), wanted, "validation.weights", "it with pip install -U torchmetrics")
