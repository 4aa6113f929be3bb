"""The module that a run starts from: built by name, or loaded from a file of weights for fine-tuning.

Files are untrusted: they are read as tensors, and nothing in them is executed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from accel_restore.errors import UserError
from accel_restore.models import ImageSpec, build_model, weights_file
from accel_restore.models.architectures import is_architecture
from accel_restore.models.branches import freeze_unused
from accel_restore.models.load_weights import as_user_error, build_stored, limited, load_module
from accel_restore.models.objects import build_object
from accel_restore.models.parameters import freeze, keep_in_eval
from accel_restore.models.partial_fit import PartialFit
from accel_restore.models.probe import probe_image
from accel_restore.models.spandrel_models import RECOGNISED, AnyImage, convert_names, recognise
from accel_restore.models.torch_file import read_torch_file
from accel_restore.models.weights_file import digest

if TYPE_CHECKING:
    from accel_restore.config.model import Model
    from accel_restore.config.schema import Config

# Keys under which trainers store a model's weights, in order of preference, and prefixes that they add to names.
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_MOST = 4  # the largest allowed ratio of the size of the weights to the size of their file; tensors may be shared


def initial_model(config: "Config") -> nn.Module:
    """Return the model of step 0, with its frozen parameters. Calls return equal models that share nothing.

    Copies are built in this way, as a user's model may hold what `copy.deepcopy` refuses, such as a lock or a tensor
    with a gradient function. Torch's generator is left as it was.
    """
    return initial_model_and_fit(config)[0]


def initial_model_and_fit(config: "Config") -> tuple[nn.Module, PartialFit | None]:
    """Return the model of step 0, and what `model.partial`, if it is set, took from the checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        model, fit = _build_or_load(config.model, config.data.image_spec)
    side = config.data.patch_size // config.data.scale
    image = probe_image(config.data.image_spec.input_channels, 1, side, side)
    freeze(model, config.train.freeze, fit.taken if fit is not None else None, image)
    return model, fit


def build_or_load_model(config: "Model", images: ImageSpec) -> nn.Module:
    """Return the module that the configuration's `model` describes, with the weights of its checkpoint if there is one.

    Raises: UserError if the module cannot be built, or if the file's weights do not fit it or the images.
    """
    return _build_or_load(config, images)[0]


def _build_or_load(config: "Model", images: ImageSpec) -> tuple[nn.Module, PartialFit | None]:
    if config.checkpoint is None:
        model = _build(config, images)
        _freeze_unused(model, images)
        return model, None
    with _naming(config.checkpoint) as path:
        fit = None
        if config.partial:
            model, fit = _open_in_part(path, config, images)
        else:
            model = _open(path, config, images)
        _freeze_unused(model, images)
        return model, fit


def describe(config: "Model", images: ImageSpec) -> dict[str, Any]:
    """Return the name and arguments with which best.safetensors alone rebuilds the module of `build_or_load_model`."""
    if config.name is not None and is_architecture(config.name):
        from accel_restore.models.build_spandrel import describe_architecture

        return describe_architecture(config.name, config.arguments, images)
    if config.name is not None:
        return {"name": config.name, "arguments": config.arguments}
    assert config.checkpoint is not None  # the configuration requires a name or a checkpoint
    with _naming(config.checkpoint) as path:
        stored = _read_stored(path)
        return (
            weights_file.read_metadata(stored)["model"] if _is_ours(stored) else {"name": RECOGNISED, "arguments": {}}
        )


def _build(config: "Model", images: ImageSpec) -> nn.Module:
    assert config.name is not None  # the configuration requires a name or a checkpoint
    if config.object is not None:
        return build_object(config.object, config.name, images)
    return build_model(config.name, config.arguments, *images)


@contextmanager
def _naming(checkpoint: str) -> Iterator[Path]:
    """Provide the path of the checkpoint, and put it before the message of a `UserError`."""
    path = Path(checkpoint).expanduser()
    try:
        yield path
    except UserError as error:
        raise UserError(f"model.checkpoint: {path!s:.500}: {error}") from error.__cause__


def _open(path: Path, config: "Model", images: ImageSpec) -> nn.Module:
    stored = _read_stored(path)
    if _is_ours(stored):
        own = weights_file.image_spec(weights_file.read_metadata(stored)["data"])
        if own != images:
            _check_images(own, images, _suggest_part(path, config, images))
    if config.name is None and _is_ours(stored):
        return load_module(path)[0]
    weights = _read_intact_weights(path, stored)
    if config.name is not None:
        model = _build(config, images)
        _fill(model, config.name, _with_names_of(model, weights))
        return model
    with as_user_error(RECOGNISED):
        with limited(_header(weights)):
            model, own = recognise(weights)
        _check_images(own, images)
        for module in model.modules():
            if "drop" in type(module).__name__.lower():
                keep_in_eval(module)  # its rate is not in the weights
        _check_recognition(model, images)
    return model.float()


