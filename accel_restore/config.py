"""The configuration: every key with its type, default and unit. Imports nothing heavy, so that mistakes show at once.

`parsing.py` fills these models from YAML and command-line overrides and words the errors.
"""

import sys
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from accel_restore.data.degrade import DEGRADATIONS
from accel_restore.data.images import MAX_PIXELS
from accel_restore.losses import LOSSES
from accel_restore.models import MODELS
from accel_restore.naming import unknown_choice

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Paths = Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, "3" is not a number, infinities are not rates."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class OpenSection(Section):
    """A part whose further keys are the keyword arguments of what `name` stands for, checked when that is built."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def one_of(table: dict) -> BeforeValidator:
    """A validator that accepts the names of `table` and import paths such as `mypackage.nets:MyNet`."""

    def check(name: Any) -> Any:
        if isinstance(name, str) and name not in table and ":" not in name:
            raise PydanticCustomError("unknown_choice", "{message}", {"message": unknown_choice(name, table)})
        return name

    return BeforeValidator(check)


class Run(Section):
    name: Annotated[str, Field(min_length=1, pattern=r"^[^/\\]+$")] = Field(
        "demo", description="the run's folder inside `dir`"
    )
    dir: str = Field("runs", description="where runs are written")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="decides every random draw of the run")
    resume: str = Field("auto", description="auto | never (refuses a folder that holds a run) | path of a checkpoint")


_GIVEN_IN_PYTHON = "<Dataset of "  # begins what stands in config.yaml for a data set object


def _check_dataset(value: Any) -> Any:
    """A name or a `datasets.Dataset`. Who holds one has imported that library, so it need not be imported here."""
    library, kind = sys.modules.get("datasets"), type(value).__name__
    if value is None or (library is not None and isinstance(value, library.Dataset)):
        return value
    if isinstance(value, str) and value.startswith(_GIVEN_IN_PYTHON):
        message = f"{value} was an object given in Python; give it there again, or name a folder made by save_to_disk"
    elif isinstance(value, str) and value:
        return value
    elif isinstance(value, dict):
        message = (
            f"must be one dataset; of a DatasetDict choose a split, such as dataset[{next(iter(value), 'train')!r}]"
        )
    elif kind.startswith("Iterable"):
        message = f"must give its rows in any order, which an {kind} does not; load it without streaming"
    else:
        message = f"must be the name of a data set, or in Python a datasets.Dataset, not {value!r:.60}"
    raise PydanticCustomError("dataset", "{message}", {"message": message})


def _dataset_in_words(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return f"{_GIVEN_IN_PYTHON}{len(value)} rows, fingerprint {value._fingerprint}>"


DatasetOrName = Annotated[
    Any,
    AfterValidator(_check_dataset),
    PlainSerializer(_dataset_in_words, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}),
]


class Source(Section):
    """Images on disk, or rows of a data set. `package:skimage/data/x.png` lies inside an installed Python package."""

    input: Paths | None = Field(None, description="degraded images, given as gt is; equal names make a pair")
    gt: Paths | None = Field(
        None,
        description="clean images: a folder, a pattern with {}, or a list of those or of files; a dataset's column",
    )
    dataset: DatasetOrName = Field(
        None, description="for Hugging Face `datasets`: a file, a folder or a Hub id; in Python an object too"
    )
    split: str | None = Field(None, description="of the dataset; null: train")
    subset: str | None = Field(None, description="of a dataset that has several configurations: one's name")
    recursive: bool = Field(False, description="take the images of sub-folders too")

    @model_validator(mode="after")
    def _complete(self) -> "Source":
        problems = self._wrong_for_files() if self.dataset is None else self._wrong_for_dataset()
        if problems:
            raise PydanticCustomError("source", "{text}", {"text": "\n".join(problems)})
        return self

    def _wrong_for_files(self) -> list[str]:
        """Problems, each beginning with what follows the section's own key."""
        problems = [f".{key}: needs a dataset; remove it" for key in ("split", "subset") if getattr(self, key)]
        if self.gt is None:
            problems.append(": 'gt' is missing: name the folder or pattern of the clean images, or a dataset")
        places = [
            place for side in (self.gt, self.input) for place in ([side] if isinstance(side, str) else side or [])
        ]
        if self.recursive and places and all("{}" in place for place in places):
            problems.append(".recursive: is for folders; in a pattern, write **/ for folders of any depth")
        return problems

    def _wrong_for_dataset(self) -> list[str]:
        problems = [
            f".{key}: must be the name of one column of the dataset, not a list"
            for key in ("input", "gt")
            if isinstance(getattr(self, key), list)
        ]
        if self.recursive:
            problems.append(".recursive: is for folders of images; remove it, or the dataset")
        if not isinstance(self.dataset, str):
            problems += [
                f".{key}: chooses from a dataset's files, but this dataset is an object; remove it"
                for key in ("split", "subset")
                if getattr(self, key) is not None
            ]
        return problems


