"""`accel-restore bench`: measure where the time goes. `data` only reads pairs, `train` makes training steps."""

import argparse

from accel_restore.commands.bench import data as bench_data
from accel_restore.commands.bench import train as bench_train

KINDS = {"data": bench_data.main, "train": bench_train.main}


def main(arguments: list[str]) -> int:
    """Run the measurement named by the first argument and return its exit code.

    Raises: UserError if the configuration or data cannot be used.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="accel-restore bench",
        description=__doc__,
        epilog="for the options, see accel-restore bench data --help and accel-restore bench train --help",
    )
    parser.add_argument("what", choices=KINDS)
    return KINDS[parser.parse_args(arguments[:1]).what](arguments[1:])
