"""The configuration's `data` section: images, degradations, crops, batches. Nothing heavy is imported."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.config.base import PositiveInt, Section
from accel_restore.config.sets import Degradation, Paths, PathText, TrainSet, TrainSets, ValSet, ValSets
from accel_restore.models import MOST_CHANNELS, ImageSpec

MAX_PIXELS = 89_478_485  # above it, Pillow warns of a possible decompression bomb


DEFAULT_DEGRADATIONS = {
    False: [Degradation.model_validate({"name": "gaussian_noise", "sigma": 25})],
    True: [Degradation(name="downscale"), Degradation(name="quantize")],
}


class Cache(Section):
    """How decoded images are stored, and how files are found again."""

    codec: Literal["raw", "compact"] = Field(
        "raw", description="compact: lossless tiles, half the bytes for photographs, slower to read; results are equal"
    )
    trust_folders: bool = Field(
        False,
        description="take files as unchanged while the times of their folders are; a file rewritten in place is then "
        "not noticed, and its former pixels are used",
    )


class Stage(Section):
    """Settings for the first epochs of a run; null keeps the value that is set without stages."""

    until_epoch: PositiveInt = Field(description="last epoch of the stage, counted from 1")
    patch_size: PositiveInt | None = Field(None, description="side of a training crop of gt, pixels")
    batch_size: PositiveInt | None = Field(None, description="pairs per device per forward pass")
    global_batch_size: PositiveInt | None = Field(None, lt=2**24, description="pairs per optimizer step")


class Mixup(Section):
    """Mixes a second pair into a sample: both images with the same weight, drawn from Beta(alpha, alpha)."""

    probability: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of samples that are mixed")
    alpha: Annotated[float, Field(gt=0)] = Field(1.2, description="larger values draw weights closer to 0.5")


def _check_batch_size(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise PydanticCustomError("batch_size", "must be a number above 0 or auto, not {value}", {"value": repr(value)})


BatchSize = Annotated[
    Any,
    AfterValidator(_check_batch_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"const": "auto", "type": "string"}]}),
]


ChannelCount = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]


_MOST_FLOAT = 3e38  # float32 ends a little above it


def _check_range(value: tuple[float, float]) -> tuple[float, float]:
    low, high = map(float, value)
    if low >= high:
        raise PydanticCustomError(
            "range", "the first number must be below the second, not {value}", {"value": [low, high]}
        )
    if not 1e-38 < high - low < _MOST_FLOAT or max(-low, high) >= _MOST_FLOAT:
        text = (
            "the numbers must be within -3e38 and 3e38, and so far apart that float32 can divide by the difference, "
            "from 1e-38 to 3e38, not {value}; scale the pixels of the files"
        )
        raise PydanticCustomError("range", text, {"value": [low, high]})
    return low, high


class Data(Section):
    """The images, and how samples and batches are made from them."""

    train: TrainSets = Field(
        description="training images, or several named sets of them; without `input`, `degradation` makes the inputs"
    )
    val: ValSets | None = Field(
        None,
        description="validation images, or several named sets of them; null: `val_fraction` of the images of each "
        "training set",
    )
    preview: Paths | None = Field(
        None,
        description="inputs without gt: a folder, a pattern with {}, or a list of folders, patterns or files; restored "
        "and drawn after validation, never scored",
    )
    scale: Literal[1, 2, 3, 4] = Field(1, description="size of gt divided by the size of input (super-resolution)")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the training images held out for validation"
    )
    degradation: Annotated[list[Degradation], Field(min_length=1)] = Field(
        default_factory=lambda data: DEFAULT_DEGRADATIONS[data.get("scale", 1) > 1],
        description="steps that make the input of sources without one, applied in order; default: gaussian_noise "
        "with sigma 25; with a scale above 1: bicubic downscale, then quantize",
    )
    channels: ChannelCount = Field(
        3, description="of gt and output; 3: colour; 1: gray, the BT.601 luma of colour images; others: as in the files"
    )
    input_channels: ChannelCount | None = Field(None, description="of the input, if not as many as channels")
    range: Annotated[tuple[float, float], Strict(False), AfterValidator(_check_range)] = Field(
        (0.0, 1.0),
        description="values of float pixels (.npy, float TIFF, OpenEXR) that the network sees as 0 and 1; others are "
        "outside of it and kept; integer pixels are divided by their largest value",
    )
    patch_size: PositiveInt = Field(256, description="side of a training crop of gt, pixels; a multiple of scale")
    max_images: Annotated[int, Field(ge=2)] | None = Field(
        None, description="use only this many images of each source, the first by name, for a quick test"
    )
    crops_per_image: PositiveInt = Field(1, description="samples per image per pass over the images")
    augment: list[Literal["hflip", "vflip", "rot90"]] = Field(
        ["hflip", "vflip", "rot90"], description="flips and rotations, each applied to half of the samples"
    )
    mixup: Mixup | None = Field(None, description="mix a second pair into samples; null: off")
    batch_size: BatchSize = Field(
        8,
        description="pairs per device per forward pass; auto: the largest power of two that fits into memory, at most "
        "64 on a CPU",
    )
    stages: list[Stage] = Field(
        [],
        description="progressive training: crop and batch sizes of the first epochs, in order; afterwards the settings "
        "above apply",
    )
    num_threads: Annotated[int, Field(ge=0, le=64)] = Field(
        1, description="threads that prepare batches in advance; 0: the training loop does it; results do not change"
    )
    cache_dir: PathText | None = Field(None, description="folder for decoded images; null: ~/.cache/accel_restore")
    cache: Cache = Cache()
    max_image_pixels: PositiveInt = Field(MAX_PIXELS, description="images with more pixels are refused")

    @property
    def train_sets(self) -> dict[str, TrainSet]:
        """The training sets in the order of their names; a single one may be without a name: ''."""
        return dict(sorted(self.train.items())) if isinstance(self.train, dict) else {"": self.train}

    @property
    def val_sets(self) -> dict[str, ValSet]:
        """The validation sets by their names; empty if validation images are held out."""
        return self.val if isinstance(self.val, dict) else {"": self.val} if self.val is not None else {}

    @property
    def validated(self) -> dict[str, TrainSet] | dict[str, ValSet]:
        """The sets whose images are validated, by name: the training sets if their images are held out."""
        return self.val_sets or self.train_sets

    def degradation_of(self, source: TrainSet | ValSet) -> list[Degradation]:
        """Return the steps that make the inputs of a set; empty if all are read from files."""
        if source.input is not None and getattr(source, "synthetic_share", None) is None:
            return []
        return source.degradation or self.degradation

    @property
    def image_spec(self) -> ImageSpec:
        """The numbers of channels of input and gt, and the scale."""
        return ImageSpec.of(self.channels, self.scale, self.input_channels)

    @property
    def patch_sizes(self) -> dict[str, int]:
        """The crop sides of all stages, by their keys."""
        stages = {f"data.stages.{i}.patch_size": stage.patch_size for i, stage in enumerate(self.stages)}
        return {key: size for key, size in stages.items() if size} | {"data.patch_size": self.patch_size}

    @model_validator(mode="after")
    def _multiple_of_scale(self) -> "Data":
        for key, size in self.patch_sizes.items():
            if size % self.scale:
                raise PydanticCustomError(
                    "patch_size",
                    "{key} is {size}, which is not a multiple of scale {scale}",
                    {"key": key.removeprefix("data."), "size": size, "scale": self.scale},
                )
        return self

    @model_validator(mode="after")
    def _stages_in_order(self) -> "Data":
        ends = [stage.until_epoch for stage in self.stages]
        if ends != sorted(set(ends)):
            raise PydanticCustomError(
                "stages",
                "stages end at epochs {ends}; until_epoch must increase from stage to stage",
                {"ends": ", ".join(map(str, ends))},
            )
        return self