class Degradation(OpenSection):
    name: Annotated[str, one_of(DEGRADATIONS)]


DEFAULT_DEGRADATIONS = {
    False: [Degradation(name="gaussian_noise", sigma=25)],
    True: [Degradation(name="downscale"), Degradation(name="quantize")],
}


class Data(Section):
    train: Source = Field(description="training images; without `input` it is made by `degradation`")
    val: Source | None = Field(None, description="validation images; null: `val_fraction` of the training images")
    scale: Literal[1, 2, 3, 4] = Field(1, description="gt is `scale` times larger than input (super-resolution)")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="share of training images held out")
    degradation: Annotated[list[Degradation], Field(min_length=1)] = Field(
        default_factory=lambda data: DEFAULT_DEGRADATIONS[data.get("scale", 1) > 1],
        description="makes the input of sources without one, applied in order; "
        "default: gaussian_noise of sigma 25, or with a scale above 1 bicubic downscale, rounded to 8 bits",
    )
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: gray (BT.601 luma of colour images)")
    patch_size: PositiveInt = Field(256, description="side of a training crop of gt, pixels; a multiple of scale")
    crops_per_image: PositiveInt = Field(1, description="samples per image per epoch")
    augment: list[Literal["hflip", "vflip", "rot90"]] = Field(
        ["hflip", "vflip", "rot90"], description="each done to half of the samples"
    )
    batch_size: PositiveInt = Field(8, description="pairs per device per forward pass")
    num_threads: Annotated[int, Field(ge=0, le=64)] = Field(
        1, description="threads that read batches ahead; 0: in the training loop; the run is the same with any number"
    )
    cache_dir: str | None = Field(None, description="decoded images; null: ~/.cache/accel_restore")
    max_image_pixels: PositiveInt = Field(MAX_PIXELS, description="larger images are refused as decompression bombs")

    @model_validator(mode="after")
    def _multiple_of_scale(self) -> "Data":
        if self.patch_size % self.scale:
            raise PydanticCustomError(
                "patch_size",
                "patch_size is {size}, which is no multiple of scale {scale}",
                {"size": self.patch_size, "scale": self.scale},
            )
        return self


class Model(OpenSection):
    name: Annotated[str, one_of(MODELS)] = "unet"


class Optimizer(Section):
    lr: Annotated[float, Field(gt=0)] = Field(0.001, description="learning rate of epoch 0 (after warm-up)")


Betas = Annotated[tuple[Fraction, Fraction], Strict(False)]


class AdamW(Optimizer):
    name: Literal["adamw"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: Betas = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8


class Adam(Optimizer):
    name: Literal["adam"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: Betas = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8


class SGD(Optimizer):
    name: Literal["sgd"] = "sgd"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Fraction = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov(self) -> "SGD":
        if self.nesterov and not self.momentum:
            raise PydanticCustomError("nesterov", "nesterov needs a momentum above 0")
        return self


class Schedule(Section):
    """All units are epochs: a schedule steps once per epoch."""

    min_lr: Annotated[float, Field(ge=0)] = Field(0.0, description="the rate never falls below it")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(0, description="epochs of linear rise before the schedule")


class Constant(Schedule):
    name: Literal["constant"] = "constant"


class Cosine(Schedule):
    name: Literal["cosine"] = "cosine"
    min_lr: Annotated[float, Field(ge=0)] = Field(1e-6, description="the rate the cosine ends at")


class CosineRestarts(Schedule):
    name: Literal["cosine_restarts"] = "cosine_restarts"
    min_lr: Annotated[float, Field(ge=0)] = Field(1e-6, description="the rate each cosine ends at")
    period: PositiveInt = Field(50, description="epochs of the first cosine")
    period_factor: PositiveInt = Field(1, description="each further cosine is so many times longer")


class MultiStep(Schedule):
    name: Literal["multistep"] = "multistep"
    milestones: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        [200, 400], description="epochs before which the rate is multiplied by gamma"
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5


class Step(Schedule):
    name: Literal["step"] = "step"
    step_size: PositiveInt = Field(100, description="epochs between two falls")
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5


class Exponential(Schedule):
    name: Literal["exponential"] = "exponential"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99


class Plateau(Schedule):
    name: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Annotated[int, Field(ge=0)] = Field(10, description="epochs without a better monitored value")


DEFAULT_NAMES = {"model": "unet", "optimizer": "adamw", "scheduler": "cosine"}


def named(default: str) -> BeforeValidator:
    """A validator that fills in the name of a section that gives only arguments."""
    return BeforeValidator(lambda section: {"name": default, **section} if isinstance(section, dict) else section)


OPTIMIZER_SECTIONS = {section.model_fields["name"].default: section for section in (AdamW, Adam, SGD)}
SCHEDULE_SECTIONS = {
    section.model_fields["name"].default: section
    for section in (Constant, Cosine, CosineRestarts, MultiStep, Step, Exponential, Plateau)
}
AnyOptimizer = Annotated[AdamW | Adam | SGD, Discriminator("name")]
AnySchedule = Annotated[
    Constant | Cosine | CosineRestarts | MultiStep | Step | Exponential | Plateau, Discriminator("name")
]


class Train(Section):
    epochs: PositiveInt = 500
    max_steps: PositiveInt | None = Field(None, description="if set, epochs = ceil(max_steps / steps per epoch)")
    gradient_accumulation_steps: PositiveInt | None = Field(
        1, description="micro-batches per optimizer step; null: derived from global_batch_size"
    )
    global_batch_size: PositiveInt | None = Field(None, description="pairs per optimizer step over all devices")
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16", "auto"], BeforeValidator(lambda value: "no" if value is False else value)
    ] = "no"
    deterministic: bool = Field(False, description="bit-identical runs on CUDA too, slower")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="clip the gradient's L2 norm")
    ema_decay: Fraction | None = Field(None, description="validate and save an exponential moving average")
    channels_last: bool = Field(True, description="NHWC memory layout: faster convolutions")
    compile: bool = False

    @model_validator(mode="after")
    def _one_batch_size(self) -> "Train":
        if self.global_batch_size is None:
            if self.gradient_accumulation_steps is None:
                raise PydanticCustomError(
                    "accumulation", "gradient_accumulation_steps: null needs a global_batch_size to derive it from"
                )
        elif "gradient_accumulation_steps" in self.model_fields_set and self.gradient_accumulation_steps is not None:
            raise PydanticCustomError(
                "accumulation",
                "global_batch_size and gradient_accumulation_steps are both set; the first derives the second: "
                "remove one (gradient_accumulation_steps=null on the command line)",
            )
        else:
            self.gradient_accumulation_steps = None
        return self


