"""YAML text to plain trees and back: what tags, aliases, depth or size could do to a program is refused.

A plain tree is made of mappings, lists, text, numbers, booleans and null, no part of which stands in two places.
"""

import re
from itertools import count
from typing import Any

import yaml

from accel_restore.errors import UserError

MOST_BYTES = 16 * 2**20  # of a file
_MOST_VALUES = 500_000  # nine lines of aliases can stand for as many values as no memory holds
_DEEPEST = 64  # levels; Python's own limit lies at some 200
_LONGEST_NUMBER = 64  # characters
_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPES = {"null", "bool", "int", "float", "str", "seq", "map"}  # a date is text, as in YAML 1.2


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `5e-4` is a number, as in YAML 1.2, and a key that stands twice is an error."""

    yaml_constructors = {  # noqa: RUF012  PyYAML's own way
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
                raise _refusal(f"'{key}' stands twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return self.construct_yaml_int(_bounded(node))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return self.construct_yaml_float(_bounded(node))

    def refuse_tag(self, node: yaml.Node) -> None:
        raise _refusal(f"the tag {node.tag:.80} is not allowed; write plain values", node)


class Dumper(yaml.SafeDumper):
    """Safe YAML that quotes what `parse_yaml` would read as a number."""


def _refusal(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _bounded(node: yaml.ScalarNode) -> yaml.ScalarNode:
    if len(node.value) > _LONGEST_NUMBER:
        raise _refusal(f"a number of more than {_LONGEST_NUMBER} characters; write it shorter", node)
    return node


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)
_Loader.add_constructor(None, _Loader.refuse_tag)
for _class in (_Loader, Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def parse_yaml(text: str, where: str) -> Any:
    """The plain tree that YAML `text` stands for; `where` names it in the error.

    Raises: UserError.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    except RecursionError:
        raise UserError(f"{where}: not valid YAML (nested too deeply)") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:  # of `!!int` without a number
        raise UserError(f"{where}: not valid YAML ({error})") from None
    return plain_copy(tree, where)


def plain_copy(tree: Any, where: str) -> Any:
    """A copy in which no part stands in two places, as YAML aliases do: an override changes one of them.

    Raises: UserError where it would be too large or too deep, or holds what no file of a run can.
    """
    values = count(1)

    def copy(value: Any, key: str, depth: int) -> Any:
        if next(values) > _MOST_VALUES:
            raise UserError(
                f"{where}: stands for more than {_MOST_VALUES:,} values; write out what is meant instead of aliases "
                "(*name), and a folder or a pattern instead of a list of files"
            )
        if depth > _DEEPEST:
            raise UserError(f"{where}: {key:.60}... is nested deeper than {_DEEPEST} levels; an alias within itself?")
        if isinstance(value, dict):
            return {
                copy(name, key, depth): copy(item, f"{key}.{name}".lstrip("."), depth + 1)
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [copy(item, f"{key}.{index}".lstrip("."), depth + 1) for index, item in enumerate(value)]
        if problem := _unwritable(value):
            raise UserError(f"{where}: {key:.200}{': ' if key else ''}{problem}")
        return value

    return copy(tree, "", 0)


def _unwritable(value: Any) -> str | None:
    """Why a value cannot be: what no path, no file in UTF-8 and no 64-bit number holds."""
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL character; remove it"
        if _SURROGATE.search(value):
            return "is no text that UTF-8 can hold; rename what it names"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "is a whole number of more than 63 bits; give a smaller one"
    return None
