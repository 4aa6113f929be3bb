"""Requests to stop, by a signal: training saves after the step it is in and ends; a second request ends it at once.

Imports nothing heavy: the handlers stand before torch is imported.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from accel_restore.errors import PreemptedError

EXIT_CODE = 143  # 128 + SIGTERM, what schedulers expect
# SIGUSR1 is what Slurm sends ahead of a job's time limit (--signal=USR1@120).
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
# One request may arrive twice: `timeout` sends its signal to the process and to its group, a launcher passes on what
# the terminal or Slurm has sent to all its processes already.
_COPIES_SECONDS = 2.0
_START_SECONDS = 5.0
_SET_DEATH_SIGNAL = 1  # prctl's number
_LAST = 0  # no signal's number; ends the thread

_former: dict[int, Any] = {}  # while this process listens: the handlers that stood before


class StopRequest:
    """Whether this process was asked to stop. Until `may_save` is set there is nothing to save: it ends at once.

    Once `is_over` is set the run is ending by an error, after which a launcher sends SIGTERM: no request any more.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.may_save = False
        self.is_over = False
        self._launcher = os.getppid() if has_launcher() else None
        self._heard_first: float | None = None
        self._raised = False
        self._is_deferred = False
        self._leaving: threading.Timer | None = None
        self._former_hook = sys.unraisablehook

    def __bool__(self) -> bool:
        return self.signal is not None

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}" if self.signal is not None else "stopped"

    def _handle(self, number: int, frame: object) -> None:
        """Runs in the main thread, as soon as it is in Python."""
        if self.is_over:
            return
        self.signal = self.signal or signal.Signals(number)
        if not self.may_save and not self._is_deferred:
            self._raise()

    def _raise(self) -> None:
        if not self._raised:  # a copy must not disturb what the first has begun
            self._raised = True
            raise PreemptedError(f"{self} before the first step")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it no request is raised; at its end one that has come is.

        For imports: torch's C++ drops what is raised while it imports numpy, which is then half imported for good.
        """
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self:
            self._raise()

    def _discarded(self, unraisable: Any) -> None:
        """Called for an exception that Python throws away, as it was raised in a destructor or a callback."""
        if isinstance(unraisable.exc_value, PreemptedError):
            self._raise_again()
        else:
            self._former_hook(unraisable)

    def _raise_again(self) -> None:
        self._raised = False
        later = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, self.signal))
        later.daemon = True
        later.start()

    def _listen(self, wakeups: int) -> None:
        """Runs in a thread of its own, which hears a signal even where the main thread waits inside a library."""
        numbers = b""
        while _LAST not in numbers:
            numbers = os.read(wakeups, 64)
            for number in numbers:
                if number in _SIGNALS:
                    self._hear(signal.Signals(number))

    def _hear(self, number: signal.Signals) -> None:
        if self._heard_first is None:
            self._heard_first = time.monotonic()
            if self.is_over:
                return
            self.signal = number
            if self.may_save:
                _report(f"{number.name}: saving after this step; a second signal ends the run without")
            else:
                self._leave_later()
        elif not self._is_copy():
            _report(f"{number.name}: ended at once; the last commit is kept")
            os._exit(1 if self.is_over else EXIT_CODE)

    def _is_copy(self) -> bool:
        """Whether a further signal is a copy of the first, or comes of the launcher's death."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._launcher = None  # it dies once
            return True
        return time.monotonic() - self._heard_first < _COPIES_SECONDS

    def _leave_later(self) -> None:
        self._leaving = threading.Timer(_START_SECONDS, self._leave)
        self._leaving.daemon = True
        self._leaving.start()

    def _leave(self) -> None:
        """End the process where the main thread has not come back to Python since the signal; imports may take long."""
        if self._is_deferred:
            self._leave_later()
        elif not self.may_save and not self._raised and not self.is_over:
            os._exit(EXIT_CODE)

    def _close(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Take SIGTERM, SIGINT and SIGUSR1 as requests to stop; outside the main thread, where none arrive, do nothing."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former_wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _former.update({number: signal.signal(number, stop._handle) for number in _SIGNALS})
    sys.unraisablehook = stop._discarded
    thread = threading.Thread(target=stop._listen, args=(reading,), name="accel-restore-signals", daemon=True)
    thread.start()
    die_with_launcher()
    try:
        yield stop
    finally:
        _restore(former_wakeup)
        os.write(writing, bytes([_LAST]))  # closing it would not do where a child has inherited it
        thread.join()
        stop._close()
        sys.unraisablehook = stop._former_hook
        os.close(writing)
        os.close(reading)


def _restore(wakeup: int = -1) -> None:
    """Give the signals back to the handlers that stood before.

    In a child that is forked too (a pool of a user's degradation): it would tell this process of its own signals.
    """
    if _former:
        signal.set_wakeup_fd(wakeup)
        while _former:
            signal.signal(*_former.popitem())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore)


def has_launcher() -> bool:
    """Whether torchrun or `accelerate launch` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def die_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies, so that it leaves no orphan (Linux; elsewhere nothing).

    `accelerate launch` of one process passes no signal on, and a launcher that is killed cannot. A run that was started
    without a launcher outlives its shell, as `nohup` promises.
    """
    if sys.platform == "linux" and has_launcher():
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:  # it has died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)


def _report(text: str) -> None:
    """Print from the listening thread of the main process, past the buffers that the main thread may hold."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            os.write(2, f"accel-restore: {text}\n".encode())
