"""The configuration's `model` section."""

from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.config.base import OpenSection, one_of
from accel_restore.config.sets import PathText
from accel_restore.models.architectures import model_names, refused_names
from accel_restore.models.presets import describe_unknown, presets_of


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
