"""The state of any optimizer as tensors and JSON: continuation is bit-identical after every step."""

import json
from collections import deque

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from accel_restore.checkpoint.optimizer_state import Expressed, StateError, express, from_plain, restore, to_plain
from accel_restore.checkpoint.state_dict import serialize
from accel_restore.config.optim import OPTIMIZER_SECTIONS, OwnOptimizer
from accel_restore.optim import get_optimizer
from accel_restore.utils.files import decode_floats, encode_floats, to_json

STEPS = 12  # SOAP renews its bases every tenth step
SHOWN = {
    "pytorch_optimizer:Adan": {"lr": 0.005, "weight_decay": 0.02, "max_grad_norm": 1.0},
    "pytorch_optimizer:SOAP": {"lr": 0.003},
    "pytorch_optimizer:Lion": {"lr": 0.001, "weight_decay": 0.1},
    "pytorch_optimizer:Prodigy": {"lr": 1.0},
    "pytorch_optimizer:ScheduleFreeAdamW": {"lr": 0.01, "warmup_steps": 3},
    "own_parts:wrapped": {"lr": 0.01},
    "own_parts:Plain": {"lr": 0.001},
    "torch.optim:RAdam": {"lr": 0.01},
    "torch.optim:NAdam": {"lr": 0.01},
    "torch.optim:Adafactor": {"lr": 0.01},
}


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.Linear(5, 7))
    return model.to(memory_format=torch.channels_last)


def make(section) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = net()
    return model, get_optimizer(model, section)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Make a step with gradients of a common direction, without which Prodigy's estimate does not grow."""
    random, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    for parameter in model.parameters():
        gradient, common = (torch.randn(parameter.shape, generator=given) for given in (random, same))
        parameter.grad = torch.empty_like(parameter).copy_(0.3 * gradient + common)
    optimizer.step()


def as_stored(state: Expressed) -> tuple[bytes, str]:
    return serialize(state.tensors), to_json(encode_floats({"groups": state.groups, "extra": state.extra}))


def from_files(files: tuple[bytes, str]) -> Expressed:
    return Expressed(safetensors.torch.load(files[0]), **decode_floats(json.loads(files[1])))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


def continued(section, at: int, whole: nn.Module, change=lambda state: None) -> list[torch.Tensor]:
    """Return the last weights of a run that is stopped after step `at`; `change` alters what it stored."""
    model, optimizer = make(section)
    for seed in range(at):
        step(model, optimizer, seed)
    state = from_files(as_stored(express(model, optimizer)))
    change(state)
    second, resumed = make(section)
    second.load_state_dict(model.state_dict())
    restore(second, resumed, state, section.model_dump().keys() if isinstance(section, OwnOptimizer) else None)
    for seed in range(at, STEPS):
        step(second, resumed, seed)
    return weights(second)


@pytest.mark.parametrize("name", [*SHOWN, *OPTIMIZER_SECTIONS])
def test_a_run_stopped_after_any_step_ends_bit_identically(name):
    section = OwnOptimizer(name=name, **SHOWN[name]) if name in SHOWN else OPTIMIZER_SECTIONS[name](weight_decay=0.1)
    model, optimizer = make(section)
    for seed in range(STEPS):
        step(model, optimizer, seed)
    for at in range(STEPS):
        assert equal(continued(section, at, model), weights(model)), at


def test_no_decay_makes_a_second_group_that_continues_too():
    section = OwnOptimizer(name="pytorch_optimizer:Prodigy", lr=1.0, weight_decay=0.3, no_decay=["norms", "biases"])
    model, optimizer = make(section)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    for seed in range(STEPS):
        step(model, optimizer, seed)
    assert equal(continued(section, 5, model), weights(model))


def drop(part: str, key: str):
    """Return a change of a state that removes an entry of its groups, or the tensors of a slot."""

    def change(state: Expressed) -> None:
        if part == "group":
            for group in state.groups:
                del group[key]
        elif part == "tensor":
            for name in [name for name in state.tensors if name.endswith(f"|{key}")]:
                state.tensors[name] = torch.zeros_like(state.tensors[name])
        else:
            for slots in state.extra["slots"].values():
                for entry in slots.get(key, []):
                    if isinstance(entry, dict):
                        entry.pop("strides", None)

    return change


@pytest.mark.parametrize(
    ("name", "part", "key"),
    [
        ("pytorch_optimizer:Adan", "tensor", "previous_grad"), ("pytorch_optimizer:Adan", "group", "step"),
        ("pytorch_optimizer:SOAP", "tensor", "0"), ("pytorch_optimizer:SOAP", "group", "step"),
        ("pytorch_optimizer:Lion", "tensor", "exp_avg"), ("pytorch_optimizer:Prodigy", "group", "d"),
        ("pytorch_optimizer:Prodigy", "tensor", "s"), ("pytorch_optimizer:Prodigy", "tensor", "d_numerator"),
        ("pytorch_optimizer:ScheduleFreeAdamW", "group", "weight_sum"),
        ("pytorch_optimizer:ScheduleFreeAdamW", "tensor", "z"), ("own_parts:wrapped", "tensor", "z"),
        ("torch.optim:NAdam", "tensor", "mu_product"),
    ],
)  # fmt: skip
def test_control_a_run_that_loses_a_slot_or_a_counter_ends_otherwise(name, part, key):
    section = OwnOptimizer(name=name, **SHOWN[name])
    model, optimizer = make(section)
    for seed in range(STEPS):
        step(model, optimizer, seed)
    assert not equal(continued(section, 7, model, drop(part, key)), weights(model))