class Validation(Section):
    every_epochs: PositiveInt = 1
    metrics: list[Literal["psnr", "ssim"]] = ["psnr", "ssim"]
    monitor: Literal["loss", "psnr", "ssim"] = Field("loss", description="decides which weights are best")
    crop_border: Annotated[int, Field(ge=0)] = Field(0, description="pixels left out at each side")
    y_channel: bool = Field(False, description="score the luma of BT.601 (16–235) instead of RGB")
    num_samples: Annotated[int, Field(ge=0)] = Field(4, description="validation pictures; about 20 sets a run")

    @model_validator(mode="after")
    def _monitored(self) -> "Validation":
        if self.monitor not in ("loss", *self.metrics):
            raise PydanticCustomError(
                "monitor",
                "monitor is '{monitor}', which is not among the metrics; add it there",
                {"monitor": self.monitor},
            )
        return self


class Checkpoint(Section):
    every_epochs: PositiveInt = 1
    every_steps: PositiveInt | None = Field(None, description="commit within an epoch too, every so many steps")
    keep: PositiveInt = Field(2, description="newest commits that are kept")


class Tracking(Section):
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online with a key, else offline"
    )
    project: str = "accel-restore"
    log_every_steps: PositiveInt = 10


class Config(Section):
    """A training run of accel_restore."""

    run: Run = Run()
    data: Data
    model: Annotated[Model, named(DEFAULT_NAMES["model"])] = Model(name="unet")
    loss: Annotated[
        dict[Annotated[str, one_of(LOSSES)], Annotated[float, Field(gt=0)] | dict[str, Any]],
        BeforeValidator(lambda terms: {terms: 1.0} if isinstance(terms, str) else terms),
    ] = Field(default={"l1": 1.0}, min_length=1, description="a name, or name: weight, or name: {weight: ..., ...}")
    optimizer: Annotated[AnyOptimizer, named(DEFAULT_NAMES["optimizer"])] = AdamW()
    scheduler: Annotated[AnySchedule, named(DEFAULT_NAMES["scheduler"])] = Cosine()
    train: Train = Train()
    validation: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        problems = []
        if self.scheduler.name == "plateau" and self.validation.every_epochs != 1:
            problems.append("scheduler.name: plateau needs a validation every epoch; set validation.every_epochs=1")
        if self.scheduler.min_lr > self.optimizer.lr:
            problems.append("scheduler.min_lr: is above optimizer.lr; lower it")
        if self.validation.y_channel and self.data.channels != 3:
            problems.append("validation.y_channel: needs colour images (data.channels=3); gray ones are luma already")
        if problems:
            raise PydanticCustomError("inconsistent", "{text}", {"text": "\n".join(problems)})
        return self
