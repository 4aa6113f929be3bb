"""The configuration's `adversarial` section: a second network, the discriminator, and what trains it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.config.base import DEFAULT_NAMES, OpenSection, PositiveInt, Section, named, one_of
from accel_restore.config.data import PathText
from accel_restore.config.optim import Adam, AnyOptimizer, AnySchedule, Constant
from accel_restore.registry import DISCRIMINATORS


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


class Adversarial(Section):
    """Adversarial training: the generator, which is the model, also learns to deceive a discriminator."""

    discriminator: Annotated[
        Discriminator, BeforeValidator(_name_discriminator, json_schema_input_type=str | Discriminator)
    ] = Discriminator()
    loss: Literal["vanilla", "lsgan", "hinge", "wgan", "relativistic"] = "vanilla"
    weight: Annotated[float, Field(gt=0)] = Field(0.1, description="of the generator's adversarial term")
    r1: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the penalty on the discriminator's gradient at gt; 0: off"
    )
    r1_every: PositiveInt = Field(16, description="steps between two penalties; each is multiplied by this number")
    starts_at_epoch: Annotated[int, Field(ge=0)] = Field(
        0, description="the first epoch with a discriminator, counted from 0; before, the generator trains alone"
    )
    generator_every: PositiveInt = Field(1, description="the generator is stepped in every N-th step only")
    discriminator_every: PositiveInt = Field(1, description="the discriminator is stepped in every N-th step only")
    skip_above: Annotated[float, Field(gt=0.5, lt=1)] | None = Field(
        None, description="the discriminator is not stepped where its accuracy is above this; null: off"
    )
    optimizer: Annotated[AnyOptimizer, named(DEFAULT_NAMES["adversarial.optimizer"])] = Adam(lr=1e-4)
    scheduler: Annotated[AnySchedule, named(DEFAULT_NAMES["adversarial.scheduler"])] = Constant()

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
