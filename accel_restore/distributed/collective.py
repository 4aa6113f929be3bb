"""What several ranks do together."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.errors import UserError


def on_all_ranks(accelerator: Accelerator, action: Callable[[], Any], only_main: bool = False) -> Any:
    """The result of an action on every rank, or the main process's; a UserError of one rank is raised on all."""
    result, error = None, None
    if accelerator.is_main_process or not only_main:
        try:
            result = action()
        except UserError as raised:
            error = raised
    ranks = gather_object([(error, result if only_main else None)])
    if errors := [raised for raised, _ in ranks if raised is not None]:
        raise errors[0]
    return ranks[0][1] if only_main else result
