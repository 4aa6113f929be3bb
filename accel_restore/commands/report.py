"""`accel-restore report RUN_DIR`: make the report.html of a run anew, from the files in its folder alone."""

import argparse
from pathlib import Path

from accel_restore.commands._outputs import check_writable
from accel_restore.errors import UserError
from accel_restore.tracking.report.page import REPORT, Page
from accel_restore.utils.files import replace_file


def main(arguments: list[str]) -> int:
    """Write the page and print its path; the exit code.

    Raises: UserError for a folder that holds no run, or a page that cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="accel-restore report", description=f"{__doc__} The run may still train, or come from another machine."
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="such as runs/demo")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"default: {REPORT} in the run's folder")
    options = parser.parse_args(arguments)
    check_writable(options.output)
    file = options.output or options.run / REPORT
    page = Page(options.run).build()
    try:
        replace_file(file, page.encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another file with --output") from error
    print(file)
    return 0
