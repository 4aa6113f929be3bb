"""Restore files: read, restore and write one after the other; the failure of a file leaves the others alone."""

import errno
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from accel_restore.config.data import MAX_PIXELS
from accel_restore.data.decode import Cell, read_header, read_image
from accel_restore.data.encode import SUFFIXES, encode, holds_channels, written_kind
from accel_restore.data.image_formats import Header, ImageError
from accel_restore.data.metadata import About, fitted, read_about
from accel_restore.data.pixels import from_unit, is_float, to_unit
from accel_restore.errors import UserError, raise_problems
from accel_restore.inference.apply import Settings
from accel_restore.inference.jobs import Job, mark_of, recipe_of
from accel_restore.inference.restorer import Restorer
from accel_restore.models.blocks import upscale
from accel_restore.utils.files import make_folder, replace_file

_MAX_WAITING = 2  # restored images that wait to be written
# After these, other files cannot be written either; all other errors are of one file or folder, such as a long name.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE}


@dataclass(frozen=True)
class Photograph:
    """The upright pixels (H, W, C) of a file, and what else is known of it."""

    pixels: np.ndarray
    format: str
    about: About
    digest: str  # sha256 of the file


@dataclass
class Outcome:
    """What a process did with its files."""

    problems: list[str] = field(default_factory=list)  # a message for each file that failed
    left_out: Counter[str] = field(default_factory=Counter)  # metadata that were not kept: the number of files


def restore_files(
    jobs: list[Job],
    restorer: Restorer,
    settings: Settings,
    *,
    compare: bool = False,
    quality: int = 95,
    max_pixels: int = MAX_PIXELS,
    advance: Callable[[float], None] | None = None,
) -> Outcome:
    """Restore files, reading one ahead and writing in threads.

    `advance` receives the number of files done since its last call, including fractions.

    Raises: UserError if the disk takes no more files.
    """
    outcome, recipe = Outcome(), recipe_of(restorer, settings, compare, quality)
    writing: deque[tuple[Job, Future]] = deque()
    num_tried = 0

    def finish_write() -> None:
        nonlocal num_tried
        job, future = writing.popleft()
        try:
            future.result()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            outcome.problems.append(f"{job.source}: cannot be written as {job.target} ({reason})")
            if getattr(error, "errno", None) in _OF_THE_DISK:
                left = len(jobs) - num_tried - 1
                raise_problems(
                    f"{reason}: {left} more files were not tried; the same command continues", outcome.problems
                )
        num_tried += 1

    with ThreadPoolExecutor(_MAX_WAITING + 1) as pool:
        for job, photograph in _ahead(pool, lambda job: _read(job, restorer, max_pixels), jobs):
            try:
                if isinstance(photograph, ImageError):
                    raise photograph
                restored = _restored(photograph, job, restorer, settings, compare, advance)
            except (ImageError, UserError) as error:
                outcome.problems.append(f"{job.source}: {error}")
                num_tried += 1
                continue
            format = SUFFIXES[job.target.suffix.lower()]
            about = fitted(photograph.about, format)
            outcome.left_out.update(f"{what} ({photograph.format} to {format})" for what in about.left_out)
            mark = mark_of(recipe, photograph.digest)
            writing.append((job, pool.submit(_write, job, restored, about, mark, quality)))
            while len(writing) >= _MAX_WAITING:
                finish_write()
        while writing:
            finish_write()
    return outcome


def _ahead(
    pool: ThreadPoolExecutor, read: Callable, jobs: Iterable[Job]
) -> Iterator[tuple[Job, Photograph | ImageError]]:
    """Yield each job with the result of `read`, which runs while the previous job is worked on."""
    jobs = iter(jobs)
    waiting = deque((job, pool.submit(read, job)) for job in islice(jobs, 1))
    while waiting:
        job, future = waiting.popleft()
        waiting.extend((next_job, pool.submit(read, next_job)) for next_job in islice(jobs, 1))
        try:
            yield job, future.result()
        except ImageError as error:
            yield job, error


def _read(job: Job, restorer: Restorer, max_pixels: int) -> Photograph:
    """Read a file once, so that the mark is the digest of what was restored. Raises: ImageError."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            job.target.lstat()  # fails for a name that the disk does not take, before the network is applied
    except OSError as error:
        raise ImageError(f"cannot be written as {job.target} ({error.strerror or error})") from None
    try:
        header = read_header(job.source, max_pixels)
        data = job.source.read_bytes()
        cell = Cell(str(job.source), "", lambda: data)
        pixels = read_image(cell, restorer.input_channels, max_pixels=max_pixels)
        restorer.check_values(pixels, restorer.pixels.range)
        about = _about(data, header, restorer)
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise ImageError(f"cannot be restored: {error}") from None
    except MemoryError:
        raise ImageError("does not fit in memory; cut it into pieces") from None
    return Photograph(pixels, header.format, about, hashlib.sha256(data).hexdigest())


def _about(data: bytes, header: Header, restorer: Restorer) -> About:
    if header.format == "raw":
        return About(left_out=("the metadata of a raw file",))
    return read_about(data, restorer.channels, header.orientation, restorer.scale)


def _restored(
    photograph: Photograph,
    job: Job,
    restorer: Restorer,
    settings: Settings,
    compare: bool,
    advance: Callable[[float], None] | None,
) -> np.ndarray:
    """Return the pixels (H, W, C) to write, of the kind of the output or the nearest that the format holds.

    Raises: UserError if the network cannot restore the photograph, or the format does not hold its channels.
    """
    format = SUFFIXES[job.target.suffix.lower()]
    if not holds_channels(format, restorer.channels):
        raise UserError(f"a {format} has 1 or 3 channels, not {restorer.channels}; use the suffix .tif or .npy")
    kind = written_kind(restorer.pixels.kind_of_output(photograph.pixels.dtype), format)
    clamp, range = not is_float(kind), restorer.pixels.range
    image = torch.from_numpy(to_unit(photograph.pixels, range)).permute(2, 0, 1)[None]
    try:
        output = restorer.restore(image, settings, advance, clamp)
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:  # such as a size that the network cannot take
        lines = str(error).splitlines() or [""]
        raise UserError(f"the network fails for this image ({type(error).__name__}: {lines[0]:.200})") from error
    if compare:
        enlarged = upscale(image, restorer.scale)
        output = torch.cat([enlarged.clamp(0, 1) if clamp else enlarged, output], dim=-1)
    return from_unit(output[0].permute(1, 2, 0).numpy(), kind, range)


def _write(job: Job, pixels: np.ndarray, about: About, mark: str, quality: int) -> None:
    data = encode(pixels, SUFFIXES[job.target.suffix.lower()], about, mark, quality)
    make_folder(job.target.parent)
    replace_file(job.target, data)
