"""`accel-restore bench`: where the time goes on this machine; `data` reads pairs alone, `train` makes whole steps."""

import argparse

from accel_restore.commands.bench import data as bench_data
from accel_restore.commands.bench import train as bench_train

KINDS = {"data": bench_data.main, "train": bench_train.main}


def main(arguments: list[str]) -> int:
    """Measure what the first word says; the exit code.

    Raises: UserError for a configuration or data that cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="accel-restore bench", description=__doc__, epilog="accel-restore bench data --help (or train) tells more"
    )
    parser.add_argument("what", choices=KINDS)
    return KINDS[parser.parse_args(arguments[:1]).what](arguments[1:])
