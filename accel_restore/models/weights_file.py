"""A file of weights before its tensors are read: where it lies, and what its header and its metadata say."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from accel_restore.errors import UserError

WEIGHTS = "best.safetensors"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = {".safetensors", ".pth", ".pt", ".ckpt", ".bin"}


def find_weights(name: str | Path) -> Path:
    """The file of weights that `name` stands for: itself, or where nothing lies there and it reads owner/name, the
    best.safetensors of that repository, downloaded once into the Hub's cache.

    Raises: UserError, without the name in it, where it is neither here nor to be had from the Hub.
    """
    path = Path(name)
    if path.exists() or path.suffix in _FILES or not _REPOSITORY.fullmatch(str(name)):
        return path
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(hf_hub_download(str(name), WEIGHTS))
    except errors.LocalEntryNotFoundError:
        reason = "HF_HUB_OFFLINE is set, and they were" if constants.HF_HUB_OFFLINE else "no connection, and they were"
        reason += " not downloaded before"
    except errors.GatedRepoError:
        reason = "its owner grants access; ask for it there, and log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "no such repository, or a private one: log in with `hf auth login`"
    except errors.EntryNotFoundError:
        reason = f"that repository holds no {WEIGHTS}, as `accel-restore push` writes it"
    except Exception as error:  # of the library, of the one below it that talks HTTP, or of the network
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise UserError(f"is no file here, and cannot be had from the Hugging Face Hub ({reason:.300})")


def require_file(path: Path) -> None:
    """Raise `UserError` for what cannot be a file of weights."""
    if path.is_dir():
        raise UserError("is a folder; name the best.safetensors in it")
    if not path.is_file():  # a pipe would be waited for, a device read without end
        if path.name == WEIGHTS and (copy := _copy(path.parent)):
            raise UserError(f"does not exist; its run has a copy, {copy}")
        if path.name == WEIGHTS and (path.parent / "checkpoints").is_dir():
            raise UserError("does not exist yet: its run has not come to a validation")
        raise UserError("is no file of weights" if path.exists() else "does not exist")


def _copy(run: Path) -> Path | None:
    """The best weights in the newest commit of a run's folder that holds some."""
    copies = run.glob(f"checkpoints/step-*/{WEIGHTS}")
    return max(copies, key=lambda copy: (len(copy.parent.name), copy.parent.name), default=None)


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[list[int], bool]]]:
    """The metadata of a safetensors file, and of each tensor its shape and whether it holds floats."""
    try:
        require_file(path)
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            tensors = {
                name: (part.get_shape(), part.get_dtype().startswith(("F", "BF"))) for name, part in slices.items()
            }
            return file.metadata() or {}, tensors
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot be read as safetensors ({error}){_remedy(path)}") from None


def _remedy(path: Path) -> str:
    """What to do about a file of weights that cannot be read."""
    if path.suffix != ".safetensors":
        return "; use the best.safetensors of a run"
    return "; it is empty, cut off or damaged: copy it again, or download it again"


def read_metadata(stored: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the metadata say of model, data and metrics."""
    try:
        model, data, metrics = (
            json.loads(text, parse_constant=_refuse_constant)
            for text in (stored["model"], stored["data"], stored.get("metrics", "{}"))
        )
        found = model["name"], model["arguments"], metrics, data["channels"], data.get("scale", 1)
        if [type(value) for value in found] != [str, dict, dict, int, int] or not model["name"].isprintable():
            raise TypeError(found)
        if data["channels"] not in (1, 3) or data.get("scale", 1) not in (1, 2, 3, 4):
            raise ValueError(data)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError("holds no accel_restore model; use the best.safetensors of a run") from None
    if "sha256" not in stored:
        raise UserError("has lost the sha256 of its weights, without which damage does not show; copy it again")
    return {"model": model, "data": data, "metrics": metrics}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def digest(weights: dict[str, Tensor]) -> str:
    """The sha256 of the tensors' bytes in order of their names; safetensors loads a flipped bit without a word."""
    state = hashlib.sha256()
    for name in sorted(weights):
        state.update(name.encode())
        state.update(weights[name].contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
