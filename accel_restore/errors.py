"""The errors a run ends with; the entry turns each into its exit code and the state in status.json."""


class UserError(Exception):
    """The user's input is wrong (configuration, data, weights): shown as one short message without a traceback, exit 2.

    The message names the file or the key and the remedy.
    """


class Diverged(Exception):
    """The loss is no longer a number: exit 3."""

    def __init__(self, epoch: int):
        super().__init__(
            f"epoch {epoch}: the training loss is no longer a number; lower optimizer.lr, set train.max_grad_norm, or "
            "use train.mixed_precision=bf16 in place of fp16"
        )


class AuditFailed(Exception):
    """`--audit` saw weights or a learning rate change where they must not: exit 1."""


def raise_problems(title: str, problems: list[str], limit: int = 100) -> None:
    """Raise one `UserError` that lists all `problems`, one a line; do nothing where there is none."""
    if not problems:
        return
    shown = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"  ... and {len(problems) - limit} more")
    raise UserError("\n".join([title, *shown]))
