"""Stop a long computation between two operations of torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.overrides import TorchFunctionMode


class _Stopped(BaseException):
    """Leaves the computation. A BaseException, so that a user's model does not handle it as an error."""


class _Asking(TorchFunctionMode):
    """Asks before each operation, which takes 4 to 7 µs longer."""

    def __init__(self, should_stop: Callable[[], bool]):
        super().__init__()
        self.should_stop = should_stop

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.should_stop():
            raise _Stopped
        return func(*args, **(kwargs or {}))


@contextmanager
def stoppable(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Leave the block at its next operation of torch once `should_stop` returns true."""
    with suppress(_Stopped), _Asking(should_stop):
        yield
