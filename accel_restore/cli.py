"""The `accel-restore` command: one sub-command a line."""

import argparse
import os
import sys

from accel_restore import __version__
from accel_restore.errors import UserError
from accel_restore.utils.imports import resolve

COMMANDS = {  # name: (what it does, the function that does it)
    "train": ("train a model (also: accelerate launch accel_restore/train.py)", "accel_restore.train:main"),
    "config": ("print the resolved configuration, or its JSON schema", "accel_restore.commands.config:main"),
    "check": ("examine the data before spending GPU hours", "accel_restore.commands.check:main"),
    "restore": ("apply weights to a file, a folder or a pattern", "accel_restore.commands.restore:main"),
    "evaluate": ("score weights on pairs, or on clean images made worse", "accel_restore.commands.evaluate:main"),
    "verify-resume": (
        "prove on a short run of your configuration that resuming is exact",
        "accel_restore.commands.verify_resume:main",
    ),
    "export": ("write weights as ONNX or .pt2, for other programs", "accel_restore.commands.export:main"),
    "push": ("put a run's weights on the Hugging Face Hub", "accel_restore.commands.push:main"),
    "bench": ("measure where the time goes on this machine", "accel_restore.commands.bench:main"),
    "report": ("make the report.html of a run anew", "accel_restore.commands.report:main"),
    "dashboard": (
        "save a W&B view: a panel for each quantity, all ranks in it",
        "accel_restore.commands.dashboard:main",
    ),
    "cache": ("list or delete decoded images", "accel_restore.commands.cache:main"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    lines = "\n".join(f"  {name:13} {what}" for name, (what, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="accel-restore",
        description=f"Paired image restoration.\n\ncommands:\n{lines}\n\naccel-restore COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(arguments[:1]).command
    try:
        return resolve(COMMANDS[command][1], {}, command)(arguments[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # what stops one of several processes stops all, and one tells it
            print(f"accel-restore: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("accel-restore: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