def test_memory_layouts_are_stored_where_they_are_not_the_parameters():
    section = OwnOptimizer(name="pytorch_optimizer:SOAP", lr=0.003)
    model, optimizer = make(section)
    for seed in range(STEPS):
        step(model, optimizer, seed)
    state = from_files(as_stored(express(model, optimizer)))
    second, resumed = make(section)
    restore(second, resumed, state)
    loaded = dict(second.named_parameters())
    for name, parameter in model.named_parameters():
        for one, other in zip(optimizer.state[parameter]["Q"], resumed.state[loaded[name]]["Q"], strict=True):
            assert not len(one) or one.stride() == other.stride()
    drop("strides", "Q")(state)  # the control: LAPACK returns matrices by columns
    plain = make(section)
    restore(*plain, state)
    first = next(iter(plain[0].parameters()))
    assert plain[1].state[first]["Q"][0].stride() != optimizer.state[next(iter(model.parameters()))]["Q"][0].stride()


@pytest.mark.parametrize("name", OPTIMIZER_SECTIONS)
def test_the_optimizers_with_names_are_stored_as_torch_would(name):
    model, optimizer = make(OPTIMIZER_SECTIONS[name](weight_decay=0.1, no_decay=["biases"]))
    for seed in range(3):
        step(model, optimizer, seed)
    state = express(model, optimizer)
    theirs = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    moments = {f"{key}|{slot}": value for key, slots in theirs["state"].items() for slot, value in slots.items()}
    assert serialize(state.tensors) == serialize(moments)
    assert to_json(state.groups) == to_json(theirs["param_groups"])
    assert state.extra == {}


def test_settings_stay_this_runs_and_counters_are_the_commits():
    model, optimizer = make(OwnOptimizer(name="pytorch_optimizer:Prodigy", lr=1.0, betas=[0.8, 0.9]))
    for seed in range(4):
        step(model, optimizer, seed)
    state = from_files(as_stored(express(model, optimizer)))
    for group in state.groups:
        group |= {"betas": [0.1, 0.2], "lr": 0.25, "d_coef": 7.0}
    second, resumed = make(OwnOptimizer(name="pytorch_optimizer:Prodigy", lr=1.0, betas=[0.8, 0.9]))
    restore(second, resumed, state, ("betas", "lr"))
    group = resumed.param_groups[0]
    assert group["betas"] == (0.8, 0.9) and isinstance(group["betas"], tuple)
    assert group["lr"] == 0.25 and group["d_coef"] == 7.0  # the schedule sets the rate
    assert group["d"] == optimizer.param_groups[0]["d"] > group["d0"]  # d0: as in a new optimizer
    assert group["step"] == 5


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 2.5, float("inf"), "text", [], [1, [None]], (1, (2,)), {"a": {"b": (1,)}}, {1: 2, (0, 1): "x"},
        deque([1, 2], 3), deque(), {"tensor": 1}, {"tuple": [1]}, {"items": {}}, {"float": "inf"}, {None: True},
    ],
)  # fmt: skip
def test_values_come_back_with_their_types(value):
    found = from_plain(decode_floats(json.loads(json.dumps(encode_floats(to_plain(value, "a"))))))
    assert found == value and type(found) is type(value)
    if isinstance(value, deque):
        assert found.maxlen == value.maxlen


@pytest.mark.parametrize("value", [torch.float32, object(), {1, 2}, torch.Size([1]), [lambda: 1], torch.zeros(1)])
def test_a_value_that_json_lacks_is_refused_with_its_place(value):
    with pytest.raises(StateError, match=r"^weight\|slot"):
        to_plain({"slot": value}, "weight")


def test_moments_of_another_model_are_refused():
    section = OPTIMIZER_SECTIONS["adamw"]()
    model, optimizer = make(section)
    step(model, optimizer, 0)
    state = express(model, optimizer)
    renamed = Expressed({f"x{name}": value for name, value in state.tensors.items()}, state.groups)
    with pytest.raises(ValueError, match="it holds moments of x"):
        restore(*make(section), renamed)
    reshaped = Expressed({name: torch.zeros(2, 2, 2) for name in state.tensors}, state.groups)
    with pytest.raises(ValueError, match=r"has the shape \(2, 2, 2\)"):
        restore(*make(section), reshaped)
