"""The text of a converted configuration: YAML with a header, and comments at the sections that they belong to."""

import textwrap
from typing import Any

import yaml

from accel_restore.config.convert.draft import Draft
from accel_restore.config.safe_yaml import Dumper
from accel_restore.errors import one_line
from accel_restore.utils.redaction import redacted

_WIDTH = 110
_ORDER = (
    "run", "data", "model", "loss", "optimizer", "scheduler", "adversarial", "train", "validation", "checkpoint",
    "tracking",
)  # fmt: skip


def to_text(draft: Draft, source: str, command: str) -> str:
    """Return the YAML text; `source` is the name of the option file and `command` starts the training."""
    parts = [_header(draft, source, command)]
    for section in _ORDER:
        comments = _comments(draft, section)
        value = draft.config.get(section)
        if value:
            comments += _dump(section, redacted(value))
        parts.append(comments)
    parts.append(_comments(draft, ""))
    return "\n".join(part for part in parts if part)


def _header(draft: Draft, source: str, command: str) -> str:
    start = f"# Start: {one_line(command)}\n"  # on one line, to be copied
    lines = []
    for title, items in (("To do before you start:", draft.todo), ("What changes:", draft.changes)):
        if items:
            lines += ["", title, *(f"- {item}" for item in items)]
    lines += [
        "",
        "Comments below: 'changed' options are carried over, but not exactly; 'not needed' options have no counterpart "
        "because accel_restore does that by itself; 'not carried' options are lost, with the reason.",
    ]
    return _comment(f"Converted from {source} by accel-restore convert.") + start + "".join(map(_comment, lines))


def _comments(draft: Draft, section: str) -> str:
    lines = []
    for note in draft.notes:
        if note.section == section:
            shown = ", ".join(f"{option}: {_flow(value)}" for option, value in note.options.items())
            lines.append(_comment(f"{note.kind}: {shown} ({note.reason})"))
    return "".join(lines)


def _comment(text: str) -> str:
    """Return a comment of one or several lines; the first line starts an item, the others are indented."""
    lines = textwrap.wrap(
        one_line(text), _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "".join(f"# {line}".rstrip() + "\n" for line in lines or [""])


def _flow(value: Any) -> str:
    text = yaml.dump(
        redacted(value), Dumper=Dumper, default_flow_style=True, width=2**30, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _dump(section: str, value: dict[str, Any]) -> str:
    """Return a section on one line if it fits there, otherwise with a line for each key."""
    flow = f"{section}: {_flow(value)}\n"
    if len(flow) <= _WIDTH and not any(isinstance(item, dict) for item in value.values()):
        return flow
    items = (_item(key, item) for key, item in value.items())
    return f"{section}:\n" + textwrap.indent("".join(items), "  ")


def _item(key: str, value: Any) -> str:
    style = None if isinstance(value, dict | list) else False  # None: innermost collections on one line
    return yaml.dump(
        {key: value}, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=style
    )
