"""YAML text to plain trees and back; tags, duplicate keys and trees that are too large are refused.

A plain tree consists of mappings, lists, strings, numbers, booleans and null, and no part of it is shared.
"""

import os
import re
from itertools import count
from typing import Any

import yaml

from accel_restore.errors import UserError

MAX_BYTES = 16 * 2**20  # of a file
_MAX_VALUES = 500_000  # nine lines of aliases can expand to more values than fit into memory
_MAX_DEPTH = 64  # PyYAML itself reaches Python's recursion limit at about 200 levels
_MAX_DIGITS = 64  # `1:30:59` is a number of base 60, whose conversion takes quadratic time
_NO_UTF8 = "cannot be encoded in UTF-8; rename the file or folder"
_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPES = {"null", "bool", "int", "float", "str", "seq", "map"}  # a date is a string, as in YAML 1.2


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `5e-4` is a number, as in YAML 1.2, and a duplicate key is an error."""

    yaml_constructors = {  # noqa: RUF012  as in PyYAML
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is not None and tag.rpartition(":")[2] in _TYPES
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise _refusal("a key must be a word", key_node)
            if key in seen:
                raise _refusal(f"duplicate key '{key}'", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _MAX_DIGITS:
            raise _refusal(f"a number with more than {_MAX_DIGITS} digits", node)
        return self.construct_yaml_int(node)

    def refuse_tag(self, node: yaml.Node) -> None:
        raise _refusal(f"the tag {node.tag:.80} is not allowed; write plain values", node)


class Dumper(yaml.SafeDumper):
    """Safe YAML that quotes strings which `parse_yaml` would read as numbers."""


def _refusal(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor(None, _Loader.refuse_tag)
for _class in (_Loader, Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def parse_yaml(text: str, where: str) -> Any:
    """Return the plain tree of a YAML text; `where` names the text in errors. Raises: UserError."""
    if _SURROGATE.search(text):
        raise UserError(f"{where}: {_NO_UTF8}")
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    except RecursionError:
        raise UserError(f"{where}: not valid YAML (nested too deeply)") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:  # such as `!!int x`
        raise UserError(f"{where}: not valid YAML ({error})") from None
    return plain_copy(tree, where)


def plain_copy(tree: Any, where: str) -> Any:
    """Return a copy that shares no part, so that an override changes one place only, even of a YAML alias.

    Raises: UserError if the copy would be too large or too deep, or if a value cannot be written to a run's files.
    """
    values = count(1)

    def copy(value: Any, key: str, depth: int) -> Any:
        if next(values) > _MAX_VALUES:
            raise UserError(
                f"{where}: has more than {_MAX_VALUES:,} values; write values in place of aliases (*name), and a "
                "folder or a pattern in place of a list of files"
            )
        if depth > _MAX_DEPTH:
            raise UserError(f"{where}: {key:.60}... is nested deeper than {_MAX_DEPTH} levels; write a flatter section")
        value = _plain(value)
        if isinstance(value, dict):
            return {
                copy(name, key, depth): copy(item, f"{key}.{name}".lstrip("."), depth + 1)
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [copy(item, f"{key}.{index}".lstrip("."), depth + 1) for index, item in enumerate(value)]
        if problem := _problem_of(value):
            raise UserError(f"{where}: {key:.200}{': ' if key else ''}{problem}")
        return value

    return copy(tree, "", 0)


def _plain(value: Any) -> Any:
    """Return a path, tuple, numpy scalar or array from Python as YAML would give it; other values as they are."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _problem_of(value: Any) -> str | None:
    """Return why a value fits into no path, UTF-8 file or 64-bit number, or None."""
    if isinstance(value, str):
        if "\0" in value:
            return "contains a NUL character; remove it"
        if _SURROGATE.search(value):
            return _NO_UTF8
    if isinstance(value, int) and abs(value) >= 2**63:
        return "is an integer of more than 63 bits; use a smaller one"
    return None
