"""Scores of each image, and the protocol they are measured by: a score without its protocol means nothing."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from accel_restore.config.schema import Config
from accel_restore.data.degradations.pipeline import with_defaults
from accel_restore.metrics.psnr_ssim import WINDOW, luma, psnr, ssim
from accel_restore.models.tiling import self_ensemble, tiled
from accel_restore.utils.redaction import without_paths

Measure = Callable[[Tensor, Tensor], Tensor]  # (output, gt), each (B, C, H, W) in [0, 1] → one value per image (B,)


@dataclass(frozen=True)
class Metric:
    """A score of images."""

    build: Callable[[str | None], Measure]  # of a file of weights; UserError where it needs one and cannot use that
    text: str  # how it measures, as the protocol tells it
    smallest_side: int = 1  # pixels of an image that can be scored
    higher_is_better: bool = True
    of_luma: bool = True  # scores the luma where the protocol says so; else always the colours


@dataclass(frozen=True)
class Protocol:
    """How scores are measured; the fields are the configuration's, those of `validation` under their names."""

    channels: int = 3
    degradation: tuple[dict[str, Any], ...] = ()  # the steps that make the input; none: it is in files
    metrics: tuple[str, ...] = ("psnr", "ssim")
    weights: dict[str, str] = field(default_factory=dict)
    crop_border: int = 0
    y_channel: bool = False
    quantize: bool = False
    self_ensemble: bool = False
    tile: int | None = None
    tile_overlap: int = 64

    @classmethod
    def of(cls, config: Config) -> "Protocol":
        """The protocol of a run."""
        keys = {field.name for field in fields(cls)}
        source = config.data.val or config.data.train
        settings = config.validation.model_dump(include=keys)
        settings["metrics"] = tuple(settings["metrics"])
        steps = [step.model_dump() for step in config.data.degradation] if source.input is None else []
        return cls(channels=config.data.channels, degradation=tuple(steps), **settings)

    def describe(self) -> dict[str, Any]:
        """The protocol in full, as it is stored beside the scores."""
        colours = "gray" if self.channels == 1 else "RGB"
        luma = "float Y of BT.601 (16 to 235) of the RGB; MATLAB's rgb2ycbcr rounds that of 8-bit images"
        noise = "made by data.degradation; its draws are keyed by the image's name alone, whatever run.seed and epoch"
        network = f"tiles of {self.tile}, neighbours share {self.tile_overlap}" if self.tile else "whole images"
        hidden = ("metrics", "degradation", "weights")  # are told otherwise
        settings = {key: value for key, value in asdict(self).items() if key not in hidden}
        return {
            **settings,
            "channels": luma if self.y_channel else colours,
            "range": f"clamped to [0, 1], {'output and gt rounded to 8 bits' if self.quantize else 'not quantised'}",
            **{name: METRICS[name].text for name in self.metrics},
            "average": "per image, then the mean over images",
            "input": noise if self.degradation else "files",
            **({"degradation": without_paths(with_defaults(self.degradation))} if self.degradation else {}),
            "network": network + (", mean over 8 flips and rotations" if self.self_ensemble else ""),
        }

    @property
    def smallest_side(self) -> int:
        """The least height and width, in pixels, of an image that can be scored."""
        return 2 * self.crop_border + max((METRICS[name].smallest_side for name in self.metrics), default=1)

    def output(self, model: Callable[[Tensor], Tensor], images: Tensor, scale: int = 1) -> Tensor:
        """What `model` makes of images (B, C, H, W), `scale` times as high and wide."""
        if self.tile is not None:
            model = partial(tiled, model, tile=self.tile, overlap=self.tile_overlap, scale=scale)
        return self_ensemble(model, images) if self.self_ensemble else model(images)

    def prepare(self, images: Tensor, of_luma: bool = True) -> Tensor:
        """The part of images (B, C, H, W) that is scored, in float64; of the luma, unless colours are wanted."""
        border = self.crop_border
        images = images.clamp(0, 1)[..., border : images.shape[-2] - border, border : images.shape[-1] - border]
        images = images.double()
        if self.quantize:
            images = (images * 255).round() / 255
        return luma(images) if self.y_channel and of_luma else images

    @cached_property
    def scores(self) -> dict[str, Measure]:
        """For each metric the function (output, gt) → (B,) that scores images by this protocol.

        Raises: UserError where a metric's file of weights is missing or wrong.
        """

        def score(measure: Measure, of_luma: bool, output: Tensor, gt: Tensor) -> Tensor:
            return measure(*(self.prepare(images, of_luma) for images in (output, gt)))

        metrics = {name: METRICS[name] for name in self.metrics}
        return {name: partial(score, m.build(self.weights.get(name)), m.of_luma) for name, m in metrics.items()}


def lpips(weights: str | None) -> Measure:
    from accel_restore.metrics.perceptual import Lpips  # imports torchvision

    return Lpips(weights)


def dists(weights: str | None) -> Measure:
    from accel_restore.metrics.perceptual import Dists

    return Dists(weights)


METRICS = {
    "psnr": Metric(lambda _: psnr, "dB, peak 1, of the mean squared error over pixels and channels, at most 100"),
    "ssim": Metric(
        lambda _: ssim,
        "Gaussian window 11, sigma 1.5, K1 0.01, K2 0.03, population variance, valid region, mean over channels",
        smallest_side=len(WINDOW),
    ),
    "lpips": Metric(
        lpips, "version 0.1, AlexNet, of RGB, not resized", smallest_side=31, higher_is_better=False, of_luma=False
    ),
    "dists": Metric(dists, "VGG16, of RGB, not resized", smallest_side=16, higher_is_better=False, of_luma=False),
}
