"""LPIPS and DISTS as scores: distances of network features, computed in float32, with weights from a local file.

The losses in `losses/perceptual.py` use the same classes. Nothing is downloaded.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel_restore.losses.perceptual import (
    LPIPS_LAYERS,
    FeatureLoss,
    Features,
    LPIPSDistance,
    read_tensors,
    torchmetrics_file,
)
from accel_restore.metrics import Metric


class FeatureMetric(FeatureLoss):
    """A feature distance of images (B, 1 or 3, H, W) in [0, 1], without gradient; gray images count as gray RGB."""

    @torch.no_grad()
    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        """Return the distance of each image, (B,), in float32."""
        with torch.autocast(output.device.type, enabled=False):
            return super().forward(output.float(), gt.float())


class LPIPSMetric(FeatureMetric, LPIPSDistance):
    """The LPIPS distance, version 0.1, on the features of AlexNet: 0 for equal images.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018. The learned
        weights of the channels are the copy in torchmetrics.
    """

    def __init__(self, weights: str | None):
        super().__init__("alexnet", weights, "validation.weights.lpips", None, "validation.weights")

    def distance(self, layer: str, found: Tensor, expected: Tensor) -> Tensor:
        """Return the weighted squared difference (B,) of the normalised features of one layer."""
        difference = (self._normalised(found) - self._normalised(expected)) ** 2
        return (difference * self.get_buffer(f"linear_{layer}")).sum(1).flatten(1).mean(1)

    @staticmethod
    def _normalised(features: Tensor) -> Tensor:
        return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)  # no gradient is needed at zero


class DISTSMetric(FeatureMetric):
    """The DISTS distance of structure and texture, on the features of VGG16: 0 for equal images, which are not resized.

    Source: Ding et al., "Image quality assessment: unifying structure and texture similarity", 2020. The learned
        weights of the channels are the copy in torchmetrics.
    """

    def __init__(self, weights: str | None):
        layers = LPIPS_LAYERS["vgg16"]  # DISTS compares the same layers, and the images
        super().__init__(Features("vgg16", list(layers), weights, "validation.weights.dists", HannPool()))
        wanted = dict.fromkeys(("alpha", "beta"), torch.Size((1, 1475, 1, 1)))
        name = "dists_models/weights.pt"
        source = f"{name} from the PyPI package torchmetrics"
        found = read_tensors(torchmetrics_file(name), wanted, "validation.weights", source)
        total = found["alpha"].sum() + found["beta"].sum()
        self.texture, self.structure = (
            dict(zip(("image", *layers), (found[name] / total).split([3, *layers.values()], 1), strict=True))
            for name in ("alpha", "beta")
        )

    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        """Return the distance of each image, (B,): 1 minus the sum of weighted similarities."""
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
        return (self.texture[layer].to(x) * texture + self.structure[layer].to(x) * structure).flatten(1).sum(1)


class HannPool(nn.Module):
    """Halve the height and width of features (B, F, H, W): the root of the mean square under a Hann window of 3."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the pooled features, (B, F, ceil(H / 2), ceil(W / 2))."""
        side = features.new_tensor([0.25, 0.5, 0.25])
        window = (side[:, None] * side).expand(features.shape[1], 1, 3, 3)
        means = F.conv2d(features.square(), window, stride=2, padding=1, groups=features.shape[1])
        return (means + 1e-12).sqrt()


_of_network = partial(Metric, image_channels=FeatureLoss.image_channels, higher_is_better=False, of_luma=False)
LPIPS = _of_network(LPIPSMetric, "version 0.1, AlexNet, of RGB, not resized", smallest_side=31)
DISTS = _of_network(DISTSMetric, "VGG16, of RGB, not resized", smallest_side=16)
