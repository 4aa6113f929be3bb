"""LPIPS and DISTS as scores: distances of network features, computed in float32, with weights from a local file.

The losses in `losses/perceptual.py` use the same classes. Nothing is downloaded.
"""

from functools import partial

import torch
from torch import Tensor

from accel_restore.losses.perceptual import DISTSDistance, FeatureLoss, LPIPSDistance
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


class DISTSMetric(FeatureMetric, DISTSDistance):
    """The DISTS distance of structure and texture, on the features of VGG16: 0 for equal images, which are not resized.

    Source: Ding et al., "Image quality assessment: unifying structure and texture similarity", 2020. The learned
        weights of the channels are the copy in torchmetrics.
    """

    def __init__(self, weights: str | None):
        super().__init__(weights, "validation.weights.dists", None, "validation.weights")


_of_network = partial(Metric, image_channels=FeatureLoss.image_channels, higher_is_better=False, of_luma=False)
LPIPS = _of_network(LPIPSMetric, "version 0.1, AlexNet, of RGB, not resized", smallest_side=31)
DISTS = _of_network(DISTSMetric, "VGG16, of RGB, not resized", smallest_side=16)
