"""The `accel-restore` command and the table of its sub-commands."""

import argparse
import shlex
import sys
import warnings

from accel_restore import __version__
from accel_restore.errors import UserError, permission_denied
from accel_restore.utils.imports import did_you_mean, resolve
from accel_restore.utils.launch import hide_warnings_of_torch, is_reporter
from accel_restore.utils.places import use_writable_caches
from accel_restore.utils.streams import safe_streams
from accel_restore.utils.threads import spin_briefly
from accel_restore.utils.utf8 import use_utf8

COMMANDS = {  # name: (help, import path of the function)
    "train": ("train a model (also: accelerate launch accel_restore/train.py)", "accel_restore.train:main"),
    "config": ("print the resolved configuration, or its JSON schema", "accel_restore.commands.config:main"),
    "convert": (
        "convert an option file of BasicSR or traiNNer-redux to a configuration",
        "accel_restore.commands.convert:main",
    ),
    "models": (
        "list the networks that can be trained by name, or the arguments of one",
        "accel_restore.commands.models:main",
    ),
    "check": ("check the data before training", "accel_restore.commands.check:main"),
    "restore": ("apply weights to a file, a folder or a pattern", "accel_restore.commands.restore:main"),
    "evaluate": ("score weights on image pairs, or on degraded clean images", "accel_restore.commands.evaluate:main"),
    "verify-resume": (
        "test on a short run of your configuration that resuming is exact",
        "accel_restore.commands.verify_resume:main",
    ),
    "export": ("export weights as ONNX or .pt2 for other programs", "accel_restore.commands.export:main"),
    "push": ("upload a run's weights to the Hugging Face Hub", "accel_restore.commands.push:main"),
    "bench": ("measure the speed of data loading and training on this machine", "accel_restore.commands.bench:main"),
    "report": ("rebuild the report.html of a run", "accel_restore.commands.report:main"),
    "dashboard": (
        "save a W&B view with one panel per quantity that shows all ranks",
        "accel_restore.commands.dashboard:main",
    ),
    "cache": ("list or delete decoded images", "accel_restore.commands.cache:main"),
}


_RESUME = "the same accel-restore train command that started a run continues it"
_RESTORE, _EVALUATE = "write accel-restore restore", "write accel-restore evaluate"
_OTHER_WORDS = {  # what other programs call their commands
    "continue": _RESUME,
    "fit": "write accel-restore train",
    "help": "write accel-restore --help",
    "infer": _RESTORE,
    "inference": _RESTORE,
    "predict": _RESTORE,
    "resume": _RESUME,
    "test": _EVALUATE,
    "val": _EVALUATE,
    "validate": _EVALUATE,
    "version": "write accel-restore --version",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command and return its exit code."""
    if arguments is None:
        use_utf8()
        hide_warnings_of_torch()
        spin_briefly()
        arguments = sys.argv[1:]
    with safe_streams() as output:
        code = _run(arguments)
    # Text that is lost is the result of a command; that of training is in the run's folder.
    return 2 if code == 0 and output.error is not None and arguments[:1] != ["train"] else code


def _run(arguments: list[str]) -> int:
    lines = "\n".join(f"  {name:13} {what}" for name, (what, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="accel-restore",
        description=f"Paired image restoration.\n\ncommands:\n{lines}\n\nRun accel-restore COMMAND --help for details.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", metavar="COMMAND")
    if not arguments:
        parser.print_help()
        return 0
    first = arguments[0].partition("=")[0]
    try:
        if first.startswith("-") and first not in ("-h", "--help", "--version"):
            raise UserError(_missing_command(first, arguments))
        command = parser.parse_args(arguments[:1]).command
        use_writable_caches()
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata; damaged pixels are an error
        if command not in COMMANDS:
            raise UserError(_unknown_command(command))
        return resolve(COMMANDS[command][1], {}, command)(arguments[1:])
    except UserError as error:
        if is_reporter() if error.is_reporter is None else error.is_reporter:
            print(f"accel-restore: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        if is_reporter():
            print(f"accel-restore: {permission_denied(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("accel-restore: interrupted", file=sys.stderr)
        return 130


def _missing_command(option: str, arguments: list[str]) -> str:
    """Return the message for an option in place of a command, such as `--config mine.yaml` or `--epochs 5`."""
    from accel_restore.train import parse_arguments

    start = f"{option}: a command is missing before the options; write accel-restore train"
    try:
        parse_arguments(arguments)
    except UserError as error:  # an unknown option, with its remedy
        return f"{start} ...\n{error}"
    return f"{start} {shlex.join(arguments)}"


def _unknown_command(name: str) -> str:
    if name.lower().endswith((".yaml", ".yml")) or "=" in name:
        return f"{name}: is not a command; write accel-restore train {name}"
    if name in _OTHER_WORDS:
        return f"{name}: is not a command; {_OTHER_WORDS[name]}"
    guess = did_you_mean(name, COMMANDS)
    hint = f"did you mean {guess}?" if guess else f"write one of: {', '.join(COMMANDS)}"
    return f"{name}: is not a command; {hint}"


if __name__ == "__main__":
    sys.exit(main())
