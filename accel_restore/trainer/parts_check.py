"""The trial of the model, the loss, the metrics and the optimizer, before images are decoded."""

from typing import Any

from accelerate import Accelerator

from accel_restore.config.schema import Config
from accel_restore.distributed.collective import on_all_ranks
from accel_restore.losses import Loss, build_loss
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.models.compile import check_compiler
from accel_restore.models.objects import is_built_by_name
from accel_restore.models.partial_fit import PartialFit
from accel_restore.models.pretrained import describe, initial_model, initial_model_and_fit
from accel_restore.models.recomputation import checkpoint_blocks
from accel_restore.models.spandrel_models import RECOGNISED
from accel_restore.optim import get_optimizer
from accel_restore.optim.ema import needs_copy
from accel_restore.registry import MODELS
from accel_restore.tracking.tensorboard_logger import check_tensorboard
from accel_restore.trainer.adversary_check import try_adversary
from accel_restore.trainer.model_check import Trial, check_copy
from accel_restore.trainer.optim_check import known_epochs, try_optimizer, try_schedule
from accel_restore.utils.imports import check_compiler_cache


def check_parts(
    config: Config, accelerator: Accelerator
) -> tuple[Loss, SetProtocols, dict[str, Any], Trial | None, PartialFit | None]:
    """Return loss, protocols, description of the model, the trial of a user's own model, and what a checkpoint fills.

    Every rank checks, as a file of weights may be on one machine only.
    Raises: UserError for wrong arguments.
    """
    data = config.data
    on_all_ranks(accelerator, check_compiler_cache)
    loss_fn = on_all_ranks(
        accelerator, lambda: build_loss(config.loss, data.channels, data.patch_sizes, config.own_loss)
    )
    loss_fn.to(accelerator.device)
    description, trial, fit = on_all_ranks(accelerator, lambda: _try_model(config, accelerator))
    on_all_ranks(accelerator, lambda: try_adversary(config, accelerator))
    protocols = SetProtocols.of(config)
    on_all_ranks(accelerator, lambda: _try_metrics(protocols, config, accelerator))
    if config.tracking.tensorboard:
        on_all_ranks(accelerator, check_tensorboard, only_main=True)
    if config.train.compile:
        on_all_ranks(accelerator, lambda: check_compiler(accelerator.device))
    return loss_fn, protocols, description, trial, fit


def _try_metrics(protocols: SetProtocols, config: Config, accelerator: Accelerator) -> None:
    """Build the metrics, and try those of the user's own. Every rank does, as it scores images of its own."""
    whole, (_, monitored) = protocols.whole, config.validation.monitored
    _ = whole.scores
    whole.check_direction(monitored, "validation.monitor")
    whole.try_own(accelerator.device)


def _try_model(config: Config, accelerator: Accelerator) -> tuple[dict[str, Any], Trial | None, PartialFit | None]:
    """Build model and optimizer once and describe the model; one of the user's own is tried, and its trial returned."""
    model, fit = initial_model_and_fit(config)
    if config.train.checkpoint_blocks:
        checkpoint_blocks(model)
    description, trial = describe(config.model, config.data.image_spec), None
    name, side = description["name"], config.data.patch_size // config.data.scale
    if config.model.object is not None and not is_built_by_name(model, name, config.data.image_spec, side):
        description["object"] = True  # the file of weights does not record how to build it
    is_own = name not in MODELS and name != RECOGNISED
    if is_own:
        trial = Trial(model, name, config, accelerator)
        trial.train()
    optimizer = get_optimizer(model, config.optimizer)
    if (needs_copy(config, optimizer) or accelerator.is_fsdp2 or config.model.object is not None) and is_own:
        check_copy(model, initial_model(config), name)
    try_optimizer(config, model, accelerator.device)
    try_schedule(config, model, known_epochs(config), accelerator.device)
    return description, trial, fit
