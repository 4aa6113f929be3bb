"""A file of weights before its tensors are read: its path, its header and its metadata."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from accel_restore.errors import UserError
from accel_restore.models import MOST_CHANNELS, ImageSpec
from accel_restore.utils.file_kind import describe_other_file, describe_torch_file
from accel_restore.utils.utf8 import problem_of_name

WEIGHTS = "best.safetensors"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ANNEX_HINT = "; run `git annex get` in its repository"
_FILES = {".safetensors", ".pth", ".pt", ".ckpt", ".bin"}


def find_weights(name: str | Path) -> Path:
    """Return the path of the file of weights that `name` stands for.

    `name` is a path. If it does not exist and has the form owner/name, the best.safetensors of that repository on the
    Hugging Face Hub is downloaded once into its cache.

    Raises: UserError, without the name, if the file neither exists here nor can be downloaded.
    """
    path = Path(name)
    if path.exists() or path.suffix in _FILES or not _REPOSITORY.fullmatch(str(name)):
        return path
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(hf_hub_download(str(name), WEIGHTS))
    except errors.LocalEntryNotFoundError:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no connection"
        reason += ", and the weights were not downloaded before"
    except errors.GatedRepoError:
        reason = "access is restricted; request it on the repository's page, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "the repository does not exist or is private; for a private one log in with `hf auth login`"
    except errors.EntryNotFoundError:
        reason = f"the repository has no {WEIGHTS}; `accel-restore push` uploads one"
    except Exception as error:  # from the library, its HTTP library or the network
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise UserError(f"does not exist here, and cannot be downloaded from the Hugging Face Hub ({reason:.300})")


def require_file(path: Path) -> None:
    """Raise `UserError` unless the path is a file that safetensors can open."""
    if path.is_dir():
        raise UserError("is a folder; give the best.safetensors in it")
    if not path.is_file():  # reading a pipe would wait, and a device may never end
        if path.name == WEIGHTS and (copy := _copy(path.parent)):
            raise UserError(f"does not exist; its run has a copy, {copy}")
        if path.name == WEIGHTS and (path.parent / "checkpoints").is_dir():
            raise UserError("does not exist yet; its run has not completed a validation")
        if path.is_symlink() and not path.exists():
            hint = _ANNEX_HINT if "annex" in str(path.readlink()) else ""
            raise UserError(f"is a link to {path.readlink()!s:.200}, which does not exist{hint}")
        raise UserError("is not a regular file" if path.exists() else "does not exist")
    if problem := problem_of_name(path):
        raise UserError(problem)
    if not os.access(path, os.R_OK):  # safetensors reports a missing file
        raise UserError("cannot be read (Permission denied); change its permissions")


def starts_as_safetensors(path: Path) -> bool:
    """Return whether a file starts like safetensors: with a JSON object after its size. Raises: UserError."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises: UserError, without the path."""
    with _as_user_error(path):
        return load_file(path)


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        what = describe_other_file(path) or describe_torch_file(path)
        raise UserError(what or f"cannot be read as safetensors ({error}){_remedy(path)}") from None


def _copy(run: Path) -> Path | None:
    """Return the best weights in the newest commit of a run that has some."""
    copies = run.glob(f"checkpoints/step-*/{WEIGHTS}")
    return max(copies, key=lambda copy: (len(copy.parent.name), copy.parent.name), default=None)


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[list[int], bool]]]:
    """Return the metadata of a safetensors file, and for each tensor its shape and whether it is floating point."""
    require_file(path)
    with _as_user_error(path), safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        tensors = {name: (part.get_shape(), part.get_dtype().startswith(("F", "BF"))) for name, part in slices.items()}
        return file.metadata() or {}, tensors


def _remedy(path: Path) -> str:
    """Return the end of the message about a file of weights that cannot be read."""
    if path.suffix != ".safetensors":
        return "; use the best.safetensors of a run"
    return "; it is empty, truncated or damaged; copy or download it again"


def read_metadata(stored: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the parsed metadata: `model`, `data` and `metrics`."""
    try:
        model, data, metrics = (
            json.loads(text, parse_constant=_refuse_constant)
            for text in (stored["model"], stored["data"], stored.get("metrics", "{}"))
        )
        images = image_spec(data)
        found = model["name"], model["arguments"], metrics, *images
        if [type(value) for value in found] != [str, dict, dict, int, int, int] or not model["name"].isprintable():
            raise TypeError(found)
        channels = images.channels, images.input_channels
        if min(channels) < 1 or max(channels) > MOST_CHANNELS or images.scale not in (1, 2, 3, 4):
            raise ValueError(data)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError("is not a model of accel_restore; use the best.safetensors of a run") from None
    if "sha256" not in stored:
        raise UserError("has no sha256 of its weights, so damage could not be detected; copy it again")
    return {"model": model, "data": data, "metrics": metrics}


def image_spec(data: dict[str, Any]) -> ImageSpec:
    """Return the images of the model that a file's metadata `data` describes."""
    return ImageSpec.of(data["channels"], data.get("scale", 1), data.get("input_channels"))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def digest(weights: dict[str, Tensor]) -> str:
    """Return the sha256 of the tensors in order of their names. safetensors itself does not detect a flipped bit."""
    state = hashlib.sha256()
    for name in sorted(weights):
        state.update(name.encode())
        state.update(raw_bytes(weights[name]))
    return state.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, in the order of its elements, without a copy if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
