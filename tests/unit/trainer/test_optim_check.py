"""An optimizer or a schedule that could not be continued bit-identically is refused before anything is written."""

import pytest
import torch
from torch import nn

from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.models import build_model
from accel_restore.trainer.optim_check import Small, small_optimizer, try_optimizer, try_schedule

CPU = torch.device("cpu")
NAMES = ["Adan", "SOAP", "Lion", "Prodigy", "ScheduleFreeAdamW", "ScheduleFreeSGD"]
GOOD = [*(f"pytorch_optimizer:{name}" for name in NAMES), "own_parts:wrapped", "own_parts:Plain", "torch.optim:RAdam"]


def config(**sections: object):
    return config_from({"data": {"train": {"gt": "photos"}}, **sections})


def net() -> nn.Module:
    return build_model("nafnet", {"width": 8}, 3, 1)


def trial(name: str, **arguments: object) -> None:
    try_optimizer(config(optimizer={"name": name, **arguments}), net(), CPU)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_optimizer_is_accepted_and_nothing_is_left_changed(name):
    model, random = net(), torch.get_rng_state()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try_optimizer(config(optimizer={"name": name, "lr": 0.01}), model, CPU)
    assert torch.get_rng_state().equal(random)
    assert all(a.equal(b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_parts:Hidden", "own_parts:Hidden makes other steps after its state was loaded"),
        ("own_parts:Forgetful", "own_parts:Forgetful makes other steps after its state was loaded"),
        ("own_parts:Drawing", "own_parts:Drawing draws random numbers in step(), so ranks would get different weights"),
        ("own_parts:DrawingInPython", "draws random numbers in step(), so ranks would get different weights"),
        ("own_parts:DrawingInNumPy", "draws random numbers in step(), so ranks would get different weights"),
        ("own_parts:Warming", "own_parts:Warming changes the learning rate in step(), but only a schedule may"),
        ("own_parts:Keeping", "numbers by parameter name (all.0|generator is a Generator); choose another one"),
        ("own_parts:Closing", "own_parts:Closing needs a closure that computes the loss several times in a step"),
        ("torch.optim:LBFGS", "torch.optim:LBFGS needs a closure that computes the loss several times in a step"),
        ("own_parts:Failing", "own_parts:Failing cannot be used: KeyError: 'momentum' (own_parts.py, line"),
        ("own_parts:Viewing", "own_parts:Viewing fails for convolutions with train.channels_last"),
        ("pytorch_optimizer:AdaHessian", "pytorch_optimizer:AdaHessian cannot be used: element 0 of tensors does not"),
    ],
)
def test_a_wrong_optimizer_is_refused_with_its_reason(name, said):
    with pytest.raises(UserError) as caught:
        trial(name)
    assert str(caught.value).startswith(f"optimizer.name: {name}") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_control_the_base_of_the_wrong_ones_is_accepted():
    trial("own_parts:Descent")
    try_optimizer(config(optimizer={"name": "own_parts:Viewing"}, train={"channels_last": False}), net(), CPU)


def test_no_decay_is_tried_with_two_groups():
    given = config(optimizer={"name": "pytorch_optimizer:Prodigy", "weight_decay": 0.1, "no_decay": ["norms"]})
    _, optimizer = small_optimizer(given, net(), CPU)
    assert len(optimizer.param_groups) == 2
    try_optimizer(given, net(), CPU)


def test_a_few_small_parameters_stand_for_a_model():
    model = nn.Sequential(nn.Conv2d(3, 500, 3), nn.Conv2d(500, 2, 1), nn.Linear(70, 90, bias=False))
    small = Small(model, CPU, torch.channels_last)
    assert {tuple(own.shape) for own in small.parameters()} == {(2,), (24,), (24, 24), (2, 24, 1, 1), (24, 3, 3, 3)}
    kernel = next(own for own in small.parameters() if own.shape == (24, 3, 3, 3))
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    many = Small(nn.ParameterList([torch.zeros(side) for side in range(1, 21)]), CPU, torch.preserve_format)
    assert [len(own) for own in many.parameters()] == list(range(1, 21, 2))


def schedule(name: str, epochs: int = 6, optimizer: str = "adamw", every_epochs: int = 1, **arguments: object) -> None:
    sections = {"optimizer": {"name": optimizer}, "validation": {"every_epochs": every_epochs}}
    try_schedule(config(scheduler={"name": name, **arguments}, **sections), net(), epochs, CPU)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("own_parts:triangle", {}), ("own_parts:Chained", {"warmup_epochs": 2}), ("own_parts:OwnPlateau", {}),
        ("torch.optim.lr_scheduler:PolynomialLR", {"total_iters": 100}),
        ("torch.optim.lr_scheduler:OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "optimizer": "adam"}),
        ("torch.optim.lr_scheduler:MultiStepLR", {"milestones": [2, 4]}),  # keeps a Counter, which JSON lacks
        ("torch.optim.lr_scheduler:CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False}),
        ("own_parts:triangle", {"optimizer": "pytorch_optimizer:Lion"}),
    ],
)  # fmt: skip
def test_a_good_schedule_is_accepted(name, arguments):
    schedule(name, **arguments)
    schedule(name, 1, **arguments)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_parts:negative", "gives the learning rate -0.001 in epoch 3; rates must be finite numbers of at least 0"),
        ("own_parts:undefined", "gives the learning rate nan in epoch 2"),
        ("own_parts:late", "cannot be used: IndexError: list index out of range (own_parts.py, line"),
        ("own_parts:drawn", "gives other rates when it continues from epoch"),
        ("own_parts:not_one", "returns int, but must return"),
        ("torch.optim.lr_scheduler:OneCycleLR", "missing"),
    ],
)
def test_a_wrong_schedule_is_refused_with_its_name(name, said):
    with pytest.raises(UserError) as caught:
        schedule(name)
    assert str(caught.value).startswith("scheduler.") and said in str(caught.value)
    assert name in str(caught.value) or "missing" in said


def test_a_schedule_that_needs_the_monitored_value_needs_a_validation_in_every_epoch():
    with pytest.raises(UserError, match=r"own_parts:OwnPlateau needs a validation in every epoch"):
        schedule("own_parts:OwnPlateau", every_epochs=2)
