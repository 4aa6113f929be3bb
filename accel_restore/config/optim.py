"""The configuration's `optimizer` and `scheduler` sections."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Strict, Tag, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.config.base import Fraction, OpenSection, PositiveInt, Section, require_name

_PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def _check_path(name: str) -> str:
    """Return the name if it has the form of an import path. What it names is imported later."""
    if _PATH.fullmatch(name):
        return name
    raise PydanticCustomError(
        "import_path", "'{name}' is not an import path; write package.module:Name", {"name": f"{name:.100}"}
    )


ImportPath = Annotated[str, AfterValidator(_check_path), Field(json_schema_extra={"pattern": f"^{_PATH.pattern}$"})]
LearningRate = Annotated[float, Field(gt=0)]
NoDecay = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(description="parameters without weight decay: norms, biases, or name patterns such as 'encoder.*'"),
]
WarmUpEpochs = Annotated[int, Field(ge=0, description="epochs of linear warm-up before the schedule")]


class Optimizer(Section):
    """The keys that all optimizers have."""

    model_config = ConfigDict(json_schema_extra=require_name)

    lr: LearningRate = Field(0.001, description="learning rate of epoch 0, or after warm-up")
    no_decay: NoDecay = Field([])


class OwnOptimizer(OpenSection):
    """An optimizer by its import path; further keys are its keyword arguments."""

    name: ImportPath = Field(description="import path of a class or function, such as pytorch_optimizer:SOAP")
    lr: LearningRate | None = Field(
        None, description="learning rate of epoch 0, or after warm-up; null: the optimizer's own default"
    )
    no_decay: NoDecay = Field([])


Betas = Annotated[tuple[Fraction, Fraction], Strict(False)]


class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: Betas = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8


class Adam(Optimizer):
    """Adam; weight decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: Betas = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8


class Muon(Optimizer):
    """Orthogonal steps for kernels with at least 16 input and 16 output channels; AdamW for all other parameters."""

    name: Literal["muon"] = "muon"
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.3, description="for all parameters except those in no_decay")
    momentum: Fraction = Field(0.95, description="for the kernels that take orthogonal steps")
    betas: Betas = Field((0.9, 0.999), description="for the parameters that AdamW trains")
    eps: Annotated[float, Field(gt=0)] = 1e-8


class SGD(Optimizer):
    """Stochastic gradient descent."""

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
    """The keys that all schedules have. A schedule steps once per epoch, so all units are epochs."""

    model_config = ConfigDict(json_schema_extra=require_name)

    min_lr: Annotated[float, Field(ge=0)] = Field(0.0, description="lower bound of the learning rate")
    warmup_epochs: WarmUpEpochs = 0


class OwnSchedule(OpenSection):
    """A schedule by its import path; further keys are its keyword arguments."""

    name: ImportPath = Field(description="import path of a function or class, such as mypackage.rates:triangle")
    warmup_epochs: WarmUpEpochs = 0


class Constant(Schedule):
    """The learning rate does not change."""

    name: Literal["constant"] = "constant"


class Cosine(Schedule):
    """The learning rate falls along half a cosine to min_lr."""

    name: Literal["cosine"] = "cosine"
    min_lr: Annotated[float, Field(ge=0)] = Field(1e-6, description="learning rate at the end of the cosine")
    hold_epochs: Annotated[int, Field(ge=0)] = Field(0, description="epochs at the initial rate before the cosine")


class CosineRestarts(Schedule):
    """The learning rate follows one cosine after another."""

    name: Literal["cosine_restarts"] = "cosine_restarts"
    min_lr: Annotated[float, Field(ge=0)] = Field(1e-6, description="learning rate at the end of each cosine")
    period: PositiveInt = Field(50, description="length of the first cosine, epochs")
    period_factor: PositiveInt = Field(1, description="ratio of the length of each cosine to the one before it")


class MultiStep(Schedule):
    """The learning rate is multiplied by gamma at each milestone."""

    name: Literal["multistep"] = "multistep"
    milestones: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        [200, 400], description="epochs at whose start the learning rate is multiplied by gamma"
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5


class Step(Schedule):
    """The learning rate is multiplied by gamma at regular intervals."""

    name: Literal["step"] = "step"
    step_size: PositiveInt = Field(100, description="epochs between two reductions")
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5


class Exponential(Schedule):
    """The learning rate is multiplied by gamma every epoch."""

    name: Literal["exponential"] = "exponential"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99


class Plateau(Schedule):
    """The learning rate is multiplied by factor when the monitored value stops improving."""

    name: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Annotated[int, Field(ge=0)] = Field(
        10, description="epochs without improvement of the monitored value before a reduction"
    )


OPTIMIZER_SECTIONS: dict[str, type[Optimizer]] = {
    section.model_fields["name"].default: section for section in (AdamW, Adam, Muon, SGD)
}
SCHEDULE_SECTIONS: dict[str, type[Schedule]] = {
    section.model_fields["name"].default: section
    for section in (Constant, Cosine, CosineRestarts, MultiStep, Step, Exponential, Plateau)
}


NAMED, BY_PATH = "ours by name", "import path"  # tags of unions; errors have them in their location


def _kind(section: Any) -> str:
    name = section.get("name") if isinstance(section, dict) else getattr(section, "name", None)
    return BY_PATH if isinstance(name, str) and ":" in name else NAMED


AnyOptimizer = Annotated[
    Annotated[AdamW | Adam | Muon | SGD, Discriminator("name"), Tag(NAMED)] | Annotated[OwnOptimizer, Tag(BY_PATH)],
    Discriminator(_kind),
]
AnySchedule = Annotated[
    Annotated[
        Constant | Cosine | CosineRestarts | MultiStep | Step | Exponential | Plateau, Discriminator("name"), Tag(NAMED)
    ]
    | Annotated[OwnSchedule, Tag(BY_PATH)],
    Discriminator(_kind),
]
