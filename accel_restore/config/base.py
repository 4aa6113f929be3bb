"""Base classes and validators of the configuration's sections."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from accel_restore.utils.imports import unknown_name

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A section of the configuration: unknown keys, numbers written as strings, NaN and infinities are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class OpenSection(Section):
    """A section with a `name` whose other keys are keyword arguments, checked when the named object is built."""

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(self.model_extra or {})


def one_of(table: dict) -> BeforeValidator:
    """Return a validator that accepts names of `table` and import paths such as `mypackage.nets:MyNet`."""

    def check(name: Any) -> Any:
        if isinstance(name, str) and name not in table and ":" not in name:
            raise PydanticCustomError("unknown_choice", "{message}", {"message": unknown_name(name, table)})
        return name

    return BeforeValidator(check)
