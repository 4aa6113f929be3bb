"""The files that commands write: refused before the work begins, where that can be known."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from accel_restore.data.file_search import EXTENSIONS
from accel_restore.errors import UserError
from accel_restore.utils.files import replace_file, to_json

_NO_REPORTS = {*EXTENSIONS, ".yaml", ".yml", ".safetensors"}  # suffixes of what users have made themselves


def check_writable(file: Path | None, picture: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Raise `UserError` unless `file` can be made: in a folder that exists, and over none of the `inputs`.

    Of a picture, the suffix must be known; what is none replaces no picture, configuration or weights.
    """
    if file is None:
        return
    if not file.parent.is_dir():
        raise UserError(f"{file}: the folder {file.parent} does not exist; make it, or name another file")
    if file.is_dir():
        raise UserError(f"{file}: is a folder; name a file in it")
    if file.exists() and any(input.exists() and file.samefile(input) for input in inputs):
        raise UserError(f"{file}: is an input, which is never written over; name another file")
    if file.exists() and not picture and file.suffix.lower() in _NO_REPORTS:
        raise UserError(f"{file}: lies there already and is no report; name another file")
    if picture and file.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"{file}: no picture format is called '{file.suffix}'; name it .png or .jpg")


def write_report(file: Path, report: Any) -> None:
    """Write `report` as JSON. Raises: UserError where that fails."""
    write_output(file, to_json(report, indent=2))


def write_output(file: Path, text: str) -> None:
    """Write a file, whole or not at all unless it is a link, a pipe or a device. Raises: UserError where that fails."""
    try:
        if file.is_symlink() or (file.exists() and not file.is_file()):  # such as /dev/stdout
            file.write_bytes(text.encode())
        else:
            replace_file(file, text.encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error
