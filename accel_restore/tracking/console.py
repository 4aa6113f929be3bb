"""Console output: tables, messages and progress. A terminal shows a bar; a log gets a line every 30 seconds."""

import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import IO, cast

from rich import console as rich_console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from accel_restore.errors import one_line
from accel_restore.metrics.format import format_score
from accel_restore.utils.streams import safe
from accel_restore.utils.words import counted

_LINE_SECONDS = 30.0
_SCORE_SECONDS = 2.0
_LOG_WIDTH = 120  # characters, of tables in a log
_WIDE = 100  # characters, of a terminal with room for written-out units
_REFRESHES = 4  # of the bar, per second


class Console:
    """Prints in the main process; other processes print nothing."""

    def __init__(self, main: bool):
        self.main = main
        stream = safe(sys.stdout)
        is_terminal = stream.isatty()
        width = None if is_terminal else _LOG_WIDTH
        self.rich = rich_console.Console(file=cast(IO[str], stream), highlight=False, width=width)
        self.shows_bars = main and is_terminal and not self.rich.is_dumb_terminal and not _is_ci()
        self.progress: Progress | None = None
        self.values = "loss -"  # of training, next to the bar
        self.last_line = self.last_score = 0.0

    def log(self, text: str) -> None:
        """Print a line as it is, without markup or wrapping."""
        if self.main:
            self.rich.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, rows: list[tuple], header: tuple[str, ...] = ()) -> None:
        """Print a table of texts as they are, without markup, each in one line."""
        if not self.main:
            return
        table = Table(title=escape(title), title_justify="left", show_header=bool(header))
        for position, name in enumerate(header or [""] * len(rows[0])):
            table.add_column(name, justify="right" if header and position else "left")
        for row in rows:
            table.add_row(*(escape(one_line(str(value))) for value in row))
        self.rich.print(table)

    def track(self, items: Iterable, total: int, description: str) -> Iterable:
        """Yield the items and show progress."""
        if not self.main:
            yield from items
        elif self.shows_bars:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
            progress = Progress(*columns, TimeRemainingColumn(), console=self.rich)
            try:
                _start(progress)
                yield from progress.track(items, total, description=description)
            finally:
                progress.stop()
        else:
            self.log(description)
            last = time.monotonic()
            for number, item in enumerate(items):
                if time.monotonic() - last >= _LINE_SECONDS:
                    last = time.monotonic()
                    self.log(f"{description}: {number} of {total}")
                yield item

    def start(self, epochs: int, total: int, completed: int) -> None:
        """Start to show progress towards `total` optimizer steps, `completed` of them done by earlier processes."""
        self.epochs, self.total, self.first = epochs, total, completed
        self.started = self.last_line = time.monotonic()
        if not self.shows_bars:
            return
        self.progress = Progress(
            TextColumn("{task.fields[epoch]}/" + counted(epochs, "epoch")),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[values]}"),
            console=self.rich,
            refresh_per_second=_REFRESHES,
            expand=True,
        )
        self.task = self.progress.add_task("", total=total, completed=completed, epoch=0, values=self.values)
        _start(self.progress)

    def advance(self, epoch: int, step: int) -> None:
        """Move the bar to `step`."""
        if self.progress is not None:
            done = self.epochs if step == self.total else epoch
            self.progress.update(self.task, completed=step, epoch=done)

    def update(self, epoch: int, step: int, loss: float, lr: float, samples_per_second: float) -> None:
        """Show new values. `epoch` counts completed epochs, so the current one is `epoch` + 1."""
        speed = f"{samples_per_second:.1f} samples/s"
        values = [f"loss {format_score('loss', loss)}", f"lr {lr:.3g}", speed, self._time_left(step)]
        if self.progress is not None:
            if self.rich.width < _WIDE:
                values[2] = f"{samples_per_second:.0f}/s"
            self.values = " · ".join(values)
            self.progress.update(self.task, values=self.values)
        elif time.monotonic() - self.last_line >= _LINE_SECONDS:
            self.last_line = time.monotonic()
            self.log(" · ".join([f"epoch {epoch + 1}/{self.epochs}", f"step {step}/{self.total}", *values]))

    def validating(self, scored: int, images: int) -> None:
        """Show how many images of a validation are scored."""
        text = f"validating {scored}/{images}"
        if self.progress is not None:
            self.progress.update(self.task, values=text)
        elif time.monotonic() - self.last_line >= _LINE_SECONDS:
            self.last_line = time.monotonic()
            self.log(text)

    def validated(self) -> None:
        """Show the values of training again."""
        if self.progress is not None:
            self.progress.update(self.task, values=self.values)

    def _time_left(self, step: int) -> str:
        """Extrapolate the pace of this process, including validations and commits."""
        seconds = (time.monotonic() - self.started) / max(1, step - self.first) * (self.total - step)
        return f"{timedelta(seconds=round(seconds))} left"

    def scores(self, line: str, always: bool) -> None:
        """Print a line about a validation; unless `always`, at most one every 2 seconds."""
        if always or time.monotonic() - self.last_score >= _SCORE_SECONDS:
            self.last_score = time.monotonic()
            self.log(line)

    def stop(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _is_ci() -> bool:
    """Return whether a CI service records the output; some of them provide a terminal."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def _start(progress: Progress) -> None:
    """Show the bar, and keep the cursor visible: a process that is killed could not restore it."""
    progress.start()
    progress.console.show_cursor(True)
