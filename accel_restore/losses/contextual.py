"""The contextual loss: features of the output are compared with the most similar ones of gt, wherever they are."""

import torch
from torch import Tensor

from accel_restore.losses.perceptual import FeatureLoss, Features

_MOST = 64  # positions a side that are compared with each other; memory grows with the fourth power


class Contextual(FeatureLoss):
    """The negative logarithm of the contextual similarity of VGG19's features, summed over weighted layers.

    Each position of the output's features is compared with all positions of gt's by cosine distance, relative to its
    nearest one. For each position of gt, only the most similar position of the output counts. So the loss asks for the
    textures of gt, but not for their places, and needs a second term, such as `l1`. Positions are compared within
    regions of 64x64 features; larger features are cut into regions, whose losses are averaged.

    `weights` is the file of torchvision's VGG19. `layers` maps names to weights, with names as in `perceptual`.
    `bandwidth` is h of the paper: small values favour the nearest position alone.

    Source: Mechrez et al., "The contextual loss for image transformation with non-aligned data", 2018 (the loss and h);
        "Maintaining natural image statistics with the contextual loss", 2018 (super-resolution, conv3_4 with its
        activation). Deviation: the authors draw 65x65 positions of larger features at random.
    """

    def __init__(self, *, weights: str | None = None, layers: dict[str, float] | None = None, bandwidth: float = 0.5):
        layers = {"relu3_4": 1.0} if layers is None else layers
        if not isinstance(layers, dict) or not layers or not all(0 < w < float("inf") for w in layers.values()):
            raise ValueError("layers: must map names of layers to weights above 0, such as {relu3_4: 1}")
        if not 0 < bandwidth < float("inf"):
            raise ValueError(f"bandwidth={bandwidth!r} is not allowed: it must be a number above 0")
        super().__init__(Features("vgg19", list(layers), weights, "loss.contextual.weights"))
        self.layer_weights, self.bandwidth = layers, bandwidth
        self.smallest_side = self.features.smallest_side

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        """Return the weighted loss (B,) of the features of one layer."""
        positions = found.shape[-2] * found.shape[-1]
        total = torch.zeros_like(found[:, 0, 0, 0])
        for x_rows, y_rows in zip(_cut(found, 2), _cut(expected, 2), strict=True):
            for x, y in zip(_cut(x_rows, 3), _cut(y_rows, 3), strict=True):
                total = total + self._region(x.flatten(2), y.flatten(2)) * (x.shape[-2] * x.shape[-1] / positions)
        return self.layer_weights[layer] * total

    def _region(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss (B,) of the features (B, F, N) of a region."""
        centre = y.mean(2, keepdim=True)
        x, y = (_normalised(values - centre) for values in (x, y))
        distance = 1 - x.transpose(1, 2) @ y  # (B, N of x, N of y)
        relative = distance / (distance.amin(2, keepdim=True) + 1e-5)
        similarity = ((1 - relative) / self.bandwidth).softmax(2)
        return -similarity.amax(1).mean(1).log()


def _cut(features: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Return the features, cut into nearly equal parts of at most `_MOST` along a dimension."""
    return features.tensor_split(-(-features.shape[dim] // _MOST), dim)


def _normalised(features: Tensor) -> Tensor:
    """Return features (B, F, N) with norm 1 at every position; zeros stay zeros, with a finite gradient."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)
