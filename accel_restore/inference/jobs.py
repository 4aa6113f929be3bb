"""What a `restore` has to do: its inputs, their targets, and which of them are done already."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from accel_restore import __version__
from accel_restore.data.encode import SUFFIXES, read_mark, written_suffix
from accel_restore.data.file_search import EXTENSIONS, search_images
from accel_restore.data.parallel import each_ahead
from accel_restore.data.pixels import is_float
from accel_restore.errors import UserError, raise_problems
from accel_restore.inference.apply import Settings
from accel_restore.inference.restorer import Restorer
from accel_restore.utils.files import short_name
from accel_restore.utils.glob import in_any_form


@dataclass(frozen=True)
class Job:
    """A file to restore and the file to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class LeftOut:
    """What the search for inputs has left out."""

    notes: list[str] = field(default_factory=list)  # entries that are no images, counted by kind
    problems: list[str] = field(default_factory=list)  # folders that cannot be read


def find_jobs(
    inputs: list[str],
    output: Path,
    recursive: bool,
    suffix: str | None,
    weights: Path,
    left_out: LeftOut | None = None,
    suffix_of: Callable[[str], str] = lambda suffix: written_suffix(suffix, None, 3),
) -> list[Job]:
    """Return the jobs for `inputs` (files, folders, patterns); `output` is a file for one file, else a folder.

    Files keep their path below the folder or the fixed part of the pattern. Their suffix is `suffix`, or what
    `suffix_of` returns for that of the input. What is left out of folders is added to `left_out`.

    Raises: UserError if an input is missing, two files have one target, or a target is an input or the `weights`.
    """
    _ = status_of(output)
    left_out = left_out or LeftOut()
    found = [(root, name) for given in inputs for root, name in _find(given, output, recursive, left_out)]
    alone = len(inputs) == 1 and Path(inputs[0]).expanduser().is_file()
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
                f"{output}: is neither a folder nor a file in a format that can be written ({' '.join(SUFFIXES)})"
            )
        names = [(root / name, Path(name).with_suffix(suffix or suffix_of(Path(name).suffix))) for root, name in found]
        jobs, kind = [Job(source, output / name) for source, name in names], "folder"
    jobs = list({job.source: job for job in jobs}.values())
    _check_targets(jobs, kind, weights)
    return jobs


def suffix_for(restorer: Restorer, suffix: str) -> str:
    """Return the suffix of what these weights make of a file with this suffix; see `written_suffix`."""
    pixels = restorer.pixels
    crosses = is_float(pixels.input) != is_float(pixels.gt)
    return written_suffix(suffix, pixels.gt if crosses else None, restorer.channels)


def status_of(path: Path) -> os.stat_result | None:
    """Return the status of what a path leads to; None if there is nothing.

    Raises: UserError for a path that cannot exist or is not accessible.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _find(given: str, output: Path, recursive: bool, left_out: LeftOut) -> Iterator[tuple[Path, str]]:
    """Yield the images of an input: its root folder, and their paths below it."""
    place = in_any_form(Path(given).expanduser())
    exists = status_of(place) is not None
    if exists and not place.is_dir():
        yield place.parent, place.name
        return
    if exists:
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
    search = search_images(pattern, root, " (--recursive searches them)")
    names = [n for n in search.names if not (is_below and (root / n).resolve().is_relative_to(own))]
    if not names:
        raise_problems(f"{given}: no images", search.problems)
        holds = f"; it holds {search.left_out}" if search.left_out else ""
        raise UserError(f"{given}: holds no images ({' '.join(sorted(EXTENSIONS))}){holds}")
    left_out.problems.extend(search.problems)
    if search.left_out:
        left_out.notes.append(f"left out of {given}: {search.left_out}")
    yield from ((root, name) for name in names)


def _check_targets(jobs: list[Job], kind: str, weights: Path) -> None:
    """Raise `UserError` for invalid targets; `kind` of OUTPUT is file or folder."""
    needed = {_identity(job.source): f"the input {job.source}" for job in jobs} | {_identity(weights): "the weights"}
    place = _place_of(jobs[0].target)
    folds_case, parents = _folds_case(place), {}
    problems: list[str] = []
    taken: dict[str, Path] = {}
    for job in jobs:
        parent = job.target.parent
        if parent not in parents:
            parents[parent] = os.path.realpath(parent)  # links between folders of the output
        key = f"{parents[parent]}/{job.target.name}"
        other = taken.setdefault(unicodedata.normalize("NFC", key).casefold() if folds_case else key, job.source)
        if other != job.source:
            problems.append(f"{job.source}: has the same target as {other}, {job.target}; restore them separately")
        identity = _identity(job.target)
        if identity is None:
            continue
        if identity in needed:
            problems.append(f"{job.target}: is {needed[identity]}, which is never overwritten; name another {kind}")
        elif job.target.is_dir():
            problems.append(f"{job.target}: is a folder, but the target of {job.source}")
    raise_problems("nothing was restored", problems)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is the same for all names of a file; None if there is none or it is out of reach."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _place_of(path: Path) -> Path:
    """Return the nearest existing folder above a path."""
    return next((folder for folder in path.absolute().parents if _identity(folder) is not None), Path("/"))


def _folds_case(folder: Path) -> bool:
    """Whether the file system takes names that differ only in upper and lower case for one."""
    for place in (folder.resolve(), *folder.resolve().parents):
        other = place.with_name(place.name.swapcase()) if place.name else place
        if other != place:
            return _identity(other) == _identity(place)
    return False


def recipe_of(restorer: Restorer, settings: Settings, compare: bool, quality: int) -> str:
    """Return what decides, together with the content of an input, what a restored file holds."""
    made_by = [
        restorer.metadata["sha256"], settings.tile, settings.tile_overlap, settings.self_ensemble, settings.precision,
        compare, quality,
    ]  # fmt: skip
    if pixels := restorer.pixels.metadata():  # without float pixels, marks of older versions stay valid
        made_by.append(pixels)
    return json.dumps(made_by)


def mark_of(recipe: str, digest: str) -> str:
    """Return the mark written into a restored file, unique to the recipe and the sha256 of the input's content."""
    return f"accel_restore {__version__} {hashlib.sha256(f'{recipe} {digest}'.encode()).hexdigest()[:32]}"


def left_to_do(jobs: list[Job], recipe: str) -> tuple[list[Job], list[str]]:
    """Return the jobs that are not done, and a message for each target that was made otherwise.

    Only inputs whose targets exist are read: an input is known by its content, as times and sizes can be equal.
    """

    def find_digest(job: Job) -> str | None:
        try:
            with job.source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:  # reported when it is restored
            return None

    marks = {job: read_mark(job.target) for job in jobs if _identity(job.target) is not None}
    done, problems = set(), []
    for (job, mark), digest in zip(marks.items(), each_ahead(find_digest, marks), strict=True):
        if digest is not None and mark == mark_of(recipe, digest):
            done.add(job)
        elif digest is not None:
            problems.append(f"{job.target}: was not made from {job.source} with these weights and settings")
    return [job for job in jobs if job not in done], problems


def remove_unfinished(jobs: list[Job]) -> None:
    """Remove half-written files of killed commands next to the targets."""
    names = {(job.target.parent, short_name(job.target)) for job in jobs}
    for folder in {job.target.parent for job in jobs}:
        for path in folder.glob(".*.tmp") if folder.is_dir() else ():
            parts = path.name.split(".")  # "", the short name, the process, "tmp"
            if len(parts) == 4 and (folder, parts[1]) in names:
                path.unlink(missing_ok=True)
