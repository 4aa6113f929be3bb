"""`accel-restore restore`: weights and images in, restored images out."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accel_restore.commands._processes import Processes, add_device, choose_precision, joined
from accel_restore.errors import UserError, raise_problems
from accel_restore.tracking.console import Console

_LINE_SECONDS = 30.0  # between lines about progress, where there is no terminal
_SUFFIXES = {"png": ".png", "jpg": ".jpg", "jpeg": ".jpg", "webp": ".webp", "tif": ".tif", "tiff": ".tif"}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises: UserError for values that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="accel-restore restore",
        description="Restore images. What is done already is left alone, so the same command goes on after an "
        "interrupt. Several processes (torchrun, accelerate launch -m accel_restore.cli restore ...) share the files.",
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="the best.safetensors of a run")
    parser.add_argument("input", nargs="+", metavar="INPUT", help="files, folders, or patterns such as 'photos/*.jpg'")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a file (.png .jpg .webp .tif) for one file, else a folder"
    )
    parser.add_argument("--recursive", action="store_true", help="take the sub-folders of a folder too")
    parser.add_argument("--format", choices=_SUFFIXES, help="of the files in a folder (default: as the inputs)")
    parser.add_argument("--quality", type=int, default=95, metavar="N", help="of JPEG and WebP (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="write input and output side by side")
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made by other settings")
    add_tiles(parser, "auto")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="tiles at once (default: %(default)s)")
    add_max_pixels(parser)
    add_device(parser)
    options = parser.parse_intermixed_args(arguments)
    if not 1 <= options.quality <= 100:
        raise UserError("--quality: must be from 1 to 100")
    return options


def add_tiles(parser: argparse.ArgumentParser, default: str | None) -> None:
    """The arguments that say what the network sees at once."""
    said = "auto: where memory is short" if default == "auto" else "as in the protocol"
    parser.add_argument(
        "--tile", type=_tile, default=default, metavar="N", help=f"pixels of input, none or auto (default: {said})"
    )
    parser.add_argument("--tile-overlap", type=int, metavar="N", help="pixels that neighbouring tiles share (64)")
    parser.add_argument(
        "--self-ensemble",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the mean over 8 flips and rotations: slower by 8, a little better",
    )


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """The argument that says which images are too large to be read."""
    help = "larger images are refused as decompression bombs"
    parser.add_argument("--max-pixels", type=_max_pixels, metavar="N", help=help)


def _max_pixels(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError("--max-pixels: must be a whole number above 0")
    return int(text)


def _tile(text: str) -> int | str:
    return text if text in ("auto", "none") else int(text)


def main(arguments: list[str]) -> int:
    """Restore files; the exit code.

    Raises: UserError for what cannot be used, and at the end for files that could not be restored.
    """
    options = parse(arguments)
    with joined(options.device) as processes:
        return _restore(options, processes)


def _restore(options: argparse.Namespace, processes: Processes) -> int:
    from accel_restore.config.data import MAX_PIXELS
    from accel_restore.distributed.accelerator import keep_freed_memory
    from accel_restore.inference.apply import Settings
    from accel_restore.inference.files import find_jobs, left_to_do, mark_of, remove_unfinished, restore_files
    from accel_restore.inference.restorer import load

    def prepare() -> tuple:
        settings = _settings(options, Settings, choose_precision(options.precision, processes.device))
        jobs = find_jobs(options.input, options.output, options.recursive, _SUFFIXES.get(options.format))
        if processes.device.type == "cpu":
            keep_freed_memory()
        restorer = load(options.weights, processes.device)
        marks = {job: mark_of(job, restorer, settings, options.compare, options.quality) for job in jobs}
        left = left_to_do(jobs, marks, options.overwrite)
        if processes.is_main:
            remove_unfinished(jobs)
        return settings, restorer, jobs, marks, left

    console = Console(processes.is_main)
    settings, restorer, jobs, marks, left = processes.together(prepare)
    # Each file belongs to one process, whatever is done already: the others may find that out a moment later.
    mine = [job for job in jobs[processes.rank :: processes.world_size] if job in set(left)]
    if len(left) < len(jobs):
        console.log(f"{len(jobs) - len(left)} of {len(jobs)} files are done already")
    began = time.monotonic()
    with _progress(console, len(mine)) as advance:
        problems = processes.together(
            lambda: restore_files(
                mine,
                marks,
                restorer,
                settings,
                compare=options.compare,
                quality=options.quality,
                max_pixels=options.max_pixels or MAX_PIXELS,
                advance=advance,
            )
        )
    problems = processes.gather(problems)
    done = sum(processes.gather([len(mine)])) - len(problems)
    console.log(f"restored {done} file{'s' * (done != 1)} in {time.monotonic() - began:.1f} s: {options.output}")
    raise_problems(f"{len(problems)} of {len(jobs)} files could not be restored", problems)
    return 0


def _settings(options: argparse.Namespace, make: Callable, precision: str):
    try:
        return make(
            None if options.tile == "none" else options.tile,
            64 if options.tile_overlap is None else options.tile_overlap,
            bool(options.self_ensemble),
            precision,
            options.batch,
        )
    except ValueError as error:
        raise UserError(f"restore: {error}") from None


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[float], None]]:
    """A function that is told how many files more are done: it moves a bar, or prints a line now and then."""
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

    def tell(part: float) -> None:
        nonlocal done, last
        done += part
        if time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            console.log(f"restored {done:.1f} of {total} files")

    yield tell
