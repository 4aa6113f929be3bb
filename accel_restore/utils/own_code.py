"""Report what code of the user's own raises."""

from collections.abc import Iterator
from contextlib import contextmanager

from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.utils.imports import describe_error
from accel_restore.utils.memory import is_out_of_memory


@contextmanager
def reporting(problem: str, remedy: str = "") -> Iterator[None]:
    """Convert whatever the user's code raises to a `UserError`: the problem, the error, the remedy.

    Out-of-memory errors pass: the run's own message has the remedy for them.
    """
    try:
        yield
    except UserError:
        raise
    except PART_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{problem}: {describe_error(error)}{remedy}") from error
