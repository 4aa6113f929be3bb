"""The dotted keys of the configuration: the sections and fields that a key stands for."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from accel_restore.config.schema import Config


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a field's annotation names: several if the section's `name` decides."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def are_named(field: FieldInfo) -> bool:
    """Return whether a field may hold a mapping from names to sections."""
    return dict in _kinds(field.annotation) and bool(sections_in(field.annotation))


def is_key(dotted: str, by_path: bool = True) -> bool:
    """Return whether a key exists, for any choice of the sections' names; arguments of own code count as keys.

    Without `by_path`, only those of sections that are always open count, not those of an optimizer by import path.
    """
    return _fields(dotted, by_path) is not None


def kinds_of(dotted: str) -> set[Any]:
    """Return the types of a key's values; None if it may be null, and `Literal` if it is one of a few words."""
    return {kind for field in _fields(dotted) or [] for kind in _kinds(field.annotation)}


def can_be_off(dotted: str) -> bool:
    """Return whether a key may be false or null for any choice of the sections' names."""
    fields = _fields(dotted)
    return bool(fields) and all({bool, None} & set(_kinds(field.annotation)) for field in fields or [])


def may_be_section(dotted: str) -> bool:
    """Return whether keys of any name or of a section may follow a key; arguments of own code may hold anything."""
    fields = _fields(dotted)
    return fields == [] or any(sections_in(field.annotation) for field in fields or []) or dict in kinds_of(dotted)


def _kinds(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    if origin is Literal:
        return [Literal, *{bool for value in get_args(annotation) if isinstance(value, bool)}]
    return [None if annotation is type(None) else origin or annotation]


def _fields(dotted: str, by_path: bool = True) -> list[FieldInfo] | None:
    """Return the fields that a key may stand for; an empty list for arguments, None if there is no such key."""
    sections: list[type[BaseModel]] = [Config]
    fields: list[FieldInfo] = []
    for part in dotted.split("."):
        if part.isdecimal() and fields:  # an element of a list
            continue
        if any(are_named(field) for field in fields) and not any(part in section.model_fields for section in sections):
            fields = []  # the name of a set; once
            continue
        are_open = [section.model_config.get("extra") == "allow" for section in sections]
        fits = any(are_open) if by_path else all(are_open)
        if fits and not any(part in section.model_fields for section in sections):
            return []
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if not fields:
            return None
        sections = [section for field in fields for section in sections_in(field.annotation)]
        if not sections:
            return fields  # a value, or a mapping with keys of any name
    return fields
