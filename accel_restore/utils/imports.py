"""Resolve names in the configuration: suggest corrections, import the named objects, check their arguments."""

import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from accel_restore.errors import UserError

# Errors whose message is clear without the type.
_PLAIN = (ValueError, TypeError, RuntimeError, ImportError, AttributeError, SyntaxError)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, or None."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def unknown_choice(name: str, known: Iterable[str]) -> str:
    """Return the message for a choice that does not exist, with all choices."""
    known = list(known)
    guess = did_you_mean(name, known)
    hint = f"; did you mean '{guess}'?" if guess else ""
    return f"unknown choice '{name}'; choose one of: {', '.join(known)}{hint}"


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Return the message of `unknown_choice` for a name that may also be an import path."""
    module, dot, attribute = name.rpartition(".")
    dotted = dot and all(part.isidentifier() for part in name.split("."))
    return unknown_choice(name, known) + (f"; an import path is written '{module}:{attribute}'" if dotted else "")


def describe_error(error: BaseException) -> str:
    """Return the first line of an error's message; for an error in the user's code, with its type and line number."""
    text = (str(error).splitlines() or [""])[0]
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}, line {frame.lineno}" for frame in frames if _is_users(frame.filename)]
    if not places and isinstance(error, _PLAIN):
        return text
    return f"{type(error).__name__}{': ' * bool(text)}{text}{f' ({places[-1]})' if places else ''}"


def _is_users(file: str) -> bool:
    """Return whether a source file belongs neither to accel_restore, nor to a library, nor to Python."""
    path = Path(file)
    libraries = {"site-packages", "dist-packages"} & set(path.parts)
    ours = Path(__file__).parents[1], Path(sysconfig.get_path("stdlib"))
    return not file.startswith("<") and not libraries and not any(path.is_relative_to(folder) for folder in ours)


def resolve(name: str, table: dict[str, Any], key: str) -> Any:
    """Return the object that `name` refers to: an entry of `table`, or `package.module:attribute`.

    An entry of `table` may be an import path too, which is imported only when it is used.

    Raises: UserError, with the configuration key `key`, if the import fails.
    """
    target = table.get(name, name)
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a user's module may raise anything
        top = module_name.partition(".")[0]
        here = next((path for path in (Path(f"{top}.py"), Path(top)) if path.exists()), None)
        if isinstance(error, ModuleNotFoundError) and error.name == top and here is not None:
            raise UserError(
                f"{key}: cannot import '{name}', because Python does not search this folder for {here}; put "
                "PYTHONPATH=. before the command"
            ) from error
        raise UserError(
            f"{key}: cannot import '{name}' ({describe_error(error)}); write package.module:Name, and check that the "
            "package is installed or on PYTHONPATH"
        ) from error


def check_arguments(function: Callable, given: Iterable[str], key: str, skip: Iterable[str] = ()) -> None:
    """Raise `UserError` if `given` has names that are not parameters of `function`, or lacks required ones.

    Parameters in `skip` are passed by accel_restore and cannot be configured.
    """
    if not callable(function):
        raise UserError(f"{key}: {function!r} is not callable; name a function or a class")
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_KEYWORD)
        and name not in skip
    }
    given, problems = {str(name) for name in given}, []  # keys in YAML may be numbers
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in sorted(given - set(parameters)):
            guess = did_you_mean(name, parameters)
            options = f"did you mean '{guess}'?" if guess else f"known keys: {', '.join(parameters) or 'none'}"
            problems.append(f"{key}.{name}: unknown key; {options}")
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if needed and name not in given:
            problems.append(f"{key}.{name}: missing")
    if problems:
        raise UserError("\n".join(problems))
