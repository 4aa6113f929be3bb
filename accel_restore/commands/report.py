"""`accel-restore report RUN_DIR`: rebuild a run's report.html from the files in its folder."""

import argparse
import sys
from pathlib import Path

from accel_restore.commands._outputs import check_writable
from accel_restore.errors import UserError
from accel_restore.tracking.report.page import REPORT, Page
from accel_restore.utils.files import replace_file


def main(arguments: list[str]) -> int:
    """Write the page, print its path and return the exit code.

    Raises: UserError if the folder contains no run or the page cannot be written.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="accel-restore report", description=f"{__doc__} The run may still be training."
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the run's folder, such as runs/demo")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"where to write the page (default: RUN_DIR/{REPORT})"
    )
    options = parser.parse_args(arguments)
    check_writable(options.output)
    file = options.output or options.run / REPORT
    page = Page(options.run)
    text = page.build()
    if page.metrics.lines.damaged:
        print(f"accel-restore: {page.metrics.lines.describe_damage()}; left out of the report", file=sys.stderr)
    try:
        replace_file(file, text.encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); pass another file with --output") from error
    print(file)
    return 0
