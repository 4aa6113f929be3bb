"""The state of a network in a commit: its weights, optimizer, schedule and, with fp16, scale.

A run has one network, the model, or two with adversarial training: the discriminator's files have its name in front.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from accel_restore.checkpoint.optimizer_state import Expressed, StateError, express, from_plain, restore, to_plain
from accel_restore.distributed.fsdp import full_state_dict, full_tensor
from accel_restore.errors import DivergedError
from accel_restore.models.parameters import unwrapped
from accel_restore.optim.schedules import needs_monitored


class Network(Protocol):
    """A network and what changes its weights: `TrainState` for the model, `Adversary` for the discriminator."""

    model: nn.Module
    optimizer: Any
    scheduler: Any


@dataclass(frozen=True)
class NetworkState:
    """What a commit holds of a network: tensors for two files, and JSON for state.json."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]  # tensors of the optimizer's state
    counters: dict[str, Any]


def check_finite(network: Network, place: str) -> None:
    """Raise `DivergedError` if a weight is NaN or inf, as such weights are never committed. Every rank calls it."""
    if not all(bool(full_tensor(parameter.isfinite().all())) for parameter in network.model.parameters()):
        raise DivergedError(place, "some weights are NaN or inf, so no checkpoint was written")


def collect_network(
    network: Network, accelerator: Accelerator, config: dict[str, Any], copy: Callable[[str, Tensor], Tensor]
) -> NetworkState:
    """Return the state of a network, with copies of its tensors on the main process alone. Every rank calls it.

    `config` is the part of the configuration with the network's `scheduler`.
    """
    model = unwrapped(network.model)
    weights = full_state_dict(model, accelerator, lambda name, tensor: copy(f"weights {name}", tensor))
    optimizer = express(model, network.optimizer.optimizer, copy if accelerator.is_main_process else None)
    counters = {
        "param_groups": optimizer.groups,
        "scheduler": schedule_state(network.scheduler.scheduler, config["scheduler"]["name"]),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        **({"optimizer": optimizer.extra} if optimizer.extra else {}),
    }
    return NetworkState(weights, optimizer.tensors, counters)


def load_network(
    network: Network,
    accelerator: Accelerator,
    stored: NetworkState,
    epoch: int,
    config: dict[str, Any],
    *,
    has_other_length: bool,
) -> None:
    """Load the state of a commit into a new network, whose schedule is advanced to `epoch`, counted from 0.

    `config` is the part of the stored configuration with the network's `optimizer`. `has_other_length` says that the
    run has another number of epochs than the commit.
    """
    schedule, scheduled = network.scheduler.scheduler, stored.counters["scheduler"]
    if has_other_length and not needs_monitored(schedule):
        scheduled = None  # its state may hold the length of the run
    load_schedule(schedule, epoch, scheduled)
    rates = [group["lr"] for group in network.optimizer.param_groups]
    model = unwrapped(network.model)
    load_weights(model, stored.weights)
    _load_optimizer(model, network.optimizer.optimizer, stored, config["optimizer"])
    if scheduled is None:
        for group, rate in zip(network.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # differs from the commit's only if the run was made longer
    if accelerator.scaler is not None and stored.counters["scaler"] is not None:
        accelerator.scaler.load_state_dict(stored.counters["scaler"])


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load full tensors into a model, which may be sharded."""
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        model.load_state_dict(weights)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict  # imports the compiler

    set_model_state_dict(model, dict[str, Any](weights), options=StateDictOptions(full_state_dict=True))


def _load_optimizer(model: nn.Module, optimizer: Any, stored: NetworkState, section: dict[str, Any]) -> None:
    configured = section.keys() | {"weight_decay"} if ":" in section["name"] else None  # None: all settings
    expressed = Expressed(stored.moments, stored.counters["param_groups"], stored.counters.get("optimizer", {}))
    restore(model, optimizer, expressed, configured)


def schedule_state(schedule: LRScheduler, name: str) -> Any:
    """Return the state of a schedule as JSON, if a commit stores it: one that needs the monitored value, or an own one.

    None for the others, and for an own one that JSON cannot express: these are treated as functions of the epoch.
    """
    is_monitored = needs_monitored(schedule)
    if not is_monitored and ":" not in name:
        return None
    try:
        return to_plain(schedule.state_dict(), "")
    except StateError:
        if is_monitored:
            raise
        return None


def load_schedule(schedule: LRScheduler, epoch: int, stored: Any) -> None:
    """Advance a new schedule to the start of an epoch, counted from 0.

    A schedule that is a function of the epoch is stepped: its rates are bit-identical to those of an uninterrupted run.
    """
    if not needs_monitored(schedule):
        schedule.optimizer._opt_called = True  # type: ignore[attr-defined]  # avoids a warning: it steps first
        for _ in range(epoch):
            schedule.step()
    if stored is not None:
        schedule.load_state_dict(from_plain(stored))
