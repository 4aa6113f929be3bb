"""The errors a run ends with; the entry turns each into its exit code and the state in status.json."""


class UserError(Exception):
    """The user's input is wrong (configuration, data, weights): shown as one short message without a traceback, exit 2.

    The message names the file or the key and the remedy.
    """


class DivergedError(Exception):
    """Losses or gradients are no longer numbers: exit 3."""

    def __init__(self, place: str, reason: str, what: str = "the training loss is"):
        super().__init__(
            f"{place}: {what} no longer a number ({reason}); lower optimizer.lr, set train.max_grad_norm, or use "
            "train.mixed_precision=bf16 in place of fp16"
        )


class PreemptedError(BaseException):
    """The run was asked to stop: exit 143. No `Exception`, so that no library's handler takes it for an error."""

    recorded = False  # in status.json


class RunAbortedError(Exception):
    """The run cannot go on, for a reason outside of it (another rank, the disk): one message, exit 1."""

    def __init__(self, message: str, is_reporter: bool | None = None):
        """`is_reporter`: whether this rank reports the error to the user; None: the main process does."""
        super().__init__(message)
        self.is_reporter = is_reporter


class AuditError(Exception):
    """`--audit` saw weights or a learning rate change where they must not: exit 1."""


def resume_hint(overwrite: bool) -> str:
    """How a message says that the run can be continued; with `overwrite`, the command given would remove it."""
    return f"the same command{' without --overwrite' if overwrite else ''} continues"


def raise_problems(title: str, problems: list[str], limit: int = 100) -> None:
    """Raise one `UserError` that lists all `problems`, one a line; do nothing where there is none."""
    if not problems:
        return
    shown = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"  ... and {len(problems) - limit} more")
    raise UserError("\n".join([title, *shown]))
