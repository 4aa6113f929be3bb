"""The configuration: every key with its type, default and unit. Nothing heavy is imported, so mistakes show at once.

The sections `data`, `optimizer` and `scheduler` are in modules of their own. `load.py` fills these models from YAML and
command-line overrides.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from accel_restore.config.base import Fraction, OpenSection, PositiveInt, Section, check_name, one_of, switch
from accel_restore.config.data import Data, PathText
from accel_restore.config.optim import AdamW, AnyOptimizer, AnySchedule, Cosine, OwnSchedule
from accel_restore.models.architectures import model_names, refused_names
from accel_restore.models.presets import describe_unknown, presets_of
from accel_restore.registry import LOSSES, METRICS
from accel_restore.utils.imports import unknown_choice


def _one_folder(name: str) -> str:
    """Return the name if it is one folder inside `dir` on every system and a terminal can print it."""
    if name.strip(" .") == "" or set(name) & set("/\\") or not name.isprintable() or len(name.encode()) > 200:
        raise PydanticCustomError(
            "run_name",
            "must name one folder: at most 200 bytes of printable characters without / and \\, not only dots, "
            "not {name}",
            {"name": repr(name)},
        )
    return name


def _check_project(name: str) -> str:
    """Return the name if W&B accepts it as a project, or as entity/project."""
    entity, slash, project = name.rpartition("/")
    parts = [entity, project] if slash else [project]
    if any(not part.strip() or set(part) & set("/\\#?%:") or not part.isprintable() for part in parts):
        problem = "must be a project or entity/project, without the characters / \\ # ? % : in a name"
    elif len(project) > 128:
        problem = "must be at most 128 characters long"
    else:
        return name
    raise PydanticCustomError("project", "{problem}, not {name}", {"problem": problem, "name": repr(name)})


class Run(Section):
    """Where the run is written, its seed, and whether it continues."""

    name: Annotated[str, AfterValidator(_one_folder)] = Field("demo", description="folder of the run inside `dir`")
    dir: PathText = Field("runs", description="folder for all runs")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="seed of every random draw in the run")
    resume: Annotated[Literal["auto", "never"] | PathText, switch(off="never", on="auto")] = Field(
        "auto",
        description="auto or true: continue the run in the folder, if any; never or false: refuse a folder that holds "
        "a run; or the path of a checkpoint",
    )


class Model(OpenSection):
    """The network; further keys are its keyword arguments.

    A preset is replaced by its arguments here, so that no run depends on the table of presets later.
    """

    name: Annotated[str | None, one_of(model_names(), refused_names())] = Field(
        None,
        description="a model's name or an import path; null: the model of the checkpoint",
        json_schema_extra={"examples": list(model_names())},
    )
    preset: str | None = Field(
        None, description="published arguments by name, see `accel-restore models NAME`; keys next to it replace them"
    )
    checkpoint: Annotated[PathText, Field(min_length=1)] | None = Field(
        None,
        description="weights to start from, .safetensors or .pth: best.safetensors of a run, or any file that "
        "spandrel recognizes",
    )
    partial: bool = Field(
        False, description="take all tensors of the checkpoint that fit the model, at least half of its parameters"
    )

    _object: Any = PrivateAttr(None)

    @property
    def object(self) -> Any:
        """The module, or the function that builds it, if `fit` was given one; `name` is then the path of its class."""
        return self._object

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments. A class of the user's own may have one named `preset`."""
        own = {"preset": self.preset} if self.preset is not None and self._is_users_own else {}
        return {**super().arguments, **own}

    @property
    def _is_users_own(self) -> bool:
        return ":" in (self.name or "")

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, values: Any) -> Any:
        """Replace a preset by its arguments; one that is unknown stays, and is reported with the other mistakes."""
        if isinstance(values, dict) and isinstance(name := values.get("name"), str):
            preset = values.get("preset")
            if isinstance(preset, str) and (arguments := presets_of(name).get(preset)) is not None:
                return {**arguments, **values, "preset": None}
        return values

    @model_validator(mode="after")
    def _named(self) -> "Model":
        problems = [
            f"model.{key}: unknown key, because the checkpoint defines the model; set model.name too, or remove it"
            for key in (self.arguments if self.name is None else ())
        ]
        if self.preset is not None and not self._is_users_own:
            problems.append(f"model.preset: {describe_unknown(self.name, self.preset)}")
        if self.name is None and self.checkpoint is None:
            problems = [f"model.name: missing; choose one of: {', '.join(model_names())}"]
        if self.partial and self.checkpoint is None:
            problems.append("model.partial: needs model.checkpoint, the weights to take; set it, or remove partial")
        if problems:
            raise PydanticCustomError("inconsistent", "{text}", {"text": "\n".join(problems)})
        return self


