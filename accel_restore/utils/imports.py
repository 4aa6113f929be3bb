"""Names in the configuration: suggestions for misspelt ones, objects behind them, and their keyword arguments."""

import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from accel_restore.errors import UserError

# Errors that say enough without their kind.
_PLAIN = (ValueError, TypeError, RuntimeError, ImportError, AttributeError, SyntaxError)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def unknown_choice(name: str, known: Iterable[str]) -> str:
    """The message for a choice that does not exist: it lists all of them."""
    known = list(known)
    guess = did_you_mean(name, known)
    hint = f"; did you mean '{guess}'?" if guess else ""
    return f"unknown choice '{name}'; choose one of: {', '.join(known)}{hint}"


def unknown_name(name: str, known: Iterable[str]) -> str:
    """As `unknown_choice`, where an import path would do as well; it tells a dotted one how to be written."""
    module, dot, attribute = name.rpartition(".")
    dotted = dot and all(part.isidentifier() for part in name.split("."))
    return unknown_choice(name, known) + (f"; an import path is written '{module}:{attribute}'" if dotted else "")


def describe_error(error: BaseException) -> str:
    """What an error says, in a line; of one in a user's own file with its kind and its place there."""
    said = (str(error).splitlines() or [""])[0]
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}, line {frame.lineno}" for frame in frames if _is_own(frame.filename)]
    if not places and isinstance(error, _PLAIN):
        return said
    return f"{type(error).__name__}{': ' * bool(said)}{said}{f' ({places[-1]})' if places else ''}"


def _is_own(file: str) -> bool:
    """Whether a file of code is none of ours, of a library, or of Python itself."""
    path = Path(file)
    libraries = {"site-packages", "dist-packages"} & set(path.parts)
    ours = Path(__file__).parents[1], Path(sysconfig.get_path("stdlib"))
    return not file.startswith("<") and not libraries and not any(path.is_relative_to(folder) for folder in ours)


def resolve(name: str, table: dict[str, Any], key: str) -> Any:
    """The object that `name` stands for: an entry of `table`, or `package.module:attribute`.

    A table's entry may itself be such an import path, so that it is imported only when it is used.

    Raises: UserError where nothing can be imported from that path.
    """
    target = table.get(name, name)
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # of a user's own module, anything
        top = module_name.partition(".")[0]
        here = next((path for path in (Path(f"{top}.py"), Path(top)) if path.exists()), None)
        if isinstance(error, ModuleNotFoundError) and error.name == top and here is not None:
            raise UserError(
                f"{key}: cannot import '{name}': Python does not look for {here} in this folder; start with "
                "PYTHONPATH=. before the command"
            ) from error
        raise UserError(
            f"{key}: cannot import '{name}' ({describe_error(error)}); write it as package.module:Name and make sure "
            "that the package is installed or on PYTHONPATH"
        ) from error


def check_arguments(function: Callable, given: Iterable[str], key: str, skip: Iterable[str] = ()) -> None:
    """Raise `UserError` where `given` names what is no parameter of `function`, or lacks one that it needs.

    Parameters in `skip` are given by the program and cannot be configured.
    """
    if not callable(function):
        raise UserError(f"{key}: {function!r} is nothing that can be called; name a function or class")
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_KEYWORD)
        and name not in skip
    }
    given, problems = {str(name) for name in given}, []  # YAML has keys that are numbers
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in sorted(given - set(parameters)):
            guess = did_you_mean(name, parameters)
            options = f"did you mean '{guess}'?" if guess else f"it has: {', '.join(parameters) or 'none'}"
            problems.append(f"{key}.{name}: unknown key; {options}")
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if needed and name not in given:
            problems.append(f"{key}.{name}: missing")
    if problems:
        raise UserError("\n".join(problems))
