"""Base classes and validators of the configuration's sections.

YAML reads `no`, `off` and `false` as one value, and `none` as a text. All of them, and null, turn a key off that can be
off: a key that may be null becomes null, a list becomes empty, and a choice takes its word for off (see `switch`). Only
where a key may be false or null, the two differ: words for off are false.
"""

from collections.abc import Mapping
from types import MappingProxyType, NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.utils.imports import unknown_name

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
_OF_MODEL = {"model": "unet", "optimizer": "adamw", "scheduler": "cosine"}
DEFAULT_NAMES = {  # of sections without a name
    **_OF_MODEL,
    "adversarial.discriminator": "unet_sn",
    "adversarial.optimizer": "adam",
    "adversarial.scheduler": "constant",
}


class Section(BaseModel):
    """A section of the configuration: unknown keys, numbers written as strings, NaN and infinities are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _turn_off(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            key: _turned_off(value, fields[key].annotation) if key in fields else value for key, value in values.items()
        }


def require_name(schema: dict[str, Any], section: type[BaseModel]) -> None:
    """Require `name` in the JSON schema of a choice that is not the default; without it, several choices would fit."""
    if section.model_fields["name"].default not in _OF_MODEL.values():
        schema["required"] = [*schema.get("required", []), "name"]


def named(default: str) -> BeforeValidator:
    """Return a validator that adds the default name to a section without a name."""
    return BeforeValidator(lambda section: {"name": default, **section} if isinstance(section, dict) else section)


class OpenSection(Section):
    """A section with a `name` whose other keys are keyword arguments, checked when the named object is built."""

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(self.model_extra or {})


def _turned_off(value: Any, annotation: Any) -> Any:
    """Return null, false or an empty list in place of a word for off, where the key allows it."""
    parts = get_args(annotation)
    if bool in parts and NoneType in parts:
        return False if is_off(value) and value is not None else value
    if NoneType in parts and (value is False or (is_off(value) and str not in parts)):
        return None
    return [] if get_origin(annotation) is list and is_off(value) else value


def is_off(value: Any) -> bool:
    """Return whether a value of YAML is null, false or a word for it."""
    return (
        value is None or value is False or (isinstance(value, str) and value.lower() in ("none", "off", "no", "false"))
    )


def switch(off: str, on: str | None = None) -> BeforeValidator:
    """Return a validator of a choice that reads the words for off as `off`, and true, if `on` is given, as `on`."""

    def read(value: Any) -> Any:
        if is_off(value):
            return off
        return on if value is True and on is not None else value

    return BeforeValidator(read)


def one_of(table: dict, refused: Mapping[str, str] = MappingProxyType({})) -> BeforeValidator:
    """Return a validator that accepts names of `table` and import paths such as `mypackage.nets:MyNet`.

    `refused` holds the reasons why other names are known, but not accepted.
    """

    def check(name: Any) -> Any:
        if isinstance(name, str) and (reason := refused.get(name.lower())):
            raise PydanticCustomError("refused", "{reason}", {"reason": reason})
        return check_name(name, table) if isinstance(name, str) else name

    return BeforeValidator(check)


def check_name(name: str, table: dict) -> str:
    """Return a name of `table` or an import path as it is; raise pydantic's error for other names."""
    if name not in table and ":" not in name:
        raise PydanticCustomError("unknown_choice", "{message}", {"message": unknown_name(name, table)})
    return name