def _open_in_part(path: Path, config: "Model", images: ImageSpec) -> tuple[nn.Module, PartialFit]:
    """Return the model with all tensors of the file that fit it. Raises: UserError if they are less than half."""
    stored = _read_stored(path)
    weights = _read_intact_weights(path, stored)
    if config.name is not None:
        name, model = config.name, _build(config, images)
    else:
        own: dict[str, Any] = weights_file.read_metadata(stored)["model"] if _is_ours(stored) else {"name": RECOGNISED}
        if own["name"] == RECOGNISED:
            raise UserError("does not name its model; set model.name, and the model's arguments, next to model.partial")
        name = own["name"]
        model = build_stored(name, own["arguments"], images, weights_file.read_header(path)[1])
    weights = _with_names_of(model, weights)
    fit = PartialFit.of(model, weights)
    if not fit.is_enough:
        raise UserError(
            f"fits only {fit.share} of the parameters of the model '{name}' ({fit.values_taken:,} of {fit.values:,}), "
            "and model.partial needs at least half; set model.name and its arguments as in the file, or use another "
            "file"
        )
    fit.fill(model, weights)
    return model, fit


def _with_names_of(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights by the names of an architecture of spandrel, where its project has others."""
    if not isinstance(model, AnyImage):
        return weights
    with limited(_header(weights)):  # spandrel builds the network that the names in the file describe
        return convert_names(model, weights)


def _header(weights: dict[str, Tensor]) -> dict[str, tuple[list[int], bool]]:
    return {name: (list(tensor.shape), tensor.is_floating_point()) for name, tensor in weights.items()}


def _suggest_part(path: Path, config: "Model", images: ImageSpec) -> str:
    """Return the advice to set `model.partial`, for a file that is refused; empty if too little would fit."""
    try:
        _, fit = _open_in_part(path, config, images)
    except UserError:
        return ""
    return f", or set model.partial=true to take what fits ({fit.share} of the parameters)"


def _check_images(own: ImageSpec, images: ImageSpec, advice: str = "") -> None:
    for (key, value), wanted in zip(own._asdict().items(), images, strict=True):
        if value != wanted:
            raise UserError(
                f"is a model for data.{key}={value}, but data.{key} is {wanted}; change it or use another file{advice}"
            )


def _freeze_unused(model: nn.Module, images: ImageSpec) -> None:
    """Freeze what an architecture of spandrel never uses. Raises: UserError if it cannot be trained."""
    if not isinstance(model, AnyImage):
        return
    try:
        freeze_unused(model, images)
    except ValueError as error:
        raise UserError(f"is a {type(model).__name__} model, which cannot be trained: it {error}") from error


def _check_recognition(model: nn.Module, images: ImageSpec) -> None:
    """Raise `UserError` if the model would not be recognised once saved."""
    weights = model.state_dict()
    again, found = recognise(weights)
    if list(again.state_dict()) != list(weights) or found != images:
        raise UserError("is a model that spandrel would not recognise again after it is saved")


def _fill(model: nn.Module, name: str, weights: dict[str, Tensor]) -> None:
    """Load the weights into the model. They must hold all of its tensors and no others."""
    wanted, fit = model.state_dict(), PartialFit.of(model, weights)
    what = f"{fit.share} of the parameters fit, which model.partial=true takes; as a whole it " if fit.is_enough else ""
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in wanted]
    misfits = [f"{kind}: {_first(keys)}" for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    if misfits:
        raise UserError(f"{what}does not fit the model '{name}' and its arguments ({'; '.join(misfits)})")
    other = [f"{key} {list(weights[key].shape)}, not {list(wanted[key].shape)}" for key in wanted
             if key in weights and weights[key].shape != wanted[key].shape]  # fmt: skip
    if other:
        raise UserError(
            f"{what}does not fit the model '{name}', its arguments, data.channels or data.scale "
            f"(shape of {_first(other)})"
        )
    model.load_state_dict({**wanted, **weights})  # old files have no num_batches_tracked


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name:.100}" for name in names[:3]) + more


def _is_ours(stored: dict[str, str]) -> bool:
    return {"model", "data"} <= stored.keys()


def _is_safetensors(path: Path) -> bool:
    weights_file.require_file(path)
    return weights_file.starts_as_safetensors(path)


def _read_stored(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, and an empty dictionary for other files."""
    return weights_file.read_header(path)[0] if _is_safetensors(path) else {}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without wrappers and prefixes of trainers."""
    tree: Any = weights_file.read_safetensors(path) if _is_safetensors(path) else read_torch_file(path)
    for key in _WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
            break
    if not (isinstance(tree, dict) and tree and all(map(_is_weight, tree.items()))):
        raise UserError("holds no state dict, that is, tensors by name")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tree):
            tree = {name.removeprefix(prefix): tensor for name, tensor in tree.items()}
    if sum(tensor.numel() * tensor.element_size() for tensor in tree.values()) > _MOST * path.stat().st_size:
        raise UserError("claims to hold many times its size; it is damaged or hostile")
    for name, tensor in tree.items():
        if tensor.is_floating_point() and tensor.isnan().any():
            raise UserError(f"holds NaN weights ({name:.100}), probably of a diverged run; use another file")
    return dict(tree)


def _read_intact_weights(path: Path, stored: dict[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a file, compared with the digest in its metadata if there is one."""
    weights = read_weights(path)
    if "sha256" in stored and digest(weights) != stored["sha256"]:
        raise UserError("is damaged (sha256 of the weights differs); copy it again")
    return weights


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, tensor = item
    if not (isinstance(name, str) and isinstance(tensor, Tensor)):
        return False
    return tensor.layout == torch.strided and tensor.device.type == "cpu"
