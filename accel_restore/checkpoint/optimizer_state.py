"""The state of an optimizer or a schedule as tensors by name and JSON, and back. Nothing is pickled.

Moments are the tensors `parameter|slot`, settings of parameter groups are `param_groups`. What else an optimizer keeps
(numbers and lists of a parameter, tensors of a group, entries of its own) is `extra`, in which {"tensor": name} stands
for a tensor. torch.distributed.checkpoint has functions for this, but they make a step with zero gradients first, which
changes the counters of many optimizers, and do not know nested state.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from accel_restore.distributed.fsdp import full_tensor

_TAGS = ("tensor", "tuple", "deque", "items", "float")  # keys of the objects that stand for what JSON lacks
_PLAIN = (type(None), bool, int, float, str)


class StateError(ValueError):
    """A state cannot be expressed as tensors and JSON, or a stored one does not fit."""


@dataclass
class Expressed:
    """The state of an optimizer, ready to be stored."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # on the CPU
    groups: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # empty for accel_restore's own optimizers, such as adamw


def to_plain(value: Any, place: str, keep: Callable[[str, Tensor], dict] | None = None) -> Any:
    """Return a value as JSON; `keep` takes each tensor and its place, and returns what stands for it.

    Raises: StateError for an object of another type, and for tensors if nothing keeps them.
    """
    kind, inner = type(value), partial(to_plain, keep=keep)
    if kind in _PLAIN:
        return value
    if isinstance(value, Tensor) and keep is not None:
        return keep(place, value)
    if kind in (list, tuple, deque):
        items = [inner(item, f"{place}|{index}") for index, item in enumerate(value)]
        return items if kind is list else {"tuple": items} if kind is tuple else {"deque": items, "most": value.maxlen}
    if kind is dict:
        return _mapping({key: inner(item, f"{place}|{key}") for key, item in value.items()}, place)
    raise StateError(f"{place.strip('|')} is a {kind.__name__}")


def _mapping(items: dict[Any, Any], place: str) -> dict[str, Any]:
    """Return a mapping to JSON values as JSON, whatever its keys are."""
    if all(type(key) is str and key not in _TAGS for key in items):
        return items
    return {"items": [[to_plain(key, place), item] for key, item in items.items()]}


