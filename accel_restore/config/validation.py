"""The configuration's `validation` section."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from accel_restore.config.base import OpenSection, PositiveInt, Section, check_name, one_of
from accel_restore.config.sets import PathText
from accel_restore.registry import METRICS
from accel_restore.utils.imports import unknown_choice


class MetricEntry(OpenSection):
    """A metric; further keys are the keyword arguments of one that is named by its import path.

    A name alone, without arguments and title, is read and written as text.
    """

    name: Annotated[str, one_of(METRICS)] = Field(description="a metric's name or an import path")
    title: str | None = Field(None, description="the name of its scores in records and pictures; null: `name`")

    @property
    def label(self) -> str:
        """The name of its scores."""
        return self.title or self.name

    @model_validator(mode="after")
    def _own(self) -> "MetricEntry":
        problem, title = "", self.title
        if self.name in METRICS and (title is not None or self.arguments):
            problem = f"{self.name} takes no arguments and no title; write {self.name} alone"
        elif title is not None and not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", title):
            problem = f"title: must be a word of letters, digits and _, not '{title}'"
        elif title is not None and _TAKEN.fullmatch(title):
            problem = f"title: '{title}' is the name of another value in records; choose another"
        if problem:
            raise PydanticCustomError("metric", "{problem}", {"problem": problem})
        return self

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> Any:
        return handler(self) if self.title or self.arguments else self.name


_TAKEN = re.compile(  # by other scores, or by what is recorded next to them
    "epoch|images|loss|protocol|sets|step|terms|(input|term|val)_.*|.*_(2|difference)|average|channels|degradation|input|"
    f"network|range|{'|'.join(METRICS)}|crop_border|crop_gt|quantize|self_ensemble|tile|tile_overlap|y_channel"
)


def _as_section(entry: Any) -> Any:
    """Return an entry of `validation.metrics` as a section."""
    if isinstance(entry, str):
        return {"name": check_name(entry, METRICS)}
    if not isinstance(entry, dict | MetricEntry):
        text = "must be a metric's name, an import path, or a section {name: ..., ...}, not {value}"
        raise PydanticCustomError("metric", text, {"value": repr(entry)})
    return entry


def _split(monitor: str, labels: list[str]) -> tuple[str | None, str]:
    """Return the set, if there is one, and the score of a value of `monitor`; import paths have dots, too."""
    name, dot, score = monitor.partition(".")
    return (name, score) if dot and monitor not in labels and ":" not in name else (None, monitor)


class Validation(Section):
    """How often and how whole images are scored."""

    every_epochs: PositiveInt = Field(1, description="epochs between two validations")
    metrics: list[Annotated[MetricEntry, BeforeValidator(_as_section, json_schema_input_type=str | MetricEntry)]] = (
        Field(
            [MetricEntry(name="psnr"), MetricEntry(name="ssim")],
            description="metrics computed on whole images: names, import paths, or sections {name: ..., ...}",
        )
    )
    weights: dict[Literal["lpips", "dists"], PathText] = Field(
        {}, description="torchvision weights that the perceptual metrics use: AlexNet for lpips, VGG16 for dists"
    )
    monitor: str = Field(
        "loss",
        description="loss or one of the metrics, the mean over sets, or that of one set such as set5.psnr: decides "
        "which weights are best",
    )
    crop_border: Annotated[int, Field(ge=0)] = Field(0, description="pixels ignored at each border")
    y_channel: bool = Field(False, description="score the BT.601 luma (16–235) instead of RGB")
    quantize: bool = Field(False, description="round output and gt to 8 bits before scoring")
    crop_gt: bool = Field(
        False,
        description="crop gt at the bottom and right to data.scale times its input, if it is larger by less than "
        "data.scale pixels a side; training images too",
    )
    self_ensemble: bool = Field(False, description="average the outputs over 8 flips and rotations of the input")
    tile: PositiveInt | None = Field(
        None, description="side of the input tiles that the network processes, pixels; null: whole images"
    )
    tile_overlap: Annotated[int, Field(ge=0)] = Field(64, description="overlap of neighbouring input tiles, pixels")
    batch_size: PositiveInt = Field(1, description="maximum number of images of equal size per device per forward pass")
    num_samples: Annotated[int, Field(ge=0)] = Field(
        4, description="images drawn in each picture, spread over the validation sets; a run saves about 20 pictures"
    )

    @field_validator("metrics")
    @classmethod
    def _once(cls, metrics: list[MetricEntry]) -> list[MetricEntry]:
        labels = [entry.label for entry in metrics]
        if twice := [label for label in labels if label not in METRICS and labels.count(label) > 1]:
            text = "'{label}' is listed twice; give each a title of its own"
            raise PydanticCustomError("metric", text, {"label": twice[0]})
        return metrics

    @field_validator("monitor")
    @classmethod
    def _monitored(cls, monitor: str, info: ValidationInfo) -> str:
        labels = [entry.label for entry in info.data.get("metrics", ())]
        _, score = _split(monitor, labels)
        if "metrics" not in info.data or score in ("loss", *labels):  # without: they have errors of their own
            return monitor
        if score in METRICS or ":" in monitor:
            metric = score if score in METRICS else monitor
            message = f"'{metric}' is not one of the metrics; add it to validation.metrics"
        else:
            message = unknown_choice(score, dict.fromkeys(("loss", *METRICS, *labels)))
        raise PydanticCustomError("monitor", "{message}", {"message": message})

    @property
    def monitored(self) -> tuple[str | None, str]:
        """The set and the score that decide which weights are best; the set is None for the mean over sets."""
        return _split(self.monitor, [entry.label for entry in self.metrics])

    @model_validator(mode="after")
    def _tiles(self) -> "Validation":
        if self.tile is not None and self.tile < self.tile_overlap + 16:
            raise PydanticCustomError(
                "tile",
                "tile is {tile}; it must be at least tile_overlap + 16, and tile_overlap is {overlap}",
                {"tile": self.tile, "overlap": self.tile_overlap},
            )
        return self
