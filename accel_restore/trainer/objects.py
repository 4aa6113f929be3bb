"""The objects that `fit` is given: each takes the place of a section of the configuration."""

import inspect
from collections.abc import Iterable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from accel_restore.config.model import Model
from accel_restore.config.schema import Config, OwnCallback
from accel_restore.distributed.collective import on_all_ranks
from accel_restore.errors import UserError
from accel_restore.models.objects import build_object
from accel_restore.state import Callback


def with_objects(config: Config, model: Any, loss: Any, callbacks: Iterable[Callback]) -> Config:
    """Return the configuration with the objects, and the import paths of their classes as names.

    Raises: UserError for an object of a wrong kind, or one whose section the configuration sets to something else.
    """
    update: dict[str, Any] = {}
    if model is not None:
        update["model"] = _model_section(config, model)
    if loss is not None:
        update["loss"] = _loss_section(config, loss)
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise UserError(f"fit: callbacks must be a list of callbacks, not a {type(callbacks).__name__}")
    if own := [_callback_section(callback) for callback in callbacks]:
        update["callbacks"] = [*config.callbacks, *own]
    config = config.model_copy(update=update)
    config._loss = loss
    return config


def _model_section(config: Config, model: Any) -> Model:
    if not isinstance(model, nn.Module) and not callable(model):
        raise UserError(
            f"fit: model must be a torch.nn.Module, or a function that returns one, not a {type(model).__name__}; "
            "names belong in the configuration"
        )
    name, given = path_of(model), config.model
    if "model" in config.model_fields_set and (given.name not in (None, name) or given.arguments):
        raise UserError(
            f"fit: model is a {name.rpartition(':')[2]}, but the configuration sets model.name to '{given.name}'; "
            "remove one of the two"
        )
    section = given.model_copy(update={"name": name})
    section._object = model
    return section


def _loss_section(config: Config, loss: Any) -> dict[str, float]:
    if not callable(loss):
        raise UserError(
            f"fit: loss must be a function of (output, gt), not a {type(loss).__name__}; names belong in the "
            "configuration"
        )
    section = {path_of(loss): 1.0}
    if "loss" in config.model_fields_set and config.loss != section:
        raise UserError(
            f"fit: loss is a {next(iter(section)).rpartition(':')[2]}, but the configuration sets loss to "
            f"{', '.join(config.loss)}; remove one of the two"
        )
    return section


def _callback_section(callback: Callback) -> OwnCallback:
    if not isinstance(callback, Callback):
        kind = callback.__name__ if inspect.isclass(callback) else f"a {type(callback).__name__}"
        again = f"; give an object, {kind}(...)" if inspect.isclass(callback) else "; derive its class from it"
        raise UserError(f"fit: callbacks must be accel_restore.Callback objects, not {kind}{again}")
    section = OwnCallback(name=path_of(callback))
    section._object = callback
    return section


def path_of(own: Any) -> str:
    """Return the import path of a class or function, or of an object's class."""
    named = own if hasattr(own, "__qualname__") else type(own)
    return f"{named.__module__}:{named.__qualname__}"


def given_objects(config: Config) -> list[str]:
    """Return which of the sections `model` and `loss` were given as objects."""
    given = {"model": config.model.object, "loss": config.own_loss}
    return [section for section, own in given.items() if own is not None]


def share_objects(config: Config, accelerator: Accelerator) -> Config:
    """Return the configuration with the main process's weights in the model that `fit` was given. Every rank calls it.

    Raises: UserError if the ranks were given different objects.
    """
    own = config.model.object
    kinds = [given_objects(config), config.model.name, list(config.loss), [each.name for each in config.callbacks]]
    ranks = gather_object([kinds])
    if others := [rank for rank, kind in enumerate(ranks) if kind != ranks[0]]:
        raise UserError(f"fit: rank {others[0]} has other objects than rank 0; give every rank the same ones")
    if not isinstance(own, nn.Module) or accelerator.num_processes == 1:
        return config
    assert config.model.name is not None  # the path of its class
    name, images = config.model.name, config.data.image_spec
    copied = on_all_ranks(accelerator, lambda: build_object(own, name, images))
    shapes = gather_object([{name: tuple(tensor.shape) for name, tensor in copied.state_dict().items()}])
    if others := [rank for rank, found in enumerate(shapes) if found != shapes[0]]:
        raise UserError(f"fit: the model of rank {others[0]} has other weights than rank 0's; give every rank the same")
    weights = broadcast_object_list([copied.state_dict() if accelerator.is_main_process else None])[0]
    copied.load_state_dict(weights)
    section = config.model.model_copy()
    section._object = copied
    return config.model_copy(update={"model": section})
