"""The module that a run begins with: built by name, or taken from a file of weights, for fine-tuning.

A file is taken for a stranger's: it is read as tensors and nothing in it is executed.
"""

import copy
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from accel_restore.errors import UserError
from accel_restore.models import build_model, weights_file
from accel_restore.models.load_weights import as_user_error, limited, load_module
from accel_restore.models.parameters import keep_in_eval
from accel_restore.models.spandrel_models import RECOGNISED, fits, probe_image, recognise
from accel_restore.models.weights_file import digest

if TYPE_CHECKING:
    from accel_restore.config.schema import Model

# What trainers put around a model's weights in a file, the best first, and before each name.
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_MOST = 4  # times the size of its file that weights may take, as some are shared


def build_or_load_model(config: "Model", channels: int, scale: int) -> nn.Module:
    """The module that `model` of the configuration describes, with the weights of its checkpoint, if it names one.

    Raises: UserError where it cannot be built, or the file does not hold weights for it or for such images.
    """
    if config.checkpoint is None:
        return build_model(config.name, config.arguments, channels, scale)
    path = Path(config.checkpoint).expanduser()
    try:
        return _open(path, config, channels, scale)
    except UserError as error:
        raise UserError(f"model.checkpoint: {path!s:.500}: {error}") from error.__cause__


def describe(config: "Model") -> dict[str, Any]:
    """The name and arguments that rebuild the module of `build_or_load_model` from best.safetensors alone."""
    if config.name is not None:
        return {"name": config.name, "arguments": config.arguments}
    stored = _read_stored(Path(config.checkpoint).expanduser())
    return weights_file.read_metadata(stored)["model"] if _is_ours(stored) else {"name": RECOGNISED, "arguments": {}}


def _open(path: Path, config: "Model", channels: int, scale: int) -> nn.Module:
    stored = _read_stored(path)
    if _is_ours(stored):
        data = weights_file.read_metadata(stored)["data"]
        _check_images(data["channels"], data.get("scale", 1), channels, scale)
    if config.name is None and _is_ours(stored):
        return load_module(path)[0]
    weights = _read_weights(path)
    if "sha256" in stored and digest(weights) != stored["sha256"]:
        raise UserError("is damaged (sha256 of the weights differs); copy it again")
    if config.name is not None:
        model = build_model(config.name, config.arguments, channels, scale)
        _fill(model, config.name, weights)
        return model
    header = {name: (list(tensor.shape), tensor.is_floating_point()) for name, tensor in weights.items()}
    with as_user_error(RECOGNISED):
        with limited(header):
            model, *images = recognise(weights)
        _check_images(*images, channels, scale)
        for module in model.modules():
            if "drop" in type(module).__name__.lower():
                keep_in_eval(module)  # its rate is not in the weights, and its draws would be no function of the step
        _check_training(model, channels, scale)
    return model.float()


def _check_images(channels: int, scale: int, wanted_channels: int, wanted_scale: int) -> None:
    for key, value, wanted in (("channels", channels, wanted_channels), ("scale", scale, wanted_scale)):
        if value != wanted:
            raise UserError(f"is a model for data.{key}={value}, but data.{key} is {wanted}; set it, or another file")


def _check_training(model: nn.Module, channels: int, scale: int) -> None:
    """Try a step of a model known by its weights alone; what its output does not depend on is not trained.

    Raises: UserError where it is another one in training, or would not be recognised by what it is saved as.
    """
    tried, image = copy.deepcopy(model).train(), probe_image(channels, batch=2)
    output = tried(image)
    if not fits(output, image, scale):
        raise UserError("is a model that gives something else than an image while it is trained, so it cannot be")
    output.sum().backward()
    for own, parameter in zip(model.parameters(), tried.parameters(), strict=True):
        own.requires_grad_(own.requires_grad and parameter.grad is not None)
    if _is_changed_by_evaluation(tried.eval(), image):
        raise UserError("is a model that changes its own weights when it is not trained, so they cannot be kept equal")
    weights = model.state_dict()
    again, *images = recognise(weights)
    if list(again.state_dict()) != list(weights) or images != [channels, scale]:
        raise UserError("is a model that spandrel would not recognise again once it is saved")


@torch.no_grad()
def _is_changed_by_evaluation(model: nn.Module, image: Tensor) -> bool:
    """Whether a model fuses convolutions in place after they were trained, as SPAN does; changes its weights."""
    for parameter in model.parameters():
        parameter.mul_(1.01)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(image)
    return any(not tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def _fill(model: nn.Module, name: str, weights: dict[str, Tensor]) -> None:
    """Put the weights into the model; each tensor must be there, and no other."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in wanted]
    told = [f"{what}: {_first(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    if told:
        raise UserError(f"does not fit the model '{name}' and its arguments ({'; '.join(told)})")
    other = [f"{key} {list(weights[key].shape)}, not {list(wanted[key].shape)}" for key in wanted
             if key in weights and weights[key].shape != wanted[key].shape]  # fmt: skip
    if other:
        raise UserError(
            f"does not fit the model '{name}', its arguments, data.channels or data.scale (shape of {_first(other)})"
        )
    model.load_state_dict({**wanted, **weights})  # batch counts are missing in old files


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name:.100}" for name in names[:3]) + more


def _is_ours(stored: dict[str, str]) -> bool:
    return {"model", "data"} <= stored.keys()


def _is_safetensors(path: Path) -> bool:
    weights_file.require_file(path)
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_stored(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; of others, none."""
    try:
        return weights_file.read_header(path)[0] if _is_safetensors(path) else {}
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names, without what trainers put around them."""
    tree: Any = safetensors.torch.load_file(path) if _is_safetensors(path) else _read_torch(path)
    for key in _WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
            break
    if not (isinstance(tree, dict) and tree and all(map(_is_weight, tree.items()))):
        raise UserError("holds no state dict: tensors by their names")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tree):
            tree = {name.removeprefix(prefix): tensor for name, tensor in tree.items()}
    if sum(tensor.numel() * tensor.element_size() for tensor in tree.values()) > _MOST * path.stat().st_size:
        raise UserError("claims to hold many times more than its size; it is damaged or hostile")
    for name, tensor in tree.items():
        if tensor.is_floating_point() and tensor.isnan().any():
            raise UserError(f"holds weights that are NaN ({name:.100}), of a run that has diverged; take another file")
    return dict(tree)


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, tensor = item
    if not (isinstance(name, str) and isinstance(tensor, Tensor)):
        return False
    return tensor.layout == torch.strided and tensor.device.type == "cpu"


def _read_torch(path: Path) -> Any:
    """What torch reads of a .pth file without executing anything in it."""
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"
        if is_archive:  # torch stores members as they are; what is packed can grow without bounds
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise UserError("is packed to grow beyond its size; it is damaged or hostile")
        # Mapped, a tensor cannot reach beyond the file, whatever size it claims; nor is it read before it is used.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UserError:
        raise
    except Exception as error:  # torch's words for them advise to execute the file
        if type(error).__name__ == "UnpicklingError":
            said = "it holds objects beside tensors, which are not unpickled"
        else:
            said = f"{type(error).__name__}; it is damaged, or was not made by torch.save"
        raise UserError(f"cannot be read as weights ({said}); save the model's state_dict() alone") from error
