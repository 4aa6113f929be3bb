"""The errors that end a run. The entry turns each into an exit code and a state in status.json."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# What a part of the user's may raise. sys.exit(0) in a part must not end a run with the exit code of a finished one.
PART_ERRORS = (Exception, SystemExit)


class UserError(Exception):
    """The user's input (configuration, data, weights) is wrong: one short message, no traceback, exit 2.

    The message names the file or the key, and the remedy.
    """

    is_reporter: bool | None = None  # whether this rank reports the error; None: the main process does


class DivergedError(Exception):
    """Losses, gradients or weights are NaN or inf: exit 3."""

    def __init__(self, place: str, reason: str):
        super().__init__(
            f"{place}: training has diverged: {reason}; lower optimizer.lr, set train.max_grad_norm, or use "
            "train.mixed_precision=bf16 in place of fp16"
        )


class PreemptedError(BaseException):
    """The run was asked to stop: exit 143. A BaseException, so that no library handles it as an error."""

    recorded = False  # in status.json


class RunAbortedError(Exception):
    """The run cannot continue because of another rank or the disk: one message, exit 1."""

    def __init__(self, message: str, is_reporter: bool | None = None):
        """`is_reporter`: whether this rank reports the error to the user; None: the main process does."""
        super().__init__(message)
        self.is_reporter = is_reporter


class CallbackError(Exception):
    """A callback of the user's has raised: one message, exit 1."""

    is_reporter: bool | None = None  # whether this rank reports the error; None: the main process does


class FolderLostError(RunAbortedError):
    """The run's folder was moved, removed or replaced, so nothing more may be written there."""


class AuditError(Exception):
    """`--audit` saw weights or the learning rate change where they must not: exit 1."""


def permission_denied(error: PermissionError) -> UserError:
    """Return the sentence for a file or a folder that may not be accessed."""
    name = error.filename if isinstance(error.filename, str) else str(error)
    return UserError(f"{name}: permission denied; change the permissions of the file or of its folders")


def one_line(text: str) -> str:
    r"""Return the text with escapes, such as `\n`, in place of control characters. Names of files may have some."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def resume_hint(overwrite: bool) -> str:
    """The words that say how to continue a run; a command with `overwrite` would remove it."""
    return f"the same command{' without --overwrite' if overwrite else ''} continues"


def raise_problems(title: str, problems: list[str], limit: int = 100) -> None:
    """Raise one `UserError` that lists all `problems`, one per line, if there are any."""
    if not problems:
        return
    shown = [f"  - {one_line(problem)}" for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"  ... and {len(problems) - limit} more")
    raise UserError("\n".join([title, *shown]))
