"""Processes that run modules of accel_restore."""

import os
import sys


def python_command(module: str) -> list[str]:
    """Return the command that runs a module; it does not search the working folder for modules, as `-m` does."""
    return [sys.executable, "-P", "-m", module]


def python_environment() -> dict[str, str]:
    """Return variables with which a child process imports what this process would import.

    The whole path is given: the folder of accel_restore alone may hold packages named like modules of Python.
    """
    paths = [str(path) or os.getcwd() for path in sys.path]  # noqa: PTH109  a text, as the others are
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}