DEFAULT_NAMES = {"model": "unet", "optimizer": "adamw", "scheduler": "cosine"}


def named(default: str) -> BeforeValidator:
    """Return a validator that adds the default name to a section without a name."""
    return BeforeValidator(lambda section: {"name": default, **section} if isinstance(section, dict) else section)


def _name_model(section: Any) -> Any:
    """Add the default name to the section `model`, unless a checkpoint defines the model."""
    if isinstance(section, dict) and not section.get("checkpoint"):
        return {"name": DEFAULT_NAMES["model"], **section}
    return section


class EarlyStopping(Section):
    """Ends a run whose monitored value no longer improves."""

    patience: PositiveInt = Field(20, description="validations in a row without a better monitored value")


class Train(Section):
    """The training loop: length, batch size, precision, safety checks."""

    epochs: PositiveInt = 500
    max_steps: PositiveInt | None = Field(
        None,
        description="optimizer steps of the run, in place of epochs; rounded up to whole epochs, but exact with "
        "steps_per_epoch",
    )
    steps_per_epoch: PositiveInt | None = Field(
        None,
        lt=2**31,
        description="optimizer steps of an epoch, whatever the number of images; null: an epoch is one pass over them",
    )
    gradient_accumulation_steps: PositiveInt | None = Field(
        1, description="micro-batches per optimizer step; null: derived from global_batch_size"
    )
    global_batch_size: PositiveInt | None = Field(
        None, lt=2**24, description="pairs per optimizer step, summed over all devices"
    )
    mixed_precision: Annotated[Literal["no", "bf16", "fp16", "auto"], switch(off="no")] = "no"
    deterministic: bool = Field(False, description="make runs on CUDA bit-identical too; slower")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="maximum L2 norm of the gradient")
    max_skipped_steps: PositiveInt = Field(
        10, description="stop as diverged after this many consecutive steps with a non-finite gradient; each is skipped"
    )
    check_ranks_every_steps: PositiveInt = Field(
        100, description="steps between two comparisons of the ranks' weights; commits compare them too"
    )
    rank_timeout: Annotated[float, Field(gt=0)] = Field(
        1800.0, description="end the run after this many seconds without a heartbeat from another rank"
    )
    ema_decay: Fraction | None = Field(
        None, description="decay of an exponential moving average of the weights, which is validated and saved"
    )
    ema_warmup: bool = Field(False, description="limit the decay of update t to (1 + t) / (10 + t)")
    early_stopping: EarlyStopping | None = Field(
        None, description="end the run, as finished, when the monitored value no longer improves; null: off"
    )
    freeze: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="parameters that are not trained: name patterns such as 'encoder.*', or all_but_new, body, "
        "all_but_tail",
    )
    channels_last: bool = Field(True, description="NHWC memory layout; faster convolutions")
    compile: bool = Field(False, description="compile the model with torch.compile")
    checkpoint_blocks: bool = Field(
        False, description="gradient checkpointing of the model's repeated blocks: less memory, slower, same gradients"
    )

    @model_validator(mode="after")
    def _ema_warmup_needs_decay(self) -> "Train":
        if self.ema_warmup and self.ema_decay is None:
            text = "train.ema_warmup: needs train.ema_decay; set it, for example to 0.999"
            raise PydanticCustomError("inconsistent", "{text}", {"text": text})
        return self

    @model_validator(mode="after")
    def _one_batch_size(self) -> "Train":
        if self.global_batch_size is None:
            if self.gradient_accumulation_steps is None:
                raise PydanticCustomError(
                    "accumulation",
                    "gradient_accumulation_steps is null, so global_batch_size is needed; set one of the two",
                )
        elif "gradient_accumulation_steps" in self.model_fields_set and self.gradient_accumulation_steps is not None:
            raise PydanticCustomError(
                "accumulation",
                "global_batch_size and gradient_accumulation_steps are both set, but the second is derived from the "
                "first; remove one (on the command line: train.gradient_accumulation_steps=null)",
            )
        else:
            self.gradient_accumulation_steps = None
        return self


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
    monitor: str = Field("loss", description="loss or one of the metrics: decides which weights are best")
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
        4, description="images drawn as pictures; a run saves about 20 sets of them"
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
        if "metrics" not in info.data or monitor in ("loss", *labels):  # without: they have errors of their own
            return monitor
        if monitor in METRICS or ":" in monitor:
            message = f"'{monitor}' is not one of the metrics; add it to validation.metrics"
        else:
            message = unknown_choice(monitor, dict.fromkeys(("loss", *METRICS, *labels)))
        raise PydanticCustomError("monitor", "{message}", {"message": message})

    @model_validator(mode="after")
    def _tiles(self) -> "Validation":
        if self.tile is not None and self.tile < self.tile_overlap + 16:
            raise PydanticCustomError(
                "tile",
                "tile is {tile}; it must be at least tile_overlap + 16, and tile_overlap is {overlap}",
                {"tile": self.tile, "overlap": self.tile_overlap},
            )
        return self


