"""curves.png and report.html of a running training, drawn in a separate process, so that no rank waits for them.

A thread is not enough: Python runs one thread at a time, so drawing for a second would stop training for a second.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accel_restore.tracking.curves import CURVES, draw_curves
from accel_restore.tracking.report.page import REPORT, Page
from accel_restore.utils.children import python_command, python_environment
from accel_restore.utils.files import remove_temporaries_of, replace_file
from accel_restore.utils.signals import ignore_stops

_SECONDS = 60.0  # between two drawings
_SHARE = 0.03  # of the time, at most, is spent on drawings
_LAST_SECONDS = 60.0  # limit of the wait for the last drawing, at the end of a run
_NICE = 10  # priority of the process: training comes first


class Drawer:
    """Draws the curves and report of a run's folder. It keeps the lines it has read, so only new lines are read."""

    def __init__(self, folder: Path):
        self.folder, self.page = folder, Page(folder)

    def draw(self, curves: bool = True) -> list[str]:
        """Draw, and return a message for each file that failed."""
        failures = []

        def attempt(name: str, action: Callable[[Path], None], remedy: str) -> None:
            try:
                action(self.folder / name)
            except Exception as error:  # must not stop training
                reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                failures.append(f"{self.folder / name}: cannot be written ({reason}); {remedy}")

        page = "accel-restore report can write it later"
        attempt(REPORT, lambda path: replace_file(path, self.page.build().encode()), page)
        if curves:  # after the page, which has read the lines
            attempt(CURVES, lambda path: draw_curves(self.page.metrics, path), "training continues")
        return failures


class Drawings:
    """Keeps curves.png and report.html up to date during training, on the main process.

    The process is started when the first drawing is due. A shorter run starts no process, and draws once, at its end.
    A failure is logged and never stops training.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]):
        self.folder, self.log = folder, log
        self.child: subprocess.Popen[bytes] | None = None
        self.is_drawing = self.has_ended = False
        self.began = time.monotonic()
        self.due = self.began + _SECONDS

    def update(self, is_last: bool) -> None:
        """Start to draw, unless the last drawing is recent or not complete. If `is_last`, `close` draws instead."""
        if self.is_drawing:
            self._look()
        self.has_ended = is_last
        if not self.is_drawing and not is_last and time.monotonic() >= self.due:
            self._begin()

    def _begin(self) -> None:
        self.began = time.monotonic()
        self.due = self.began + _SECONDS
        try:
            if self.child is None:
                self.child = _start(self.folder.resolve())
            assert self.child.stdin is not None
            self.child.stdin.write(b"draw\n")
            self.is_drawing = True
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def _look(self) -> None:
        """Read the answer of the process, if there is one."""
        assert self.child is not None and self.child.stdout is not None
        text = self.child.stdout.read()
        if text is None:  # not yet
            return
        if not text:
            self._give_up(f"the process that draws ended with {self.child.wait()}")
        for answer in _answers(text):
            self.is_drawing = False
            self._report(answer)

    def _report(self, answer: dict[str, Any]) -> None:
        for failure in answer["failures"]:
            self.log(failure)
        self.due = self.began + max(_SECONDS, answer["seconds"] / _SHARE)

    def _give_up(self, reason: str) -> None:
        self.log(f"{self.folder / REPORT}: cannot be drawn ({reason}); training continues and tries again later")
        self._end()

    def _end(self) -> None:
        """Kill the process, if there is one."""
        if self.child is not None:
            with self.child:  # closes the pipes and waits
                self.child.kill()
            with suppress(OSError):
                remove_temporaries_of(self.child.pid, self.folder)
        self.child, self.is_drawing = None, False

    def close(self, is_own: bool = True) -> None:
        """Draw the end of the run and wait for it, if the folder is still this run's (`is_own`); end the process."""
        if is_own and (self.child is None or self.child.poll() is not None):
            for failure in Drawer(self.folder).draw(curves=self.has_ended):
                self.log(failure)
        elif is_own:
            self._finish()
        self._end()

    def _finish(self) -> None:
        """Make the process draw once more, and wait until it ends."""
        assert self.child is not None and self.child.stdout is not None
        os.set_blocking(self.child.stdout.fileno(), True)
        try:
            text, _ = self.child.communicate(b"draw\n", _LAST_SECONDS)
        except (subprocess.TimeoutExpired, OSError):
            text = b""
        answers = _answers(text)
        if len(answers) <= self.is_drawing:  # the first one is of the drawing before
            self.log(f"{self.folder / REPORT}: was not drawn at the end; accel-restore report can write it")
        else:
            self._report(answers[-1])


def _answers(text: bytes) -> list[dict[str, Any]]:
    """Return the answers of the process; what others, such as a `sitecustomize`, print there is left out."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict) and answer.keys() == {"failures", "seconds"}:
                found.append(answer)
    return found


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the process. It ends when its input closes, so also when this process is killed."""
    child = subprocess.Popen(
        [*python_command(__name__), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, **python_environment()},
        start_new_session=True,  # Ctrl-C in a terminal reaches the training alone, which then ends this process
    )
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    return child


def main() -> None:
    """Draw the folder named on the command line, once for each line of standard input.

    Signals that stop a run are ignored: a scheduler sends them to all processes, and the run draws once more.
    """
    ignore_stops()
    with suppress(OSError):
        os.nice(_NICE)
    drawer = Drawer(Path(sys.argv[1]))
    for _ in sys.stdin:
        started = time.monotonic()
        failures = drawer.draw()
        print(json.dumps({"failures": failures, "seconds": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    main()
