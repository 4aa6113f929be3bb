"""Files that are whole or absent: write beside, fsync, rename, fsync the folder."""

import errno
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

REMOVING = ".removing-"  # how the name of a folder begins that is being removed
_TEMPORARY = re.compile(r"\..+\.[0-9]+\.tmp")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, and force their names to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file of a staging folder and force it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (new names) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing as a folder's fsync
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Give `path` new content in one step: a reader, or a crash, sees the old file or the new one."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(staging, data)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    sync_folder(path.parent)


def discard(path: Path) -> None:
    """Remove a file or a folder; a folder at once, so that a crash leaves no half of it under its name."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f"{REMOVING}{path.name}")
        if doomed.exists():  # left by a crash
            shutil.rmtree(doomed)
        path.rename(doomed)
        sync_folder(path.parent)  # else the machine may lose the new name and not what comes next
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that died in `replace_file` or `discard` have left in a folder."""
    for path in list(folder.iterdir()):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
        elif path.name.startswith(REMOVING):
            shutil.rmtree(path)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON in which NaN and infinities are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def encode_floats(value: Any) -> Any:
    """`value` with infinities and NaN as {"float": "inf"}, which JSON can hold and `decode_floats` reads back."""
    if isinstance(value, dict):
        return {key: encode_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_floats(item) for item in value]
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def decode_floats(value: Any) -> Any:
    """What `encode_floats` was given."""
    if isinstance(value, dict):
        if list(value) == ["float"]:
            return float(value["float"])
        return {key: decode_floats(item) for key, item in value.items()}
    return [decode_floats(item) for item in value] if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