class OwnCallback(OpenSection):
    """A callback of the user's own; further keys are its keyword arguments."""

    name: Annotated[str, one_of({})] = Field(description="import path of a subclass of accel_restore.Callback")
    _object: Any = PrivateAttr(None)

    @property
    def object(self) -> Any:
        """The callback itself, if `fit` was given one."""
        return self._object


class Checkpoint(Section):
    """When the run is committed to disk."""

    every_epochs: PositiveInt = Field(1, description="epochs between two commits")
    every_steps: PositiveInt | None = Field(None, description="steps between two commits within an epoch")
    keep: PositiveInt = Field(2, description="number of commits to keep, newest first")


class Tracking(Section):
    """Where losses, metrics and pictures are logged, in addition to the run's folder."""

    wandb: Annotated[Literal["auto", "online", "offline", "disabled"], switch(off="disabled", on="auto")] = Field(
        "auto", description="auto or true: online if an API key is set, offline otherwise; disabled or false: off"
    )
    wandb_per_rank: bool = Field(False, description="also log each rank as a W&B run; all runs are in one group")
    tensorboard: bool = Field(False, description="also write TensorBoard files into the run's folder")
    project: Annotated[str, AfterValidator(_check_project)] = Field(
        "accel-restore", description="the W&B project, or entity/project; the default entity is the account's"
    )
    log_every_steps: PositiveInt = Field(10, description="steps between two log entries")

    @property
    def entity_and_project(self) -> tuple[str | None, str]:
        """The owner of the W&B project, if `project` names one, and the project."""
        entity, _, project = self.project.rpartition("/")
        return entity or None, project


def _name_callback(section: Any) -> Any:
    return {"name": section} if isinstance(section, str) else section


class Config(Section):
    """The configuration of a training run of accel_restore."""

    run: Run = Run()
    data: Data
    model: Annotated[Model, BeforeValidator(_name_model)] = Model(name="unet")
    loss: Annotated[
        dict[Annotated[str, one_of(LOSSES)], Annotated[float, Field(gt=0)] | dict[str, Any]],
        BeforeValidator(lambda terms: {terms: 1.0} if isinstance(terms, str) else terms),
    ] = Field(default={"l1": 1.0}, min_length=1, description="a name, name: weight, or name: {weight: ..., ...}")
    optimizer: Annotated[AnyOptimizer, named(DEFAULT_NAMES["optimizer"])] = AdamW()
    scheduler: Annotated[AnySchedule, named(DEFAULT_NAMES["scheduler"])] = Cosine()
    train: Train = Train()
    validation: Validation = Validation()
    callbacks: list[
        Annotated[OwnCallback, BeforeValidator(_name_callback, json_schema_input_type=str | OwnCallback)]
    ] = Field([], description="what observes the training: import paths, or sections {name: ..., further arguments}")
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    _loss: Any = PrivateAttr(None)

    @property
    def own_loss(self) -> Any:
        """The loss, if `fit` was given one; `loss` then has the path of its class or function alone."""
        return self._loss

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        problems = []
        if self.scheduler.name == "plateau" and self.validation.every_epochs != 1:
            problems.append("scheduler.name: plateau needs a validation in every epoch; set validation.every_epochs=1")
        lr = self.optimizer.lr  # null: the default of an optimizer by import path
        if lr is not None and not isinstance(self.scheduler, OwnSchedule) and self.scheduler.min_lr > lr:
            problems.append("scheduler.min_lr: is above optimizer.lr; lower min_lr")
        if self.validation.y_channel and self.data.channels != 3:
            problems.append(
                "validation.y_channel: needs colour images; set data.channels=3, or remove it (gray images are luma)"
            )
        if problems:
            raise PydanticCustomError("inconsistent", "{text}", {"text": "\n".join(problems)})
        return self
