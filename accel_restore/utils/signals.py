"""Signals that ask a run to stop: it saves after the current step and ends; a second signal ends it at once.

Nothing heavy is imported, so that the handlers are installed before torch is imported.
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
from accel_restore.utils.launch import is_reporter

EXIT_CODE = 143  # 128 + SIGTERM, as schedulers expect
# Slurm sends SIGUSR1 before a job's time limit (--signal=USR1@120).
# A closed terminal or a lost connection sends SIGHUP.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
# One request may arrive twice: `timeout` signals the process and its group, and a launcher forwards signals that the
# terminal or Slurm has already sent to all of its processes.
_COPIES_SECONDS = 2.0
_START_SECONDS = 5.0
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LAST = 0  # not the number of a signal; ends the thread

_former: dict[int, Any] = {}  # the previous handlers, while this process listens


class StopRequest:
    """True once a signal has asked this process to stop.

    Before `may_save` is set there is nothing to save, and the process ends at once. After `is_over` is set the run is
    ending with an error; the SIGTERM that a launcher then sends is ignored.
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
        """Run in the main thread, as soon as it executes Python code."""
        if self.is_over:
            return
        self.signal = self.signal or signal.Signals(number)
        if not self.may_save and not self._is_deferred:
            self._raise()

    def _raise(self) -> None:
        if not self._raised:  # a copy of the signal must not interrupt the exit
            self._raised = True
            raise PreemptedError(f"{self} before the first step")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay the exception of a request to the end of this context.

        Needed for imports: torch's C++ code discards an exception raised while it imports numpy, and numpy then stays
        half imported.
        """
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self:
            self._raise()

    def _discarded(self, unraisable: Any) -> None:
        """Handle an exception that Python discards because it was raised in a destructor or a callback."""
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
        """Run in a separate thread, which receives signals even while the main thread waits inside a library."""
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
                _report(f"{number.name}: saving after this step; a second signal ends the run without saving")
            else:
                self._leave_later()
        elif not self._is_copy():
            _report(f"{number.name}: ended without saving; the last commit is kept")
            os._exit(1 if self.is_over else EXIT_CODE)

    def _is_copy(self) -> bool:
        """Return whether a further signal is a copy of the first, or is sent because the launcher died."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._launcher = None  # it dies once
            return True
        return self._heard_first is not None and time.monotonic() - self._heard_first < _COPIES_SECONDS

    def _leave_later(self) -> None:
        self._leaving = threading.Timer(_START_SECONDS, self._leave)
        self._leaving.daemon = True
        self._leaving.start()

    def _leave(self) -> None:
        """End the process if the main thread has not executed Python code since the signal, except during imports."""
        if self._is_deferred:
            self._leave_later()
        elif not self.may_save and not self._raised and not self.is_over:
            os._exit(EXIT_CODE)

    def _close(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Treat SIGTERM, SIGINT, SIGUSR1 and SIGHUP as requests to stop; do nothing outside the main thread.

    If SIGHUP is ignored, as under `nohup`, it stays ignored.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former_wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    stop._is_deferred = True  # an exception that leaves this function here would not be handled by its caller
    _former.update({number: signal.signal(number, stop._handle) for number in _SIGNALS if not _is_nohup(number)})
    sys.unraisablehook = stop._discarded
    thread = threading.Thread(target=stop._listen, args=(reading,), name="accel-restore-signals", daemon=True)
    thread.start()
    die_with_launcher()
    stop._is_deferred = False
    try:
        yield stop
    finally:
        _restore(former_wakeup)
        os.write(writing, bytes([_LAST]))  # closing the pipe has no effect if a child process inherited it
        thread.join()
        stop._close()
        sys.unraisablehook = stop._former_hook
        os.close(writing)
        os.close(reading)


def _is_nohup(number: int) -> bool:
    """Return whether the signal is SIGHUP, and it was already ignored when this process started."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN


def _restore(wakeup: int = -1) -> None:
    """Restore the previous signal handlers.

    Forked children (a pool in a user's degradation) do this too; otherwise their signals would reach this process.
    """
    if _former:
        signal.set_wakeup_fd(wakeup)
        while _former:
            signal.signal(*_former.popitem())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore)


def ignore_stops() -> None:
    """Ignore the signals that ask a run to stop; for a process that ends when its run does."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def has_launcher() -> bool:
    """Return whether torchrun or `accelerate launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def die_with_launcher() -> None:
    """Make the kernel send SIGTERM to this process when its launcher dies, on Linux; elsewhere do nothing.

    `accelerate launch` with one process does not forward signals, and a killed launcher cannot. A run without a
    launcher survives its shell, as `nohup` promises.
    """
    if sys.platform == "linux" and has_launcher():
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:  # the launcher died before the call
            os.kill(os.getpid(), signal.SIGTERM)


def _report(text: str) -> None:
    """Print on rank 0 without Python's buffers, whose locks the main thread may hold."""
    if is_reporter():
        with suppress(OSError):
            os.write(2, f"accel-restore: {text}\n".encode())
