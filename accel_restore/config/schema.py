"""The configuration: every key with its type, default and unit. Nothing heavy is imported, so mistakes show at once.

The sections `data`, `model`, `optimizer`, `scheduler` and `validation` are in modules of their own. `load.py` fills
these models from YAML and command-line overrides.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.config.adversarial import Adversarial
from accel_restore.config.base import DEFAULT_NAMES, Fraction, OpenSection, PositiveInt, Section, named, one_of, switch
from accel_restore.config.data import Data
from accel_restore.config.model import Model
from accel_restore.config.optim import AdamW, AnyOptimizer, AnySchedule, Cosine, OwnSchedule
from accel_restore.config.sets import PathText, ValSet, key_of
from accel_restore.config.validation import Validation
from accel_restore.registry import LOSSES


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
    compile: Literal[False, True, "max-autotune-no-cudagraphs", "reduce-overhead", "max-autotune"] = Field(
        False,
        description="compile the model with torch.compile; or its mode: max-autotune-no-cudagraphs tries more kernels "
        "and takes longer to start, reduce-overhead uses CUDA graphs, max-autotune does both",
    )
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


def _problems_of_pair(config: "Config") -> list[str]:
    """What in a configuration does not fit its section `adversarial`."""
    assert config.adversarial is not None
    second, problems = config.adversarial, []
    lr = second.optimizer.lr
    if lr is not None and not isinstance(second.scheduler, OwnSchedule) and second.scheduler.min_lr > lr:
        problems.append("adversarial.scheduler.min_lr: is above adversarial.optimizer.lr; lower min_lr")
    if "adversarial" in config.loss:
        problems.append("loss.adversarial: has the name of the term that adversarial adds; rename it")
    return problems


class Config(Section):
    """The configuration of a training run of accel_restore."""

    run: Run = Run()
    data: Data
    model: Annotated[Model, BeforeValidator(_name_model)] = Model(name="unet")
    loss: Annotated[
        dict[Annotated[str, one_of(LOSSES)], Annotated[float, Field(gt=0)] | dict[str, Any]],
        BeforeValidator(
            lambda terms: {terms: 1.0} if isinstance(terms, str) else terms,
            json_schema_input_type=str | dict[str, Annotated[float, Field(gt=0)] | dict[str, Any]],
        ),
    ] = Field(default={"l1": 1.0}, min_length=1, description="a name, name: weight, or name: {weight: ..., ...}")
    optimizer: Annotated[AnyOptimizer, named(DEFAULT_NAMES["optimizer"])] = AdamW()
    scheduler: Annotated[AnySchedule, named(DEFAULT_NAMES["scheduler"])] = Cosine()
    adversarial: Adversarial | None = Field(
        None, description="a discriminator, which the model learns to deceive; null: off"
    )
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
        if self.adversarial is not None:
            problems += _problems_of_pair(self)
        problems += self._problems_of_sets()
        if problems:
            raise PydanticCustomError("inconsistent", "{text}", {"text": "\n".join(problems)})
        return self

    def _problems_of_sets(self) -> list[str]:
        """Return the problems of how the validation sets are scored."""
        data, validation = self.data, self.validation
        sections: dict[str, Validation | ValSet] = {"validation": validation}
        sections |= {key_of("data.val", name): one for name, one in data.val_sets.items()}
        problems = [
            f"{key}.y_channel: needs colour images; set data.channels=3, or remove it (gray images are luma)"
            for key, section in sections.items()
            if section.y_channel and data.channels != 3
        ]
        problems += [
            f"{key}.tile: is {section.tile}; it must be at least validation.tile_overlap + 16, and "
            f"validation.tile_overlap is {validation.tile_overlap}"
            for key, section in sections.items()
            if section.tile is not None and section.tile < validation.tile_overlap + 16
        ]
        name, _ = validation.monitored
        if name is not None and name not in data.validated:
            names = [name for name in data.validated if name]
            what = f"the sets are {', '.join(names)}" if names else "there are no validation sets with names"
            remedy = "name one of them, or the score alone for the mean over sets" if names else "name the score alone"
            unknown = f"validation.monitor: '{validation.monitor}': no validation set is '{name}'"
            problems.append(f"{unknown}; {what}; {remedy}")
        return problems
