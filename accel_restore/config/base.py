"""What the sections of the configuration are made of."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from accel_restore.utils.imports import unknown_name

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


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
            raise PydanticCustomError("unknown_choice", "{message}", {"message": unknown_name(name, table)})
        return name

    return BeforeValidator(check)
