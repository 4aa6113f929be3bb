"""Reading of .pth files, as torch.save writes them, as tensors alone: nothing in them is executed."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from accel_restore.errors import UserError
from accel_restore.utils.file_kind import describe_other_file

_NAMED = 3  # classes that a message names


def read_torch_file(path: Path) -> Any:
    """Return what torch reads from a .pth file. Raises: UserError, without the path, with what the file is."""
    is_archive, start = False, b""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        is_archive = start == b"PK\x03\x04"
        if is_archive:  # torch does not compress members; compressed ones could expand without bounds
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise UserError("is compressed and would expand beyond its size; it is damaged or hostile")
        # In a memory map, a tensor cannot reach beyond the file whatever size it claims, and is read only when used.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # torch's own message advises to execute the file
        if what := describe_other_file(path):
            raise UserError(what) from error
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot be read ({error.strerror})") from error
        if path.suffix == ".safetensors" and (is_archive or start.startswith(b"\x80")):  # torch goes by the suffix
            raise UserError("was written by torch.save and not as safetensors; rename it to .pth") from error
        if type(error).__name__ == "UnpicklingError" and (is_archive or start.startswith(b"\x80")):
            raise UserError(_describe_objects(path)) from error
        raise UserError(
            f"cannot be read as weights ({type(error).__name__}); it is damaged, or was not written by torch.save; "
            "download it again"
        ) from error


def _describe_objects(path: Path) -> str:
    """Return what a file holds other than tensors, by the names of its classes; they are read, not imported."""
    try:
        names = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    except Exception:  # it has the old format, or is damaged
        names = []
    shown = f" ({', '.join(f'{name:.80}' for name in names[:_NAMED])}{', …' * (len(names) > _NAMED)})" if names else ""
    if any(name.startswith("torch.nn.modules.") for name in names):
        what = f"holds a whole model, pickled with its classes{shown}"
    else:
        what = f"holds objects other than tensors{shown}"
    return f"{what}, which are not unpickled; load it in its own project and save model.state_dict()"
