"""Output files of commands: checked before the work starts, and written in one step."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from accel_restore.data.file_search import EXTENSIONS
from accel_restore.errors import UserError
from accel_restore.utils.files import replace_file, to_json

_USER_FILES = {*EXTENSIONS, ".yaml", ".yml", ".safetensors"}  # suffixes that a report never replaces


def check_writable(file: Path | None, picture: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Raise `UserError` unless the folder of `file` exists and `file` is none of the `inputs`.

    A picture needs a known suffix. Other files never replace images, configurations or weights.
    """
    if file is None:
        return
    if not file.parent.is_dir():
        raise UserError(f"{file}: the folder {file.parent} does not exist; make it, or name another file")
    if file.is_dir():
        raise UserError(f"{file}: is a folder; name a file in it")
    if file.exists() and any(input.exists() and file.samefile(input) for input in inputs):
        raise UserError(f"{file}: is an input, which is never overwritten; name another file")
    if file.exists() and not picture and file.suffix.lower() in _USER_FILES:
        raise UserError(f"{file}: exists and is not a report; name another file")
    if picture and file.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"{file}: unknown picture format '{file.suffix}'; use .png or .jpg")


def check_new(file: Path | None, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Raise `UserError` if `file` exists, unless it may be replaced, or where `check_writable` refuses any file."""
    if file is None:
        return
    if file.is_file() and not any(input.exists() and file.samefile(input) for input in inputs):
        if not overwrite:
            raise UserError(f"{file}: exists; name another file, or write --overwrite to replace it")
        return
    check_writable(file, inputs=inputs)


def write_report(file: Path, report: Any) -> None:
    """Write `report` as JSON. Raises: UserError on failure."""
    write_output(file, to_json(report, indent=2))


def write_output(file: Path, text: str) -> None:
    """Write a file, atomically unless it is a link, a pipe or a device. Raises: UserError on failure."""
    try:
        if file.is_symlink() or (file.exists() and not file.is_file()):  # such as /dev/stdout
            file.write_bytes(text.encode())
        else:
            replace_file(file, text.encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error
