"""Restore files: find inputs and their targets, skip what is done, restore the rest."""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from accel_restore import __version__
from accel_restore.config.data import MAX_PIXELS
from accel_restore.data.decode import read_header, read_image
from accel_restore.data.encode import DEEP, SUFFIXES, About, encode, read_about, read_mark
from accel_restore.data.file_search import EXTENSIONS
from accel_restore.data.image_formats import ImageError
from accel_restore.errors import UserError, raise_problems
from accel_restore.inference.apply import Settings
from accel_restore.inference.restorer import Restorer
from accel_restore.models.blocks import upscale
from accel_restore.utils.files import make_folder, replace_file
from accel_restore.utils.glob import matches

_MAX_WAITING = 2  # restored images that wait to be written


@dataclass(frozen=True)
class Job:
    """A file to restore and the file to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Photograph:
    """The upright pixels (H, W, C) of a file, uint8 or uint16, and its other data to keep."""

    pixels: np.ndarray
    about: About


def find_jobs(inputs: list[str], output: Path, recursive: bool, suffix: str | None) -> list[Job]:
    """Return the jobs for `inputs` (files, folders, patterns); `output` is a file for one file, else a folder.

    Files keep their path below the folder or the fixed part of the pattern. They keep their suffix unless `suffix` is
    given; formats that cannot be written become .png.

    Raises: UserError if an input is missing, two files have one target, or a target is an input.
    """
    found = [(root, name) for given in inputs for root, name in _find(given, output, recursive)]
    alone = len(inputs) == 1 and Path(inputs[0]).is_file()
    if output.suffix.lower() in SUFFIXES and not output.is_dir():
        if not alone:
            raise UserError(f"{output}: is one file, but INPUT may be several files; name a folder")
        if suffix is not None and SUFFIXES[suffix] != SUFFIXES[output.suffix.lower()]:
            raise UserError(f"{output}: does not match --format; omit --format, or name the file {suffix}")
        jobs, kind = [Job(found[0][0] / found[0][1], output)], "file"
    else:
        is_name = output.suffix.lower() in EXTENSIONS or (alone and output.suffix)
        if not output.is_dir() and (output.exists() or is_name):
            raise UserError(
                f"{output}: is neither a folder nor a file format that can be written ({' '.join(SUFFIXES)})"
            )
        jobs, kind = [Job(root / name, output / _renamed(Path(name), suffix)) for root, name in found], "folder"
    jobs = list({job.source: job for job in jobs}.values())
    _check_targets(jobs, kind)
    return jobs


def _find(given: str, output: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    """Yield the images of an input: its root folder, and their paths below it."""
    place = Path(given).expanduser()
    if place.is_file():
        yield place.parent, place.name
        return
    if place.is_dir():
        if output.is_dir() and output.samefile(place):
            raise UserError(f"{output}: is the folder of the inputs, which are never overwritten; name another folder")
        root, pattern = place, "**/*" if recursive else "*"
    elif re.search(r"[*?[]", given):
        parts = place.parts
        fixed = next(number for number, part in enumerate(parts) if re.search(r"[*?[]", part))
        root, pattern = Path(*parts[:fixed]), "/".join(parts[fixed:])
    else:
        raise UserError(f"{given}: does not exist; name a file, a folder or a pattern such as 'photos/*.jpg'")
    own = output.resolve()  # outputs of an earlier command below the inputs are no inputs
    is_below = own != root.resolve() and own.is_relative_to(root.resolve())
    names = [
        name
        for name in sorted(set(matches(pattern, root)))
        if Path(name).suffix.lower() in EXTENSIONS
        and (root / name).is_file()
        and not (is_below and (root / name).resolve().is_relative_to(own))
    ]
    if not names:
        hint = "; --recursive includes subfolders" if place.is_dir() and not recursive else ""
        raise UserError(f"{given}: holds no images ({' '.join(sorted(EXTENSIONS))}){hint}")
    yield from ((root, name) for name in names)


def _renamed(name: Path, suffix: str | None) -> Path:
    return name.with_suffix(suffix or (name.suffix if name.suffix.lower() in SUFFIXES else ".png"))


def _check_targets(jobs: list[Job], kind: str) -> None:
    """Raise `UserError` for invalid targets; `kind` of OUTPUT is file or folder."""
    sources = {(status.st_dev, status.st_ino): job.source for job in jobs for status in [job.source.stat()]}
    problems: list[str] = []
    taken: dict[Path, Path] = {}
    for job in jobs:
        other = taken.setdefault(job.target, job.source)
        if other != job.source:
            problems.append(f"{job.source}: has the same target as {other}, {job.target}; restore them separately")
        if job.target.is_dir():
            problems.append(f"{job.target}: is a folder, but the target of {job.source}")
        elif job.target.exists():
            status = job.target.stat()
            if (same := sources.get((status.st_dev, status.st_ino))) is not None:
                problems.append(f"{job.target}: is the input {same}, which is never overwritten; name another {kind}")
    raise_problems("nothing was restored", problems)


def mark_of(job: Job, restorer: Restorer, settings: Settings, compare: bool, quality: int) -> str:
    """Return the mark written into a restored file, unique to its input, weights and settings."""
    status = job.source.stat()
    made_by = [
        restorer.metadata["sha256"], settings.tile, settings.tile_overlap, settings.self_ensemble, settings.precision,
        compare, quality, status.st_size, status.st_mtime_ns,
    ]  # fmt: skip
    return f"accel_restore {__version__} {hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]}"


def left_to_do(jobs: list[Job], marks: dict[Job, str], overwrite: bool) -> list[Job]:
    """Return the jobs that are not done. Raises: UserError if other files exist in their place, unless `overwrite`."""
    left, problems = [], []
    for job in jobs:
        if not job.target.exists():
            left.append(job)
        elif read_mark(job.target) != marks[job]:
            left.append(job)
            problems.append(f"{job.target}: was not made from {job.source} with these weights and settings")
    if not overwrite:
        raise_problems("target files exist; give --overwrite to replace them, or another OUTPUT", problems)
    return left


def remove_unfinished(jobs: list[Job]) -> None:
    """Remove half-written files of killed commands next to the targets."""
    names = {job.target for job in jobs}
    for folder in {job.target.parent for job in jobs}:
        for path in folder.glob(".*.tmp") if folder.is_dir() else ():
            whole = re.fullmatch(r"\.(.+)\.[0-9]+\.tmp", path.name)
            if whole and folder / whole[1] in names:
                path.unlink()


def restore_files(
    jobs: list[Job],
    marks: dict[Job, str],
    restorer: Restorer,
    settings: Settings,
    *,
    compare: bool = False,
    quality: int = 95,
    max_pixels: int = MAX_PIXELS,
    advance: Callable[[float], None] | None = None,
) -> list[str]:
    """Restore files, reading one ahead and writing in threads; return a message for each file that failed.

    `advance` receives the number of files done since its last call, including fractions.

    Raises: UserError if a target cannot be written because of the disk.
    """
    problems: list[str] = []
    writing: deque[tuple[Job, Future]] = deque()

    def finish_write() -> None:
        job, future = writing.popleft()
        try:
            future.result()
        except OSError as error:
            if error.errno is not None:  # from the disk, not the encoder
                raise UserError(f"{job.target}: cannot be written ({error.strerror})") from error
            problems.append(f"{job.source}: cannot be written as {job.target.name} ({error})")
        except ValueError as error:
            problems.append(f"{job.source}: cannot be written as {job.target.name} ({error})")

    with ThreadPoolExecutor(_MAX_WAITING + 1) as pool:
        for job, photograph in _ahead(pool, lambda job: _read(job, restorer.channels, max_pixels), jobs):
            if isinstance(photograph, ImageError):
                problems.append(f"{job.source}: {photograph}")
                continue
            try:
                restored = _restored(photograph, job, restorer, settings, compare, advance)
            except UserError as error:
                problems.append(f"{job.source}: {error}")
                continue
            writing.append((job, pool.submit(_write, job, restored, photograph.about, marks[job], quality)))
            while len(writing) >= _MAX_WAITING:
                finish_write()
        while writing:
            finish_write()
    return problems


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


def _read(job: Job, channels: int, max_pixels: int) -> Photograph:
    try:
        bits = read_header(job.source, max_pixels).bits
        return Photograph(read_image(job.source, channels, bits, max_pixels), read_about(job.source, channels))
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror or error})") from None


def _restored(
    photograph: Photograph,
    job: Job,
    restorer: Restorer,
    settings: Settings,
    compare: bool,
    advance: Callable[[float], None] | None,
) -> np.ndarray:
    """Return the pixels (H, W, C) to write, in 16 bits if both the photograph and the format have them."""
    white = np.iinfo(photograph.pixels.dtype).max
    image = torch.from_numpy(photograph.pixels.astype(np.float32)).permute(2, 0, 1)[None].div_(white)
    output = restorer.restore(image, settings, advance)
    if compare:
        output = torch.cat([upscale(image, restorer.scale).clamp(0, 1), output], dim=-1)
    deep = white > 255 and SUFFIXES[job.target.suffix.lower()] in DEEP
    return _levels(output, np.uint16 if deep else np.uint8)


def _levels(image: Tensor, dtype: type) -> np.ndarray:
    """Return an image (1, C, H, W) in [0, 1] as rounded levels (H, W, C)."""
    return (image[0].permute(1, 2, 0) * np.iinfo(dtype).max).round().numpy().astype(dtype)


def _write(job: Job, pixels: np.ndarray, about: About, mark: str, quality: int) -> None:
    data = encode(pixels, SUFFIXES[job.target.suffix.lower()], about, mark, quality)
    make_folder(job.target.parent)
    replace_file(job.target, data)
