"""The `accel-restore` command: one sub-command a line."""

import argparse
import json
import sys

from accel_restore import __version__
from accel_restore.errors import UserError

COMMANDS = {
    "train": "train a model (also: accelerate launch accel_restore/train.py)",
    "config": "print the resolved configuration, or its JSON schema",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    lines = "\n".join(f"  {name:8} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="accel-restore",
        description=f"Paired image restoration.\n\ncommands:\n{lines}\n\naccel-restore COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    options = parser.parse_args(arguments[:1])
    if options.command == "train":
        from accel_restore import train

        return train.main(arguments[1:])
    return print_config(arguments[1:])


def print_config(arguments: list[str]) -> int:
    """`accel-restore config`: the configuration that training would use."""
    from accel_restore.config import Config
    from accel_restore.parsing import load_config, to_yaml

    parser = argparse.ArgumentParser(prog="accel-restore config", description=COMMANDS["config"])
    parser.add_argument("--config", metavar="FILE", help="YAML configuration (default: configs/demo.yaml)")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of configurations")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    if options.schema:
        print(json.dumps(Config.model_json_schema(), indent=2))
        return 0
    try:
        print(to_yaml(load_config(options.config, options.overrides)), end="")
        return 0
    except UserError as error:
        print(f"accel-restore: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
