"""`accel-restore restore`: apply weights to image files."""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from accel_restore.commands._arguments import add_device, add_max_pixels, add_tiles
from accel_restore.commands._processes import Processes, choose_precision, joined
from accel_restore.errors import UserError, raise_problems
from accel_restore.tracking.console import Console

if TYPE_CHECKING:
    from accel_restore.inference.apply import Settings
    from accel_restore.inference.files import Outcome
    from accel_restore.inference.jobs import Job, LeftOut
    from accel_restore.inference.restorer import Restorer

_LINE_SECONDS = 30.0  # between lines of progress without a terminal
_SUFFIXES = {
    "png": ".png", "jpg": ".jpg", "jpeg": ".jpg", "webp": ".webp", "tif": ".tif", "tiff": ".tif", "npy": ".npy",
    "exr": ".exr",
}  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Raises: UserError for invalid values."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="accel-restore restore",
        description="Restore images. Finished files are skipped, so the same command continues after an interrupt. "
        "Several processes (torchrun, accelerate launch -m accel_restore.cli restore ...) share the files.",
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="the best.safetensors of a run")
    parser.add_argument("input", nargs="+", metavar="INPUT", help="files, folders, or patterns such as 'photos/*.jpg'")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="a file (.png .jpg .webp .tif .npy .exr) for one file, else a folder",
    )
    parser.add_argument("--recursive", action="store_true", help="include subfolders")
    parser.add_argument(
        "--format", choices=_SUFFIXES, help="format of the files in a folder (default: that of the inputs)"
    )
    parser.add_argument(
        "--quality", type=int, default=95, metavar="N", help="quality of JPEG and WebP (default: %(default)s)"
    )
    parser.add_argument("--compare", action="store_true", help="write input and output side by side")
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made with other settings")
    add_tiles(parser, "auto")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="tiles per forward (default: %(default)s)")
    add_max_pixels(parser)
    add_device(parser)
    options = parser.parse_intermixed_args(arguments)
    if not 1 <= options.quality <= 100:
        raise UserError("--quality: must be from 1 to 100")
    return options


def main(arguments: list[str]) -> int:
    """Restore files and return the exit code.

    Raises: UserError for invalid arguments, and at the end for files that could not be restored.
    """
    options = parse(arguments)
    with joined(options.device) as processes:
        return _restore(options, processes)


@dataclass(frozen=True)
class _Work:
    """What all processes agree on before the first file."""

    restorer: "Restorer"
    settings: "Settings"
    jobs: "list[Job]"
    left_out: "LeftOut"


def _restore(options: argparse.Namespace, processes: Processes) -> int:
    console = Console(processes.rank == 0)
    work = processes.run_together(lambda: _prepare(options, processes))
    for note in work.left_out.notes:
        console.log(f"note: {note}")
    # Each file belongs to one process, which finds out whether it is done.
    mine = work.jobs[processes.rank :: processes.world_size]
    mine = _check_done(mine, work, options, processes)
    done = len(work.jobs) - sum(processes.gather([len(mine)]))
    if done:
        console.log(f"{done} of {len(work.jobs)} files are done already")
    start = time.monotonic()
    with _progress(console, len(mine)) as advance:
        outcome = processes.run_together(lambda: _restore_files(mine, work, options, advance))
    problems = processes.gather(outcome.problems)
    restored = len(work.jobs) - done - len(problems)
    if restored or not problems:  # else there may be no output
        console.log(
            f"restored {restored} file{'s' * (restored != 1)} in {time.monotonic() - start:.1f} s: {options.output}"
        )
    left_out: Counter[str] = sum(processes.gather([outcome.left_out]), Counter())
    for what, count in sorted(left_out.items()):
        console.log(f"note: not kept in {count} file{'s' * (count != 1)}: {what}")
    unread = work.left_out.problems
    lost = [f"{len(problems)} of {len(work.jobs)} files"] if problems else []
    lost += [f"{len(unread)} folder{'s' * (len(unread) != 1)}"] if unread else []
    raise_problems(f"{' and '.join(lost)} could not be restored", [*unread, *problems])
    return 0


def _prepare(options: argparse.Namespace, processes: Processes) -> _Work:
    from accel_restore.distributed.accelerator import keep_freed_memory
    from accel_restore.inference.jobs import LeftOut, find_jobs, remove_unfinished, suffix_for
    from accel_restore.inference.restorer import load

    settings = _settings(options, choose_precision(options.precision, processes.device))
    suffix = _SUFFIXES.get(options.format)
    left_out = LeftOut()
    if processes.device.type == "cpu":
        keep_freed_memory()
    restorer = load(options.weights, processes.device)
    if options.compare and not restorer.images.keeps_channels:
        raise UserError(
            f"--compare: the input has {restorer.input_channels} channels, the output {restorer.channels}, so they "
            "cannot be in one picture; omit it"
        )
    jobs = find_jobs(
        options.input, options.output, options.recursive, suffix, options.weights, left_out,
        partial(suffix_for, restorer),
    )  # fmt: skip
    if processes.rank == 0:
        remove_unfinished(jobs)
    return _Work(restorer, settings, jobs, left_out)


def _check_done(jobs: "list[Job]", work: _Work, options: argparse.Namespace, processes: Processes) -> "list[Job]":
    """Return the jobs that are left to do. Raises: UserError if other files are in the way of any process."""
    from accel_restore.inference.jobs import left_to_do, recipe_of

    recipe = recipe_of(work.restorer, work.settings, options.compare, options.quality)
    left, problems = left_to_do(jobs, recipe)
    problems = processes.gather(problems)
    if not options.overwrite:
        raise_problems("target files exist; give --overwrite to replace them, or another OUTPUT", problems)
    return left


def _settings(options: argparse.Namespace, precision: str) -> "Settings":
    from accel_restore.inference.apply import Settings

    try:
        return Settings(
            None if options.tile == "none" else options.tile,
            64 if options.tile_overlap is None else options.tile_overlap,
            bool(options.self_ensemble),
            precision,
            options.batch,
        )
    except ValueError as error:
        raise UserError(f"restore: {error}") from None


def _restore_files(
    jobs: "list[Job]", work: _Work, options: argparse.Namespace, advance: Callable[[float], None]
) -> "Outcome":
    from accel_restore.config.data import MAX_PIXELS
    from accel_restore.inference.files import restore_files

    return restore_files(
        jobs,
        work.restorer,
        work.settings,
        compare=options.compare,
        quality=options.quality,
        max_pixels=options.max_pixels or MAX_PIXELS,
        advance=advance,
    )


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[float], None]]:
    """Yield a function that takes the number of files done since its last call and shows a bar, or lines of text."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    if console.main and console.rich.is_terminal and total:
        columns = [TextColumn("restoring"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[files]}")]
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console.rich) as bar:
            task = bar.add_task("", total=total, files="")

            def move(part: float) -> None:
                bar.advance(task, part)
                bar.update(task, files=f"{bar.tasks[0].completed:.0f} of {total} files")

            yield move
        return
    done, last = 0.0, time.monotonic()

    def report(part: float) -> None:
        nonlocal done, last
        done += part
        if time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            console.log(f"restored {done:.1f} of {total} files")

    yield report
