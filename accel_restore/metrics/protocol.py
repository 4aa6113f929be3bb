"""The protocol by which scores are measured. Scores are comparable only under the same protocol."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial, reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel_restore.config.schema import Config
from accel_restore.config.sets import key_of
from accel_restore.config.validation import Validation
from accel_restore.data.degradations.pipeline import with_defaults
from accel_restore.errors import UserError
from accel_restore.losses import Loss
from accel_restore.metrics import Measure, Metric, get_metric
from accel_restore.metrics.psnr_ssim import luma
from accel_restore.models import ImageSpec
from accel_restore.models.probe import probe_image
from accel_restore.models.tiling import self_ensemble, tiled
from accel_restore.registry import METRICS
from accel_restore.state import Scores
from accel_restore.utils.redaction import redacted, without_paths

OF_SETS = ("crop_border", "y_channel", "quantize", "tile")  # settings that a validation set may have of its own
_PROBE = 192  # pixels of the sides of an image on which a metric without `smallest_side` is tried


@dataclass(frozen=True)
class Protocol:
    """How scores are measured. Fields with the name of a `validation` key have its meaning."""

    channels: int = 3
    degradation: tuple[dict[str, Any], ...] = ()  # the steps that make the input; empty if the input is read from files
    metrics: tuple[str, ...] = ("psnr", "ssim")  # names of their scores
    own: Mapping[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)  # of the user's own: path and arguments
    weights: dict[str, str] = field(default_factory=dict)
    crop_border: int = 0
    y_channel: bool = False
    quantize: bool = False
    crop_gt: bool = False
    self_ensemble: bool = False
    tile: int | None = None
    tile_overlap: int = 64
    scores_input: bool = True  # false: the input has another number of channels than gt, so no metric compares them
    float_range: tuple[float, float] | None = None  # of float pixels in gt, which are not clamped to it
    made_by: str = "data.degradation"  # the key of the degradation
    quantize_key: str = "validation.quantize"  # the key that set `quantize`
    set_key: str = ""  # of a validation set, such as data.val.set5
    # Metrics by ("metric" or "measure", name). `replace` keeps it, so sets share the networks of their metrics.
    built_once: dict[tuple[str, str], Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, config: Config) -> "Protocol":
        """Return the protocol of the first validation set of a run."""
        return next(iter(cls.of_sets(config).values()))

    @classmethod
    def of_sets(cls, config: Config) -> dict[str, "Protocol"]:
        """Return the protocol of each validation set of a run: the set's own values, else those of `validation`."""
        whole = cls.from_settings(config.validation, config.data.image_spec, ())
        found = {}
        for name, source in config.data.validated.items():
            steps = [] if source.input is not None else config.data.degradation_of(source)
            own = {key: value for key in OF_SETS if (value := getattr(source, key, None)) is not None}
            key = key_of("data.train" if config.data.val is None else "data.val", name)
            own["set_key"] = key
            if source.degradation:
                own["made_by"] = f"{key}.degradation"
            if "quantize" in own:
                own["quantize_key"] = f"{key}.quantize"
            found[name] = replace(whole, degradation=tuple(step.model_dump() for step in steps), **own)
        return found

    @classmethod
    def from_settings(
        cls, validation: Validation, images: ImageSpec, degradation: tuple[dict[str, Any], ...]
    ) -> "Protocol":
        """Return the protocol of a section `validation`."""
        settings = validation.model_dump(include={field.name for field in fields(cls)} - {"metrics", "built_once"})
        own = {entry.label: (entry.name, entry.arguments) for entry in validation.metrics if entry.name not in METRICS}
        metrics = tuple(entry.label for entry in validation.metrics)
        return cls(images.channels, degradation, metrics, own, scores_input=images.keeps_channels, **settings)

    def for_pixels(self, dtype: np.dtype, range: tuple[float, float] = (0.0, 1.0)) -> "Protocol":
        """Return the protocol for gt of this dtype, which is known once the images are decoded.

        `range` is that of float pixels, `data.range`.

        Raises: UserError if float pixels are to be rounded to 8 bits.
        """
        if not np.issubdtype(dtype, np.floating):
            return self
        if self.quantize:
            gt = f"gt of {self.set_key}" if self.set_key else "gt"
            raise UserError(f"{self.quantize_key}: rounds to 8 bits, but {gt} has float pixels; set it to false")
        return replace(self, float_range=range)

    @property
    def is_float(self) -> bool:
        """Whether gt has float pixels, which may be outside of [0, 1]; nothing is clamped then."""
        return self.float_range is not None

    def describe(self) -> dict[str, Any]:
        """Return the full protocol as it is stored with the scores."""
        colours = {1: "gray", 3: "RGB"}.get(self.channels, f"all {self.channels} channels")
        y = "float Y of BT.601 (16 to 235) of the RGB; MATLAB's rgb2ycbcr rounds the Y of 8-bit images"
        noise = f"made by {self.made_by}; its draws depend on the image's name alone, not on run.seed or the epoch"
        network = f"tiles of {self.tile}, neighbours share {self.tile_overlap}" if self.tile else "whole images"
        if self.float_range is None:
            values = f"clamped to [0, 1], {'output and gt rounded to 8 bits' if self.quantize else 'not quantised'}"
        else:
            values = "float pixels, data.range [{:g}, {:g}] as [0, 1], not clamped".format(*self.float_range)
        # Described below, or of no meaning outside of the run.
        hidden = {"metrics", "own", "degradation", "weights", "crop_gt", "scores_input", "float_range"}
        hidden |= {"made_by", "quantize_key", "set_key", "built_once"}
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in hidden}
        return {
            **settings,
            "channels": y if self.y_channel else colours,
            "range": values,
            **{name: redacted(metric.text) for name, metric in self.built.items()},
            "average": "per image, then the mean over images",
            "input": noise if self.degradation else "files",
            **({"crop_gt": True} if self.crop_gt else {}),  # protocols of older versions lack it
            **({"degradation": without_paths(with_defaults(self.degradation))} if self.degradation else {}),
            "network": network + (", mean over 8 flips and rotations" if self.self_ensemble else ""),
        }

    @property
    def smallest_side(self) -> int:
        """The smallest height and width, in pixels, of an image that can be scored."""
        return 2 * self.crop_border + max((metric.smallest_side for metric in self.built.values()), default=1)

    def output(self, model: Callable[[Tensor], Tensor], images: Tensor, scale: int = 1) -> Tensor:
        """Return the model's output for images (B, C, H, W), `scale` times as high and wide."""
        if self.tile is not None:
            model = partial(tiled, model, tile=self.tile, overlap=self.tile_overlap, scale=scale)
        return self_ensemble(model, images) if self.self_ensemble else model(images)

    def prepare(self, images: Tensor, of_luma: bool = True) -> Tensor:
        """Return the part of images (B, C, H, W) that is scored, in float64.

        It is the luma if the protocol asks for it, unless `of_luma` is false.
        """
        return self._values(self._inside(images), of_luma)

    def _inside(self, images: Tensor) -> Tensor:
        border = self.crop_border
        return images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]

    def _values(self, images: Tensor, of_luma: bool) -> Tensor:
        images = (images if self.is_float else images.clamp(0, 1)).double()
        if self.quantize:
            images = (images * 255).round() / 255
        return luma(images) if self.y_channel and of_luma else images

    def score(self, metric: Metric, measure: Measure, output: Tensor, gt: Tensor) -> Tensor:
        """Return the score of each image, (B,); `measure` was built by `metric`, and images are (B, C, H, W)."""
        if metric.prepares:
            return measure(self._inside(output), self._inside(gt), partial(self._values, of_luma=metric.of_luma))
        return measure(*(self.prepare(images, metric.of_luma) for images in (output, gt)))

    @cached_property
    def scores(self) -> dict[str, Measure]:
        """For each metric a function (output, gt) → (B,) that scores images by this protocol.

        Raises: UserError where a metric's file of weights is missing or wrong.
        """
        for name, metric in self.built.items():
            if ("measure", name) not in self.built_once:
                self.built_once["measure", name] = metric.build(self.weights.get(name))
        return {
            name: partial(self.score, metric, self.built_once["measure", name]) for name, metric in self.built.items()
        }

    @property
    def built(self) -> dict[str, Metric]:
        """The metrics by the names of their scores.

        Raises: UserError where a metric cannot be imported or built, or cannot score images of `channels` channels.
        """
        for position, name in enumerate(self.metrics):
            if ("metric", name) not in self.built_once:
                path, arguments = self.own.get(name, (name, {}))
                metric = get_metric(path, arguments, f"validation.metrics.{position}")
                self._check_channels(name, metric)
                self.built_once["metric", name] = metric
        return {name: self.built_once["metric", name] for name in self.metrics}

    def _check_channels(self, name: str, metric: Metric) -> None:
        if metric.image_channels is not None and self.channels not in metric.image_channels:
            only = " or ".join(map(str, metric.image_channels))
            raise UserError(
                f"validation.metrics: {name} needs images of {only} channels, but gt has {self.channels} "
                "(data.channels); remove it"
            )

    def monitored_value(self, scores: Scores | None, monitor: str) -> float:
        """The value that decides which weights are best; lower is better. Infinite without scores."""
        if scores is None:
            return math.inf
        scores, name = scores.find(monitor)
        if name == "loss":
            return scores.loss
        return -scores.metrics[name] if self.built[name].higher_is_better else scores.metrics[name]

    def check_direction(self, name: str, key: str) -> None:
        """Raise `UserError`, with the configuration key `key`, if it is unknown which scores of a metric are better."""
        if name in self.built and self.built[name].higher_is_better is None:
            raise UserError(
                f"{key}: '{name}' has no attribute higher_is_better, which says whether higher or lower scores are "
                "better; set it to True or False on the function or class"
            )

    @torch.no_grad()
    def try_own(self, device: torch.device, sizes: Iterable[tuple[int, int]] = ()) -> None:
        """Score a fixed image twice by each metric of the user's own: in `sizes`, or else in sizes that it accepts.

        Raises: UserError if a metric cannot score it, or gives NaN, inf, or two values.
        """
        for name in [name for name in self.metrics if name not in METRICS]:
            side = self.built[name].smallest_side
            side = (_PROBE if side == 1 else side) + 2 * self.crop_border
            for height, width in sizes or ((side, side), (side + 3, side + 6)):
                gt, noise = (probe_image(self.channels, 2, height, width) * 0.8 + 0.1).split(1)
                output = 0.8 * gt + 0.2 * noise
                first, second = (float(self.scores[name](output.to(device), gt.to(device))) for _ in range(2))
                what = f"validation.metrics: '{name}' gives {first}"
                if not math.isfinite(first):
                    raise UserError(f"{what} for an image of {width}x{height}; it must give a finite number")
                if not math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-6):
                    raise UserError(
                        f"{what} and then {second} for the same image; it must depend on its arguments alone"
                    )


def score_image(
    index: int,
    image: list[Tensor],
    loss_fn: Loss,
    terms: Sequence[str],
    metrics: dict[str, Measure],
    input_scores: dict[int, list[Tensor]],
) -> Tensor:
    """Score an image's input, output and gt, each (1, C, H, W): a row of `validate`'s table, in float64.

    The row holds the loss, the metrics of the output, those of the input unless it has other channels, the `terms` of
    the loss, and 1. An image has the same input in every epoch, so its metrics are kept in `input_scores`, by `index`.
    """
    input, output, gt = image
    if index not in input_scores:
        compared = metrics.values() if input.shape == gt.shape else ()
        input_scores[index] = [metric(input, gt).clone() for metric in compared]  # a view would keep a whole map
    values = loss_fn.terms(output, gt)
    scores = [reduce(add, values.values()), *(metric(output, gt) for metric in metrics.values())]
    scores += [*input_scores[index], *(values[name] for name in terms)]
    return torch.cat([*(score.double().to(gt.device) for score in scores), gt.new_ones(1).double()])
