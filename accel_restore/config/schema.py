"""The configuration: every key with its type, default and unit. Imports nothing heavy, so that mistakes show at once.

`parsing.py` fills these models from YAML and command-line overrides and words the errors; `config_data.py` holds the
section `data`.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.config.base import Fraction, OpenSection, PositiveInt, Section, one_of
from accel_restore.config.data import Data, PathText
from accel_restore.registry import LOSSES, METRICS, MODELS


def _one_folder(name: str) -> str:
    """A name that stays inside `dir` on every system, and that a terminal shows as it is."""
    if name.strip(" .") == "" or set(name) & set("/\\") or not name.isprintable() or len(name.encode()) > 200:
        raise PydanticCustomError(
            "run_name",
            "must name one folder: letters, digits and signs but / and \\, at most 200 bytes, no . or .. alone",
        )
    return name


class Run(Section):
    name: Annotated[str, AfterValidator(_one_folder)] = Field("demo", description="the run's folder inside `dir`")
    dir: PathText = Field("runs", description="where runs are written")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="decides every random draw of the run")
    resume: PathText = Field(
        "auto", description="auto | never (refuses a folder that holds a run) | path of a checkpoint"
    )


class Model(OpenSection):
    name: Annotated[str | None, one_of(MODELS)] = Field(None, description="null: that of the checkpoint")
    checkpoint: Annotated[PathText, Field(min_length=1)] | None = Field(
        None, description="weights to begin with: a best.safetensors, or what spandrel recognises; .pth, .safetensors"
    )

    @model_validator(mode="after")
    def _named(self) -> "Model":
        problems = [
            f"model.{key}: unknown key beside a checkpoint that brings its own model; set model.name too, or remove it"
            for key in (self.arguments if self.name is None else ())
        ]
        if self.name is None and self.checkpoint is None:
            problems = [f"model.name: missing; choose one of: {', '.join(MODELS)}"]
        if problems:
            raise PydanticCustomError("inconsistent", "{text}", {"text": "\n".join(problems)})
        return self


class Optimizer(Section):
    lr: Annotated[float, Field(gt=0)] = Field(0.001, description="learning rate of epoch 0 (after warm-up)")
    no_decay: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="parameters without weight decay: norms, biases, or patterns of names such as 'encoder.*'"
    )


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


class Muon(Optimizer):
    name: Literal["muon"] = "muon"
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.3, description="of all parameters but those of no_decay")
    momentum: Fraction = Field(0.95, description="of kernels between at least 16 channels, which take orthogonal steps")
    betas: Betas = Field((0.9, 0.999), description="of everything else, which is AdamW's")
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
    hold_epochs: Annotated[int, Field(ge=0)] = Field(0, description="epochs at the first rate before the cosine")


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


def _name_model(section: Any) -> Any:
    """The section `model` with the default name, unless a checkpoint brings its own."""
    if isinstance(section, dict) and section.get("checkpoint") is None:
        return {"name": DEFAULT_NAMES["model"], **section}
    return section


OPTIMIZER_SECTIONS = {section.model_fields["name"].default: section for section in (AdamW, Adam, Muon, SGD)}
SCHEDULE_SECTIONS = {
    section.model_fields["name"].default: section
    for section in (Constant, Cosine, CosineRestarts, MultiStep, Step, Exponential, Plateau)
}
AnyOptimizer = Annotated[AdamW | Adam | Muon | SGD, Discriminator("name")]
AnySchedule = Annotated[
    Constant | Cosine | CosineRestarts | MultiStep | Step | Exponential | Plateau, Discriminator("name")
]


class Train(Section):
    epochs: PositiveInt = 500
    max_steps: PositiveInt | None = Field(None, description="if set, epochs = ceil(max_steps / steps per epoch)")
    gradient_accumulation_steps: PositiveInt | None = Field(
        1, description="micro-batches per optimizer step; null: derived from global_batch_size"
    )
    global_batch_size: PositiveInt | None = Field(
        None, lt=2**24, description="pairs per optimizer step over all devices"
    )
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16", "auto"], BeforeValidator(lambda value: "no" if value is False else value)
    ] = "no"
    deterministic: bool = Field(False, description="bit-identical runs on CUDA too, slower")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="clip the gradient's L2 norm")
    max_skipped_steps: PositiveInt = Field(
        10, description="end as diverged after so many steps in a row whose gradient is no number; each is skipped"
    )
    check_ranks_every_steps: PositiveInt = Field(100, description="compare the ranks' weights; before commits too")
    rank_timeout: Annotated[float, Field(gt=0)] = Field(
        1800.0, description="seconds without a sign of life of another rank after which the run ends"
    )
    ema_decay: Fraction | None = Field(None, description="validate and save an exponential moving average")
    ema_warmup: bool = Field(False, description="the decay of update t is at most (1 + t) / (10 + t)")
    freeze: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="parameters that keep their values: patterns of names such as 'encoder.*'"
    )
    channels_last: bool = Field(True, description="NHWC memory layout: faster convolutions")
    compile: bool = False

    @model_validator(mode="after")
    def _warms_up_an_average(self) -> "Train":
        if self.ema_warmup and self.ema_decay is None:
            text = "train.ema_warmup: has no average to warm up; set train.ema_decay, such as 0.999"
            raise PydanticCustomError("inconsistent", "{text}", {"text": text})
        return self

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


if TYPE_CHECKING:  # a type checker cannot read the choices from a table
    MetricName = str
    MonitorName = str
else:
    MetricName = Literal[tuple(METRICS)]
    MonitorName = Literal["loss", *METRICS]


class Validation(Section):
    every_epochs: PositiveInt = 1
    metrics: list[MetricName] = Field(["psnr", "ssim"], description="of whole images")
    weights: dict[Literal["lpips", "dists"], PathText] = Field(
        {}, description="files of the networks that metrics look with, torchvision's: {lpips: AlexNet, dists: VGG16}"
    )
    monitor: MonitorName = Field("loss", description="decides which weights are best")
    crop_border: Annotated[int, Field(ge=0)] = Field(0, description="pixels left out at each side")
    y_channel: bool = Field(False, description="score the luma of BT.601 (16–235) instead of RGB")
    quantize: bool = Field(False, description="round output and gt to 8 bits before they are scored")
    self_ensemble: bool = Field(False, description="the mean of the outputs for 8 flips and rotations, turned back")
    tile: PositiveInt | None = Field(None, description="pixels of input that the network sees at once; null: the image")
    tile_overlap: Annotated[int, Field(ge=0)] = Field(64, description="pixels of input that neighbouring tiles share")
    batch_size: PositiveInt = Field(
        1, description="at most so many images of equal size go through the network at once, on a device"
    )
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

    @model_validator(mode="after")
    def _tiles(self) -> "Validation":
        if self.tile is not None and self.tile < self.tile_overlap + 16:
            raise PydanticCustomError(
                "tile",
                "tile is {tile}, which must be at least 16 above tile_overlap, {overlap}",
                {"tile": self.tile, "overlap": self.tile_overlap},
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
    wandb_per_rank: bool = Field(False, description="beside the run of all, a W&B run of each rank, in one group")
    tensorboard: bool = Field(False, description="for TensorBoard too, into the run's folder")
    project: str = "accel-restore"
    log_every_steps: PositiveInt = 10


class Config(Section):
    """A training run of accel_restore."""

    run: Run = Run()
    data: Data
    model: Annotated[Model, BeforeValidator(_name_model)] = Model(name="unet")
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
