"""What a person sees: the plan before step 1, progress (a bar on a terminal, a plain line now and then otherwise)."""

import sys
import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track
from rich.table import Table

_LINE_SECONDS = 30.0
_SCORE_SECONDS = 2.0
_LOG_WIDTH = 120  # of tables in a log, where there is no terminal to ask


class Screen:
    """Prints for the main process, and nothing for the others."""

    def __init__(self, main: bool):
        self.main = main
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)
        self.progress: Progress | None = None
        self.last_line = self.last_score = 0.0

    def say(self, text: str) -> None:
        if self.main:
            self.console.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, rows: list[tuple], header: tuple[str, ...] = ()) -> None:
        if not self.main:
            return
        table = Table(title=title, title_justify="left", show_header=bool(header))
        for position, name in enumerate(header or [""] * len(rows[0])):
            table.add_column(name, justify="right" if header and position else "left")
        for row in rows:
            table.add_row(*map(str, row))
        self.console.print(table)

    def track(self, items: Iterable, total: int, what: str) -> Iterable:
        """The items, with progress shown while they are taken: a bar on a terminal, otherwise a line now and then."""
        if not self.main:
            yield from items
            return
        if self.console.is_terminal:
            yield from track(items, what, total, console=self.console)
            return
        self.say(what)
        last = time.monotonic()
        for number, item in enumerate(items):
            if time.monotonic() - last >= _LINE_SECONDS:
                last = time.monotonic()
                self.say(f"{what}: {number} of {total}")
            yield item

    def start(self, total: int, completed: int) -> None:
        """Begin to show progress towards `total` optimizer steps."""
        self.last_line = time.monotonic()
        if self.main and self.console.is_terminal:
            self.progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps"),
                TextColumn("loss {task.fields[loss]} · lr {task.fields[lr]} · {task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.progress.add_task(
                "", total=total, completed=completed, epoch=0, loss="-", lr="-", speed=""
            )
            self.progress.start()
        self.total = total

    def advance(self, step: int) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=step)

    def update(self, epoch: int, step: int, loss: float, lr: float, samples_per_second: float) -> None:
        """New figures: the bar shows them at once, a log gets a line every half a minute."""
        fields = {
            "epoch": epoch,
            "loss": f"{loss:.4g}",
            "lr": f"{lr:.3g}",
            "speed": f"{samples_per_second:.1f} pairs/s",
        }
        if self.progress is not None:
            self.progress.update(self.task, **fields)
        elif time.monotonic() - self.last_line >= _LINE_SECONDS:
            self.last_line = time.monotonic()
            self.say(
                "epoch {epoch} · step {step}/{total} · loss {loss} · lr {lr} · {speed}".format(
                    step=step, total=self.total, **fields
                )
            )

    def scores(self, line: str, always: bool) -> None:
        """A line about a validation; in quick runs not about every one."""
        if always or time.monotonic() - self.last_score >= _SCORE_SECONDS:
            self.last_score = time.monotonic()
            self.say(line)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
