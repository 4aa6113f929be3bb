"""What a person sees: the plan before step 1, progress (a bar on a terminal, a plain line now and then otherwise)."""

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich import console as rich_console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from accel_restore.metrics.format import format_score

_LINE_SECONDS = 30.0
_SCORE_SECONDS = 2.0
_LOG_WIDTH = 120  # of tables in a log, where there is no terminal to ask
_WIDE = 100  # characters, of a terminal where units are written out
_REFRESHES = 4  # of the bar, a second


class Console:
    """Prints for the main process, and nothing for the others."""

    def __init__(self, main: bool):
        self.main = main
        if hasattr(sys.stdout, "reconfigure"):  # a stream that lacks a character must not end a run
            sys.stdout.reconfigure(errors="backslashreplace")
        is_terminal = sys.stdout.isatty()
        self.rich = _Console(highlight=False, width=None if is_terminal else _LOG_WIDTH)
        self.shows_bars = main and is_terminal and not self.rich.is_dumb_terminal and not _is_ci()
        self.progress: Progress | None = None
        self.last_line = self.last_score = 0.0

    def log(self, text: str) -> None:
        if self.main:
            self._print(text, markup=False, soft_wrap=True)

    def table(self, title: str, rows: list[tuple], header: tuple[str, ...] = ()) -> None:
        if not self.main:
            return
        table = Table(title=title, title_justify="left", show_header=bool(header))
        for position, name in enumerate(header or [""] * len(rows[0])):
            table.add_column(name, justify="right" if header and position else "left")
        for row in rows:
            table.add_row(*map(str, row))
        self._print(table)

    def _print(self, *what: Any, **how: Any) -> None:
        with _surviving_readers():
            self.rich.print(*what, **how)

    def track(self, items: Iterable, total: int, what: str) -> Iterable:
        """The items, with progress shown while they are taken: a bar on a terminal, otherwise a line now and then."""
        if not self.main:
            yield from items
        elif self.shows_bars:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
            progress = Progress(*columns, TimeRemainingColumn(), console=self.rich)
            try:
                _start(progress)
                yield from progress.track(items, total, description=what)
            finally:
                _stop(progress)
        else:
            self.log(what)
            last = time.monotonic()
            for number, item in enumerate(items):
                if time.monotonic() - last >= _LINE_SECONDS:
                    last = time.monotonic()
                    self.log(f"{what}: {number} of {total}")
                yield item

    def start(self, epochs: int, total: int, completed: int) -> None:
        """Begin to show progress towards `total` optimizer steps, of which so many were done before."""
        self.epochs, self.total, self.first = epochs, total, completed
        self.began = self.last_line = time.monotonic()
        if not self.shows_bars:
            return
        self.progress = Progress(
            TextColumn("{task.fields[epoch]}/{task.fields[epochs]} epochs"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            console=self.rich,
            refresh_per_second=_REFRESHES,
            expand=True,
        )
        self.task = self.progress.add_task(
            "", total=total, completed=completed, epoch=0, epochs=epochs, figures="loss -"
        )
        _start(self.progress)

    def advance(self, epoch: int, step: int) -> None:
        if self.progress is not None:
            done = self.epochs if step == self.total else epoch
            self.progress.update(self.task, completed=step, epoch=done)

    def update(self, epoch: int, step: int, loss: float, lr: float, samples_per_second: float) -> None:
        """New figures of the epoch after `epoch` others: a bar shows them at once, a log gets a line now and then."""
        speed = f"{samples_per_second:.1f} samples/s"
        figures = [f"loss {format_score('loss', loss)}", f"lr {lr:.3g}", speed, self._left(step)]
        if self.progress is not None:
            if self.rich.width < _WIDE:
                figures[2] = f"{samples_per_second:.0f}/s"
            self.progress.update(self.task, figures=" · ".join(figures))
        elif time.monotonic() - self.last_line >= _LINE_SECONDS:
            self.last_line = time.monotonic()
            self.log(" · ".join([f"epoch {epoch + 1}/{self.epochs}", f"step {step}/{self.total}", *figures]))

    def _left(self, step: int) -> str:
        """How long the run will go on, as it has gone so far in this process: validations and commits count."""
        seconds = (time.monotonic() - self.began) / max(1, step - self.first) * (self.total - step)
        return f"{timedelta(seconds=round(seconds))} left"

    def scores(self, line: str, always: bool) -> None:
        """A line about a validation; in quick runs not about every one."""
        if always or time.monotonic() - self.last_score >= _SCORE_SECONDS:
            self.last_score = time.monotonic()
            self.log(line)

    def stop(self) -> None:
        if self.progress is not None:
            _stop(self.progress)
            self.progress = None


@contextmanager
def leaving_as_found() -> Iterator[None]:
    """Within it a run may change standard output and the filters of warnings; then they are the caller's again."""
    output = sys.stdout
    errors = getattr(output, "errors", None)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors=errors)


def _is_ci() -> bool:
    """Whether a service of continuous integration keeps what is printed, some of which offer a terminal."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def _start(progress: Progress) -> None:
    """Show bars, and the cursor: a process that is killed could not bring it back."""
    with _surviving_readers():
        progress.start()
        progress.console.show_cursor(True)


def _stop(progress: Progress) -> None:
    with _surviving_readers():
        progress.stop()


class _Console(rich_console.Console):
    """Goes on where nobody reads any more: rich would end the process."""

    def on_broken_pipe(self) -> None:
        _discard_output()


@contextmanager
def _surviving_readers() -> Iterator[None]:
    """Go on where a terminal was closed; what a full disk has no room for in a log is lost."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            _discard_output()


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
