"""A configuration that another version has stored, such as that of a commit, compared with this version's keys.

A key that the stored configuration lacks gets its default. So the default of a new key must mean what runs did before
the key existed; otherwise old runs would continue differently.
"""

from contextlib import suppress
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from accel_restore.config.keys import are_named, sections_in
from accel_restore.config.schema import Config


def with_new_keys(stored: Any, section: type[BaseModel] | None = None) -> Any:
    """Return a stored section with the defaults of the keys that it lacks. Nothing else is changed or checked."""
    if not isinstance(stored, dict):
        return stored
    filled = dict(stored)
    for key, field in (section or Config).model_fields.items():
        if key in stored:
            filled[key] = _fill(stored[key], field)
        elif not field.is_required():
            with suppress(TypeError):  # a default that follows from another key, which is damaged
                default = field.get_default(call_default_factory=True, validated_data=stored)
                filled[key] = to_jsonable_python(default)
    return filled


def _fill(value: Any, field: FieldInfo) -> Any:
    if isinstance(value, list):
        return [_fill(item, field) for item in value]
    sections = sections_in(field.annotation)
    if not isinstance(value, dict) or not sections:
        return value
    if are_named(field):  # of one kind, each by its name; or one without a name
        is_one = not value.keys().isdisjoint(sections[0].model_fields)
        one = sections[0]
        return with_new_keys(value, one) if is_one else {name: with_new_keys(item, one) for name, item in value.items()}
    named = [section for section in sections if _name_of(section) == value.get("name")]
    if len(sections) > 1 and not named:
        return value  # a choice that this version does not have
    return with_new_keys(value, named[0] if len(sections) > 1 else sections[0])


def _name_of(section: type[BaseModel]) -> Any:
    field = section.model_fields.get("name")
    return field.default if field is not None else None
