"""Resolve names in the configuration: suggest corrections, import the named objects, check their arguments."""

import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from accel_restore.errors import PART_ERRORS, UserError

# Errors whose message is clear without the type.
_PLAIN = (ValueError, TypeError, RuntimeError, ImportError, AttributeError, SyntaxError)


_EXTRAS = {"pytorch_optimizer": "optimizers"}  # packages that an extra of ours installs
_CHECK = "check that the package is installed or on PYTHONPATH"
_LONGEST_NAME = 100  # letters; a value in place of a name may be as long as a file


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return the one known name that `name` misspells or abbreviates; None if none is near.

    A wrong suggestion costs more than none. Near is: about one wrong letter in four, or all words of `name` in a single
    known name, as `warmup` in `warmup_epochs`.
    """
    known = list(known)
    if guess := misspelt(name, known):
        return guess
    words = set(_plain(name).split("_"))
    holding = [other for other in known if words <= set(_plain(other).split("_"))]
    return holding[0] if len(holding) == 1 and len(name) > 2 else None


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to `name` if about one letter in four is wrong at most; None if two are equal."""
    found = nearest(name, known)
    return found[0] if len(found) == 1 else None


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names nearest to `name`: none if more than about one letter in four is wrong."""
    plain = _plain(name)
    if len(plain) > _LONGEST_NAME:
        return []
    distances = {other: _edit_distance(plain, _plain(other)) for other in known}
    near = [other for other, distance in distances.items() if distance <= (len(plain) + 1) // 4]
    # Of equal distances, a letter too many or too few is the more frequent slip: `ofline` is offline, not online.
    ranks = {other: (distances[other], -SequenceMatcher(None, plain, other).ratio()) for other in near}
    return [other for other, rank in ranks.items() if rank == min(ranks.values())]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _edit_distance(one: str, other: str) -> int:
    """Return how many letters must be inserted, removed, replaced or swapped with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            costs = [before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted)]
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                costs.append(last[j - 2] + 1)
            row.append(min(costs))
    return row[-1]


def unknown_choice(name: str, known: Iterable[str]) -> str:
    """Return the message for a choice that does not exist, with all choices."""
    known = list(known)
    guess = did_you_mean(name, known)
    hint = f"; did you mean '{guess}'?" if guess else ""
    return f"unknown choice '{name}'; choose one of: {', '.join(known)}{hint}"


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Return the message of `unknown_choice` for a name that may also be an import path."""
    known = list(known)
    module, dot, attribute = name.rpartition(".")
    dotted = dot and all(part.isidentifier() for part in name.split("."))
    problem = unknown_choice(name, known) if known else f"'{name}' is not an import path such as package.module:Name"
    return problem + (f"; an import path is written '{module}:{attribute}'" if dotted else "")


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


def check_compiler_cache() -> None:
    """Create the folder that TORCHINDUCTOR_CACHE_DIR names, as torch does when it imports its compiler.

    torch imports it for `train.compile`, with several processes, and for optimizers other than accel_restore's.

    Raises: UserError if the folder cannot be created.
    """
    try:
        if named := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
            Path(named).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"TORCHINDUCTOR_CACHE_DIR: torch cannot create {named} ({error.strerror}); set this environment variable "
            "to a folder that can be written"
        ) from error


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
    except PART_ERRORS as error:  # a user's module may raise anything
        top = module_name.partition(".")[0]
        here = next((path for path in (Path(f"{top}.py"), Path(top)) if path.exists()), None)
        if isinstance(error, ModuleNotFoundError) and error.name == top and here is not None:
            raise UserError(
                f"{key}: cannot import '{name}', because Python does not search this folder for {here}; put "
                "PYTHONPATH=. before the command"
            ) from error
        known = [other for other in dir(sys.modules.get(module_name)) if not other.startswith("_")]
        guess = did_you_mean(attribute, known) if module_name in sys.modules else None
        check = f"pip install 'accel-restore[{_EXTRAS[top]}]'" if top in _EXTRAS else _CHECK
        hint = f"did you mean '{module_name}:{guess}'?" if guess else f"write package.module:Name, and {check}"
        raise UserError(f"{key}: cannot import '{name}' ({describe_error(error)}); {hint}") from error


def check_arguments(
    function: Callable, given: Iterable[str], key: str, skip: Iterable[str] = (), positional: int = 0
) -> None:
    """Raise `UserError` if `given` has names that are not parameters of `function`, or lacks required ones.

    Parameters in `skip`, and the first `positional` ones, are passed by accel_restore and cannot be configured.
    """
    if not callable(function):
        raise UserError(f"{key}: {function!r} is not callable; name a function or a class")
    own = list(inspect.signature(function).parameters.items())[positional:]
    parameters = {
        name: parameter
        for name, parameter in own
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_KEYWORD)
        and name not in skip
    }
    given, problems = {str(name) for name in given}, []  # keys in YAML may be numbers
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in sorted(given - set(parameters)):
            guess = did_you_mean(name, parameters)
            options = f"did you mean '{key}.{guess}'?" if guess else f"known keys: {', '.join(parameters) or 'none'}"
            problems.append(f"{key}.{name}: unknown key; {options}")
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if needed and name not in given:
            problems.append(f"{key}.{name}: missing")
    if problems:
        raise UserError("\n".join(problems))
