"""`key=value` on the command line: set dotted keys in the tree of a configuration file."""

from collections.abc import Sequence
from typing import Any, Literal

from accel_restore.config.base import DEFAULT_NAMES
from accel_restore.config.keys import is_key, kinds_of, may_be_section
from accel_restore.config.safe_yaml import parse_yaml
from accel_restore.errors import UserError


def apply_overrides(tree: dict, overrides: Sequence[str]) -> list[str]:
    """Set the keys of `tree` in order, and return what is wrong with the overrides.

    A mapping replaces the whole section. Naming another choice, such as `optimizer.name=sgd`, drops the file's settings
    of the former one; those of the command line are kept.
    """
    problems = []
    keys = [override.partition("=")[0] for override in overrides]
    for position, override in enumerate(overrides):
        try:
            node, last, value = _place(tree, override)
            key = keys[position]
            if last == "name" and key != "run.name" and isinstance(node, dict):
                if key in keys[position + 1 :]:
                    continue  # another name follows
                _forget_former_choice(node, key.removesuffix(".name"), value, keys[:position])
            node[last] = value
        except UserError as error:
            problems.append(str(error))
    return problems


def _forget_former_choice(section: dict, place: str, name: Any, given: list[str]) -> None:
    """Remove the settings of another choice than `name` from a section, except the keys that were `given` before."""
    by_default = None if section.get("checkpoint") else DEFAULT_NAMES.get(place)
    former = section.get("name", by_default)
    if former is None or former == name:  # None: the checkpoint decides, so that nothing is said about another choice
        return
    kept = {key.removeprefix(f"{place}.").partition(".")[0] for key in given if key.startswith(f"{place}.")}
    for key in section.keys() - kept:
        del section[key]


def _place(tree: dict, override: str) -> tuple[Any, Any, Any]:
    """Return the mapping or list that an override changes, the key or index in it, and the value."""
    key, equals, text = override.partition("=")
    if not equals and is_key(key):
        raise UserError(f"{key}: has no value; write {key}=VALUE, without spaces")
    if not equals or not all(key.split(".")) or not key.isprintable():
        raise UserError(f"'{override}': is not an override; write key=value, such as data.batch_size=4")
    value = parse_yaml(text, key)
    if isinstance(value, bool | int | float) and _means_text(value, key):
        value = text
    *parents, last = key.split(".")
    node: Any = tree
    for depth, name in enumerate(parents):
        if isinstance(node, list):
            node = node[_index(node, name, key)]
        else:
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
        if not isinstance(node, dict | list):
            above = ".".join(parents[: depth + 1])
            remedy = "VALUE" if is_key(above) and not may_be_section(above) else "{...}"
            raise UserError(f"{key}: '{above}' is {node!r}, not a section; write {above}={remedy}")
    return node, _index(node, last, key) if isinstance(node, list) else last, value


def _means_text(value: bool | int | float, key: str) -> bool:
    """Return whether a value that YAML reads as a number or a switch is a text here: a run named 2024, 007 or off."""
    kinds = kinds_of(key)
    others = {bool, Literal, None} if isinstance(value, bool) else {int, float}  # off turns a key off that can be null
    return str in kinds and not kinds & others


def _index(items: list, name: str, key: str) -> int:
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(items):
        raise UserError(f"{key}: '{name}' is not an element of this list of {len(items)}; count from 0")
    return int(name)