def from_plain(value: Any, find: Callable[[dict], Tensor] | None = None) -> Any:
    """Return what `to_plain` was given; `find` returns the tensor that an object stands for."""
    inner = partial(from_plain, find=find)
    if isinstance(value, list):
        return [inner(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value and find is not None:
        return find(value)
    if "tuple" in value:
        return tuple(map(inner, value["tuple"]))
    if "deque" in value:
        return deque(map(inner, value["deque"]), value["most"])
    if "items" in value:
        return {from_plain(key): inner(item) for key, item in value["items"]}
    return {key: inner(item) for key, item in value.items()}


def to_host(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU."""
    return tensor.cpu()


def express(
    model: nn.Module, optimizer: Optimizer, copy: Callable[[str, Tensor], Tensor] | None = to_host
) -> Expressed:
    """Return the state of an optimizer of the model's parameters. `copy` copies each tensor; None leaves tensors out.

    Every rank calls it. Raises: StateError.
    """
    result, held = Expressed(), _parameters(optimizer)
    names = _names(model, held)

    def keep(place: str, value: Tensor, parameter: Tensor | None = None) -> dict[str, Any]:
        whole = full_tensor(value.detach())
        if copy is not None:
            result.tensors[place] = copy(place, whole)
        layout = {} if hasattr(value, "full_tensor") else _layout(value, parameter)
        on_host = {"host": True} if value.device.type == "cpu" != held[0].device.type else {}
        return {"tensor": place, **layout, **on_host}

    content = optimizer.state_dict()
    slots: dict[str, dict] = {}
    others: list[list] = []  # entries of the state that belong to no parameter
    for key, own in content.pop("state", {}).items():
        if type(key) is not int or key >= len(held) or not isinstance(own, dict):
            others.append([to_plain(key, "state"), to_plain(own, f"|state|{key}", keep)])
            continue
        more = {}
        for slot, value in own.items():
            plain = to_plain(value, f"{names[key]}|{slot}", partial(keep, parameter=held[key]))
            is_moment = isinstance(value, Tensor) and type(slot) is str and "|" not in slot
            if not is_moment or "strides" in plain or not _fits(value, held[key]):
                more[slot] = plain
        if more:
            slots[names[key]] = _mapping(more, names[key])
    for index, group in enumerate(content.pop("param_groups", [])):
        entries = {
            key: _entry(value, f"|group {index}|{key}", keep)
            for key, value in group.items()
            if key != "params" and not _is_setting(value, optimizer.defaults.get(key))
        }
        result.groups.append({**entries, "params": [names[place] for place in group["params"]]})
    parts = {"slots": slots, "others": others, "rest": to_plain(content, "", keep)}
    result.extra = {key: part for key, part in parts.items() if part}
    return result


def restore(
    model: nn.Module, optimizer: Optimizer, stored: Expressed, configured: Collection[str] | None = None
) -> None:
    """Load a state that `express` returned.

    Of the groups' settings, those named in `configured` (None: all but the learning rate) stay this run's.

    Raises: StateError if the state does not fit; whatever the optimizer's own `load_state_dict` raises.
    """
    held = _parameters(optimizer)
    place_of = {name: place for place, name in enumerate(_names(model, held))}
    used: set[str] = set()

    def find(mark: dict[str, Any], parameter: Tensor | None = None) -> Tensor:
        used.add(mark["tensor"])
        device = torch.device("cpu") if "host" in mark else held[0].device
        return _placed(stored.tensors[mark["tensor"]], parameter, device, mark.get("strides"))

    extra, state = stored.extra, dict[Any, Any]()
    for name, slots in extra.get("slots", {}).items():
        state[place_of[name]] = from_plain(slots, partial(find, parameter=held[place_of[name]]))
    for key, value in extra.get("others", []):
        state[from_plain(key)] = from_plain(value, find)
    content = from_plain(extra.get("rest", {}), find)
    groups = [from_plain(group, find) for group in stored.groups]
    for name in [name for name in stored.tensors if name not in used]:
        parameter, _, slot = name.rpartition("|")
        if parameter not in place_of:
            raise StateError(f"it holds moments of {parameter}, which the optimizer does not train")
        state.setdefault(place_of[parameter], {})[slot] = _moment(stored.tensors[name], held[place_of[parameter]], name)
    state = dict(sorted(state.items(), key=lambda item: item[0] if type(item[0]) is int else len(held)))
    if groups:
        content |= {"state": state, "param_groups": list(_merged(optimizer, groups, configured))}
    optimizer.load_state_dict(content)
    for key, slots in state.items():
        _keep_types(optimizer.state.get(held[key] if type(key) is int else key), slots)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _names(model: nn.Module, held: list[Tensor]) -> list[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for parameter in held]  # type: ignore[index]  # the optimizer holds the model's


def _entry(value: Any, place: str, keep: Callable[[str, Tensor], dict]) -> Any:
    """Return an entry of a group as JSON. A tuple of numbers, such as `betas`, becomes a list."""
    is_flat = type(value) is tuple and all(type(item) in _PLAIN for item in value)
    return list(value) if is_flat else to_plain(value, place, keep)


def _merged(optimizer: Optimizer, groups: list[dict], configured: Collection[str] | None) -> Iterator[dict]:
    """Yield the groups to load: the stored ones, with the settings and the types of this run's."""
    first = 0
    for own, saved in zip(optimizer.param_groups, groups, strict=True):
        for key, value in own.items():
            if key not in ("params", "lr") and (configured is None or key in configured or key not in saved):
                saved[key] = value
            elif isinstance(value, tuple) and isinstance(saved[key], list):
                saved[key] = tuple(saved[key])
        saved["params"] = list(range(first, first + len(own["params"])))
        first += len(own["params"])
        yield saved


def _is_setting(value: Any, default: Any) -> bool:
    """Return whether an entry is still its default and JSON lacks its type, such as a dtype: it is not stored."""
    return value is default and not isinstance(value, (*_PLAIN, Tensor, list, tuple, dict, deque))


def _fits(value: Tensor, parameter: Tensor) -> bool:
    return value.shape == parameter.shape or value.numel() == 1


def _layout(value: Tensor, parameter: Tensor | None) -> dict[str, Any]:
    """Return the strides of a dense tensor that has another memory layout than loading gives it.

    The order of sums and products of matrices, and so their rounding, depends on it.
    """
    like = parameter if parameter is not None and value.shape == parameter.shape else torch.empty(value.shape)
    order = sorted(range(value.ndim), key=value.stride, reverse=True)
    if value.stride() == like.stride() or not value.permute(order).is_contiguous():
        return {}
    return {"strides": list(value.stride())}


def _moment(value: Tensor, parameter: Tensor, name: str) -> Tensor:
    if not _fits(value, parameter):
        raise StateError(f"the optimizer's {name} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
    return _placed(value, parameter, parameter.device, None)


def _placed(value: Tensor, parameter: Tensor | None, device: torch.device, strides: list[int] | None) -> Tensor:
    """Return a stored tensor on the device, in the memory layout of its parameter, sharded if its parameter is."""
    if strides is not None:
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=device).copy_(value)
    if parameter is None:
        return value.to(device)
    if value.shape != parameter.shape:
        return value if value.ndim == 0 else value.to(device)  # `load_state_dict` knows where a counter belongs
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor  # only FSDP2 needs it

        assert isinstance(parameter, DTensor)
        return distribute_tensor(value.to(device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _keep_types(own: Any, stored: dict[Any, Any]) -> None:
    """Put back what torch's `load_state_dict` converts: tensors of another type than the parameter, and texts."""
    if not isinstance(own, dict):
        return
    for slot, value in stored.items():
        loaded = own.get(slot)
        if isinstance(value, Tensor):
            if isinstance(loaded, Tensor) and loaded.dtype != value.dtype and slot != "step":
                own[slot] = value.to(loaded.device)
        elif isinstance(value, dict):
            _keep_types(loaded, value)
        else:
            own[slot] = value
