"""Try the discriminator and what trains it before the run writes anything; its rows of the plan."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from torch import nn

from accel_restore.config.schema import Config
from accel_restore.errors import UserError
from accel_restore.optim.adversary import Adversary, initial_discriminator
from accel_restore.optim.schedules import needs_monitored
from accel_restore.trainer.optim_check import known_epochs, small_optimizer, try_optimizer, try_schedule
from accel_restore.utils.words import counted


def try_adversary(config: Config, accelerator: Accelerator) -> None:
    """Build the discriminator, and try an optimizer and a schedule of the user's own.

    Raises: UserError with the key of what cannot be used.
    """
    if config.adversarial is None:
        return
    if accelerator.is_fsdp2:
        raise UserError("adversarial: FSDP2 would shard the discriminator too; train without FSDP2")
    model = initial_discriminator(config)
    second = config.adversarial
    of_second = config.model_copy(update={"optimizer": second.optimizer, "scheduler": second.scheduler})
    with _naming_section():
        try_optimizer(of_second, model, accelerator.device)
        try_schedule(of_second, model, known_epochs(config), accelerator.device)
        small_optimizer(of_second, model, accelerator.device)


def try_second_schedule(config: Config, adversary: Adversary | None, epochs: int, accelerator: Accelerator) -> None:
    """Try the discriminator's schedule over the whole run, and check that the discriminator starts in the run."""
    if adversary is None or config.adversarial is None:
        return
    start = config.adversarial.starts_at_epoch
    if start >= epochs:
        raise UserError(
            f"adversarial.starts_at_epoch: {start}, but the run has {epochs} epochs, counted from 0, so the "
            "discriminator would never start; lower it, or train longer"
        )
    of_second = config.model_copy(update={"scheduler": config.adversarial.scheduler})
    with _naming_section():
        try_schedule(of_second, adversary.module, epochs, accelerator.device)
    if needs_monitored(adversary.scheduler.scheduler):
        raise UserError(
            "adversarial.scheduler.name: follows the generator's validation, which does not measure the discriminator; "
            "choose another schedule"
        )


@contextmanager
def _naming_section() -> Iterator[None]:
    """Put the section before the keys of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"adversarial.{error}") from error.__cause__


def adversary_rows(config: Config, adversary: Adversary | None) -> list[tuple[str, str]]:
    """Return the rows of the plan about the discriminator; empty without one."""
    second = config.adversarial
    if adversary is None or second is None:
        return []
    size = sum(parameter.numel() for parameter in adversary.module.parameters())
    source = f", from {second.discriminator.checkpoint}" if second.discriminator.checkpoint else ""
    parts = [f"{second.loss} × {second.weight:g} from epoch {second.starts_at_epoch + 1}"]
    if second.r1:
        parts.append(f"R1 × {second.r1:g} every {counted(second.r1_every, 'step')}")
    for name, every in {"generator": second.generator_every, "discriminator": second.discriminator_every}.items():
        if every > 1:
            parts.append(f"the {name} every {every} steps")
    if second.skip_above is not None:
        parts.append(f"the discriminator waits above an accuracy of {second.skip_above:g}")
    rows = [
        ("discriminator", f"{second.discriminator.name}, {size:,} parameters{source}"),
        ("adversarial", ", ".join(parts)),
        ("its learning rate", f"{second.scheduler.name}: epoch 1: {adversary.lr:.3g}"),
    ]
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in adversary.module.modules()):
        text = "the discriminator's batch statistics are those of a rank's own micro-batch: another number of ranks or "
        rows.append(("note", f"{text}another batch_size gives another result"))
    return rows
