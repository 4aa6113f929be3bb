"""Commits: checkpoint folders that are complete or absent, whenever the process or the machine dies.

    checkpoints/step-00001200/   model.safetensors optimizer.safetensors ... state.json COMMIT.json

Writing: the files are written and fsynced in a staging folder, then COMMIT.json with their sizes and sha256. The
staging folder is fsynced and renamed, and its parent fsynced. Only then are older commits removed.
Reading: every file must have its recorded size and sha256.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_restore.errors import UserError
from accel_restore.utils.files import Part, discard, remove_temporaries, sync_folder, to_json, write_durably

SCHEMA = 1
_MANIFEST = "COMMIT.json"
_COMMIT = re.compile(r"step-[0-9]+")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a name in this folder: no separators, no `..`
_STAGING, _REPLACED = ".staging-", ".replaced-"


def write_commit(folder: Path, step: int, epoch: int, files: Mapping[str, bytes | Sequence[Part]]) -> Path:
    """Write a commit of these files, given whole or in parts, in `folder` and return its path; it is durable on return.

    Raises: OSError. Older commits are then unchanged, and the new one is absent (or complete, if only the fsync of
    `folder` failed).
    """
    final = folder / f"step-{step:08d}"
    staging = folder / f"{_STAGING}{final.name}"
    if not folder.is_dir():
        folder.mkdir()  # not its parent: a run's folder that has gone is not made again
        sync_folder(folder.parent)
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a crash
        staging.mkdir()
        listed = {}
        for name, data in files.items():
            parts, sha256 = [data] if isinstance(data, bytes) else data, hashlib.sha256()
            write_durably(staging / name, _hashed(parts, sha256))
            listed[name] = {"size": sum(map(len, parts)), "sha256": sha256.hexdigest()}
        manifest = {"schema": SCHEMA, "step": step, "epoch": epoch, "files": listed}
        write_durably(staging / _MANIFEST, to_json(manifest, indent=1).encode())
        sync_folder(staging)
        _put_in_place(staging, final)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return final


def _hashed(parts: Iterable[Part], state: "hashlib._Hash") -> Iterator[Part]:
    for part in parts:
        state.update(part)
        yield part


def _put_in_place(staging: Path, final: Path) -> None:
    """Rename `staging` to `final`. An earlier commit of the same step is moved aside until then, so it is never lost.

    A step has two commits if training was preempted in the validation after it.
    """
    aside = final.with_name(f"{_REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    try:
        staging.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest commits."""
    for old in find_commits(folder)[:-keep]:
        discard(old)


def find_commits(folder: Path) -> list[Path]:
    """Return the commits in `folder`, oldest first, without checking their content."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _COMMIT.fullmatch(path.name)), key=step_of)


def step_of(commit: Path) -> int:
    """Return the optimizer step after which a commit was made."""
    return int(commit.name.removeprefix("step-"))


def is_commit(path: Path) -> bool:
    """Return whether a folder of any name is a commit."""
    return (path / _MANIFEST).is_file()


def put_back(folder: Path) -> None:
    """Restore commits that were moved aside for a replacement that never came. Call it before `find_commits`."""
    for aside in list(folder.glob(f"{_REPLACED}*")):
        final = folder / aside.name.removeprefix(_REPLACED)
        if is_commit(aside) and not final.exists():
            aside.rename(final)


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash has left of unfinished or replaced commits."""
    if not folder.is_dir():
        return
    put_back(folder)
    for path in list(folder.iterdir()):
        if path.name.startswith((_STAGING, _REPLACED)):
            shutil.rmtree(path)
    remove_temporaries(folder)


def read_manifest(commit: Path) -> dict[str, Any]:
    """Return the content of COMMIT.json, whose file names contain no path.

    Raises: UserError if it is missing, damaged or of another schema.
    """
    path = commit / _MANIFEST
    text = _read(path)
    try:
        manifest = json.loads(text)
        if manifest["schema"] != SCHEMA:
            raise UserError(f"{path}: has schema {manifest['schema']!s:.20}, but this version reads {SCHEMA}")
        sound = isinstance(manifest["step"], int) and isinstance(manifest["epoch"], int)
        for name, entry in manifest["files"].items():
            kinds = isinstance(entry["size"], int) and isinstance(entry["sha256"], str)
            sound = sound and kinds and _FILE.fullmatch(name) is not None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path}: is damaged (it does not list the files of a commit); resume from another commit")
    return manifest


def read_commit(commit: Path) -> dict[str, bytes]:
    """Return the files of a commit, each checked against its sha256.

    Raises: UserError that names the missing or damaged file.
    """
    return {name: _read_listed(commit, name, entry) for name, entry in read_manifest(commit)["files"].items()}


def read_file(commit: Path, name: str) -> bytes:
    """Return one file of a commit; see `read_commit`."""
    return _read_listed(commit, name, read_manifest(commit)["files"][name])


def _read_listed(commit: Path, name: str, entry: dict[str, Any]) -> bytes:
    data = _read(commit / name, entry["size"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise UserError(f"{commit / name}: is damaged (sha256 differs); resume from another commit")
    return data


def _read(path: Path, size: int | None = None) -> bytes:
    """Return the content of a file. Its size is checked first, so that a huge file in its place is not read."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise UserError(f"{path}: is {'not a file' if path.exists() else 'missing'}; resume from another commit")
        found = path.stat().st_size
        if size is not None and found != size:
            raise UserError(f"{path}: is damaged ({found} bytes in place of {size}); resume from another commit")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); resume from another commit") from None


def same_content(commit: Path, name: str, other: Path) -> bool:
    """Return whether the file `other` has the same content as the commit's file `name`."""
    try:
        return hashlib.sha256(_read(other)).hexdigest() == read_manifest(commit)["files"][name]["sha256"]
    except UserError:
        return False
