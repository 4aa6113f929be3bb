"""The model of a run that continues: described by the commit, so that the checkpoint it started from may be gone."""

import glob
from typing import Any

from pydantic import ValidationError
from torch import nn

from accel_restore.checkpoint.resume import Start
from accel_restore.config.model import Model
from accel_restore.config.schema import Config
from accel_restore.models.spandrel_models import RECOGNISED


def without_checkpoint(config: Config, start: Start) -> Config:
    """Return the configuration with which the model is built.

    For a run that continues, it names no checkpoint, and the frozen parameters are those of the commit. A model that is
    recognised by its weights still needs its file. So does an unnamed one if an older version wrote the commit.
    """
    if start.counters is None:
        return config
    config = _without_second_checkpoint(config)
    if config.model.checkpoint is None:
        return config
    model = config.model.model_copy(update={"checkpoint": None, "partial": False})
    if model.name is None:
        stored = start.counters.get("model")
        if not isinstance(stored, dict) or stored.get("name") == RECOGNISED:
            return config
        try:
            model = Model.model_validate({**stored["arguments"], "name": stored["name"]})
        except (ValidationError, LookupError, TypeError):  # a commit may come from anyone
            return config
    train, frozen = config.train, start.counters.get("frozen")
    if train.freeze and isinstance(frozen, list):
        train = train.model_copy(update={"freeze": [glob.escape(str(name)) for name in frozen]})
    return config.model_copy(update={"model": model, "train": train})


def _without_second_checkpoint(config: Config) -> Config:
    """Return the configuration of a run that continues without the discriminator's checkpoint."""
    second = config.adversarial
    if second is None or second.discriminator.checkpoint is None:
        return config
    discriminator = second.discriminator.model_copy(update={"checkpoint": None})
    return config.model_copy(update={"adversarial": second.model_copy(update={"discriminator": discriminator})})


def stored_fit(start: Start) -> dict[str, Any] | None:
    """Return what `model.partial` took at step 0 of a run that continues, as recorded in its commit."""
    taken = start.counters.get("partial") if start.counters is not None else None
    return taken if isinstance(taken, dict) and isinstance(taken.get("in_words"), str) else None


def facts_of_model(model: nn.Module, description: dict[str, Any], taken: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a commit records of its model, for `without_checkpoint` and `stored_fit`."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {"model": description, "frozen": frozen, "partial": taken}
