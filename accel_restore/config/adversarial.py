"""The configuration's `adversarial` section: a second network, the discriminator, and what trains it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.config.base import DEFAULT_NAMES, OpenSection, PositiveInt, Section, named, one_of
from accel_restore.config.optim import Adam, AnyOptimizer, AnySchedule, Constant
from accel_restore.config.sets import PathText
from accel_restore.registry import DISCRIMINATORS

_ADAM = DEFAULT_NAMES["adversarial.optimizer"]
_LR = 1e-4  # of Adam


class Discriminator(OpenSection):
    """The network that judges whether an image is gt or an output; further keys are its keyword arguments."""

    name: Annotated[str, one_of(DISCRIMINATORS)] = Field(
        DEFAULT_NAMES["adversarial.discriminator"],
        description="a discriminator's name or an import path",
        json_schema_extra={"examples": list(DISCRIMINATORS)},
    )
    checkpoint: Annotated[PathText, Field(min_length=1)] | None = Field(
        None, description="weights to start from, .safetensors or .pth, such as net_d_latest.pth of BasicSR"
    )


def _name_discriminator(section: Any) -> Any:
    return {"name": section} if isinstance(section, str) else section


def _name_optimizer(section: Any) -> Any:
    """Add what is left out of the section `optimizer`: the name, and the rate of Adam, a tenth of the usual one."""
    if not isinstance(section, dict):
        return section
    named_section = {"name": _ADAM, **section}
    return {"lr": _LR, **named_section} if named_section["name"] == _ADAM else named_section


class Adversarial(Section):
    """Adversarial training: the model, here called the generator, also learns to deceive a discriminator."""

    discriminator: Annotated[
        Discriminator, BeforeValidator(_name_discriminator, json_schema_input_type=str | Discriminator)
    ] = Field(
        Discriminator(),
        description="unet_sn (a logit per pixel), patch, vgg (one per image), an import path, or a section",
    )
    loss: Literal["vanilla", "lsgan", "hinge", "wgan", "relativistic"] = Field(
        "vanilla", description="the adversarial loss of both networks; wgan needs r1, as weights are not clipped"
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        0.1, description="weight of the generator's adversarial term, which is added to `loss`"
    )
    r1: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of R1, half the squared gradient of an image's mean logit at gt; 0: off"
    )
    r1_every: PositiveInt = Field(
        16, description="steps of the discriminator between two computations of R1, which is multiplied by this number"
    )
    starts_at_epoch: Annotated[int, Field(ge=0)] = Field(
        0, description="the first epoch with a discriminator, counted from 0; before it, the generator trains alone"
    )
    generator_every: PositiveInt = Field(1, description="steps of the run per step of the generator")
    discriminator_every: PositiveInt = Field(
        1, description="steps of the run per step of the discriminator; not together with generator_every"
    )
    skip_above: Annotated[float, Field(gt=0.5, lt=1)] | None = Field(
        None, description="the discriminator is not stepped if its accuracy in a step is above this; null: off"
    )
    optimizer: Annotated[AnyOptimizer, BeforeValidator(_name_optimizer)] = Field(
        Adam(lr=_LR), description="the discriminator's; has the keys of the section `optimizer`"
    )
    scheduler: Annotated[AnySchedule, named(DEFAULT_NAMES["adversarial.scheduler"])] = Field(
        Constant(), description="the discriminator's; has the keys of the section `scheduler`, but not plateau"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Adversarial":
        problems = []
        if self.generator_every > 1 and self.discriminator_every > 1:
            problems.append(
                "discriminator_every: one of the two is stepped in every step; remove generator_every or it"
            )
        if self.scheduler.name == "plateau":
            problems.append("scheduler.name: plateau follows the generator's validation; choose another schedule")
        if problems:
            raise PydanticCustomError(
                "inconsistent", "{text}", {"text": "\n".join(f"adversarial.{problem}" for problem in problems)}
            )
        return self
