"""Optimizers and schedules by import path: their arguments, groups, skipped steps, and weights for evaluation."""

import copy
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from accel_restore.config.load import config_from
from accel_restore.config.optim import OwnOptimizer, OwnSchedule
from accel_restore.errors import UserError
from accel_restore.optim import get_optimizer, step_unless
from accel_restore.optim.ema import EvalWeights, get_average
from accel_restore.optim.schedules import get_scheduler, preview_learning_rates, step_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # nothing is trained here
LEAST = {"data": {"train": {"gt": "photos"}}}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def optimizer(name: str, **arguments: object) -> torch.optim.Optimizer:
    return get_optimizer(net(), OwnOptimizer(name=name, **arguments))


def refused(name: str, **arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        optimizer(name, **arguments)
    return str(caught.value)


def test_keyword_parameters_are_the_configuration():
    made = optimizer("pytorch_optimizer:SOAP", lr=0.25, betas=[0.5, 0.75], precondition_frequency=3)
    (group,) = made.param_groups
    assert (group["lr"], group["betas"], group["precondition_frequency"]) == (0.25, (0.5, 0.75), 3)
    assert isinstance(group["betas"], tuple)  # YAML has lists only
    assert optimizer("torch.optim:RAdam").param_groups[0]["lr"] == 0.001  # its own default
    assert optimizer("torch.optim:Adafactor", eps=[None, 0.1]).param_groups[0]["eps"] == (None, 0.1)


def test_no_decay_makes_a_second_group():
    first, second = optimizer("own_parts:Plain", weight_decay=0.5, no_decay=["norms"]).param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.5, 0.0)
    assert [len(group["params"]) for group in (first, second)] == [2, 2]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("pytorch_optimizer:SOAP", {"bettas": [0.9, 0.9]}, "optimizer.bettas: unknown key; did you mean"),
        ("own_parts:Plain", {"bettas": 1}, "optimizer.bettas: unknown key; known keys: lr, weight_decay, scales"),
        ("pytorch_optimizer:SOAP", {"nesterov": True}, "optimizer.nesterov: pytorch_optimizer:SOAP takes it and"),
        ("pytorch_optimizer:SOAP", {"params": 1}, "optimizer.params: unknown key; accel_restore passes it"),
        ("pytorch_optimizer:SOAP", {"betas": [0.9, 2.0]}, "optimizer: pytorch_optimizer:SOAP cannot be built"),
        ("pytorch_optimizer:SAM", {}, "optimizer.base_optimizer: missing; if it needs more than parameters, name a"),
        ("pytorch_optimizer:Lookahead", {}, "cannot be built from parameters: need to pass `params`"),
        ("pytorch_optimizer:SOP", {}, "has no attribute 'SOP'); did you mean 'pytorch_optimizer:SOAP'?"),
        ("pytorch_optimizer:Quantum", {}, "write package.module:Name, and pip install 'accel-restore[optimizers]'"),
        ("torch.optim:RAdm", {}, "did you mean 'torch.optim:RAdam'?"),
        ("nowhere_at_all:X", {}, "cannot import 'nowhere_at_all:X' (No module named 'nowhere_at_all')"),
        ("own_parts:Descent", {"no_decay": ["norms"]}, "optimizer.no_decay: own_parts:Descent has no weight_decay"),
        ("own_parts:nothing", {}, "optimizer.name: own_parts:nothing returns dict, not a torch.optim.Optimizer"),
        ("own_parts:one_of_many", {}, "holds 1 tensors, but the model has 4 parameters to train"),
        ("own_parts:no_rate", {}, "optimizer.lr: own_parts:no_rate has the learning rate tensor(0.1000) in its groups"),
        ("own_parts:no_rate", {"lr": 1.0}, "optimizer.lr: unknown key"),
        ("math:pi", {}, "optimizer.name: 3.14"),
        ("torch.optim:Muon", {}, "torch.optim:Muon cannot be built from parameters: Muon only supports 2D parameters"),
    ],
)  # fmt: skip
def test_a_wrong_optimizer_is_refused_with_its_reason(name, arguments, said):
    assert said in refused(name, **arguments)


def test_a_missing_library_is_answered_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    assert "pip install 'accel-restore[optimizers]'" in refused("pytorch_optimizer:SOAP")
    with pytest.raises(UserError, match=r"pip install 'accel-restore\[optimizers\]', pytorch_optimizer:Lion"):
        config_from({**LEAST, "optimizer": {"name": "lion"}})


class Derived(torch.optim.Adam):
    """Fused by its settings, but with a step of its own."""

    def step(self, closure=None):
        return None


@pytest.mark.parametrize(
    ("made", "on_device"),
    [(torch.optim.Adam, True), (torch.optim.AdamW, True), (Derived, False), (torch.optim.SGD, False)],
)
def test_only_torchs_own_fused_adam_skips_on_the_device(made, on_device):
    inner, calls = made(net().parameters(), lr=0.1, fused=True), []
    wrapper = SimpleNamespace(optimizer=inner, step=lambda: calls.append(getattr(inner, "found_inf", None)))
    accelerator = SimpleNamespace(is_fsdp2=False, scaler=None)
    assert step_unless(torch.tensor(True), wrapper, accelerator) is False
    assert calls == [torch.tensor(1.0)] * on_device
    assert step_unless(torch.tensor(False), wrapper, accelerator) is True
    assert calls[on_device:] == [torch.tensor(0.0) if on_device else None]


@pytest.mark.parametrize(("other_fails", "scale", "is_stepped"), [(False, 8.0, True), (True, 8.0, False)])
def test_with_fp16_a_step_that_another_network_prevents_keeps_the_scale(other_fails, scale, is_stepped):
    network, accelerator = net(), Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    wrapper = AcceleratedOptimizer(torch.optim.SGD(network.parameters(), lr=0.1), scaler=accelerator.scaler)
    for _ in range(2):  # a second step must find the scaler ready
        before = [parameter.detach().clone() for parameter in network.parameters()]
        wrapper.zero_grad()
        accelerator.scaler.scale(sum(parameter.sum() for parameter in network.parameters())).backward()
        accelerator.scaler.unscale_(wrapper.optimizer)
        assert step_unless(torch.tensor(other_fails), wrapper, accelerator) is is_stepped
        pairs = zip(before, network.parameters(), strict=True)
        assert any(not torch.equal(one, other) for one, other in pairs) is is_stepped
    assert accelerator.scaler.get_scale() == scale


def test_with_fp16_a_gradient_that_is_not_finite_lowers_the_scale():
    network, accelerator = net(), Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    wrapper = AcceleratedOptimizer(torch.optim.SGD(network.parameters(), lr=0.1), scaler=accelerator.scaler)
    accelerator.scaler.scale(sum(parameter.sum() for parameter in network.parameters()) * float("inf")).backward()
    accelerator.scaler.unscale_(wrapper.optimizer)
    assert step_unless(torch.tensor(True), wrapper, accelerator) is False
    assert accelerator.scaler.get_scale() == 4.0


def test_an_optimizer_by_path_gets_no_fused_kernels_of_its_own_accord():
    made = get_optimizer(net(), OwnOptimizer(name="torch.optim:AdamW"), fused=True)
    assert not made.param_groups[0]["fused"]
    assert optimizer("torch.optim:AdamW", fused=True).param_groups[0]["fused"]


# Weights for evaluation -----------------------------------------------------------------------------------------------


def stepped(name: str, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)  # for some weights, nothing rounds
    model = net()
    made = get_optimizer(model, OwnOptimizer(name=name, lr=0.1))
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        made.step()
    return model, made


@pytest.mark.parametrize("name", ["pytorch_optimizer:ScheduleFreeAdamW", "own_parts:wrapped"])
def test_weights_for_evaluation_are_copied_and_those_of_training_put_back_exactly(name):
    model, made = stepped(name)
    model[1].running_mean.fill_(3.0)
    trained, state = copy.deepcopy(model.state_dict()), str(made.state_dict())
    average = EvalWeights(net(), made)
    average.update(model)
    evaluated = average.module
    assert all(value.equal(trained[key]) for key, value in model.state_dict().items())
    assert str(made.state_dict()) == state
    made.eval()
    for own, expected in zip(evaluated.parameters(), model.parameters(), strict=True):
        assert own.equal(expected)
    made.train()
    assert any(not value.equal(trained[key]) for key, value in model.state_dict().items())  # the control: it rounds
    assert (evaluated[1].running_mean == 3).all()
    assert not any(parameter.requires_grad for parameter in evaluated.parameters())


def test_weights_for_evaluation_are_filled_once_per_change():
    model, made = stepped("pytorch_optimizer:ScheduleFreeSGD")
    calls = []
    made.eval = lambda: calls.append("eval")
    average = EvalWeights(net(), made)
    assert average.module is average.module and calls == []
    average.update(model)
    average.update(model)
    assert average.num_updates == 2
    assert average.module is average.module and calls == ["eval"]


def test_ema_and_an_optimizer_that_averages_are_not_combined():
    config = config_from({**LEAST, "train": {"ema_decay": 0.9}, "optimizer": {"name": "own_parts:wrapped"}})
    with pytest.raises(UserError, match=r"^train\.ema_decay: own_parts:wrapped averages the weights itself"):
        get_average(config, optimizer("own_parts:wrapped"), net)
    assert get_average(config, optimizer("torch.optim:SGD", lr=0.1), net) is not None
    config = config_from({**LEAST, "optimizer": {"name": "own_parts:wrapped"}})
    assert isinstance(get_average(config, optimizer("own_parts:wrapped"), net), EvalWeights)
    assert get_average(config, optimizer("torch.optim:SGD", lr=0.1), net) is None


# Schedules ------------------------------------------------------------------------------------------------------------


def rates(name: str, epochs: int = 6, **arguments: object) -> list[float]:
    made = optimizer("torch.optim:SGD", lr=0.1)
    schedule = get_scheduler(made, OwnSchedule(name=name, **arguments), epochs)
    found = []
    for _ in range(epochs):
        found.append(made.param_groups[0]["lr"])
        step_scheduler(schedule, 1.0)
    return found


def test_a_function_of_optimizer_and_epochs_is_a_schedule():
    expected = [0.1 * (1 + (5 - 1) * (1 - abs(2 * epoch / 6 - 1))) for epoch in range(6)]
    assert rates("own_parts:triangle", peak=5) == pytest.approx(expected)
    assert rates("own_parts:triangle", epochs=7, peak=5, warmup_epochs=1)[1:] == pytest.approx(expected)
    preview = preview_learning_rates(OwnSchedule(name="own_parts:triangle", peak=5), 0.1, 6, [0, 3, 5])
    assert preview == pytest.approx([expected[0], expected[3], expected[5]])


def test_a_class_of_torch_is_a_schedule():
    found = rates("torch.optim.lr_scheduler:PolynomialLR", total_iters=100)
    assert found == pytest.approx([0.1 * (1 - epoch / 100) for epoch in range(6)])
    warm = rates("torch.optim.lr_scheduler:PolynomialLR", total_iters=100, warmup_epochs=1)
    assert warm == pytest.approx([0.05, *found[:5]])


def test_a_class_derived_from_plateau_gets_the_monitored_value():
    assert rates("own_parts:OwnPlateau") == pytest.approx([0.1, 0.1, 0.05, 0.025, 0.0125, 0.00625])
    assert preview_learning_rates(OwnSchedule(name="own_parts:OwnPlateau"), 0.1, 6, [0, 3]) is None


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("own_parts:triangle", {"pek": 3}, "scheduler.pek: unknown key; did you mean 'scheduler.peak'?"),
        ("torch.optim.lr_scheduler:PolynomialLR", {"min_lr": 0.1}, "scheduler.min_lr: unknown key"),
        ("torch.optim.lr_scheduler:StepLR", {}, "scheduler.step_size: missing"),
        ("torch.optim.lr_scheduler:StepL", {}, "did you mean 'torch.optim.lr_scheduler:StepLR'?"),
        ("own_parts:not_one", {}, "scheduler.name: own_parts:not_one returns int, but must return a"),
        ("own_parts:of_another", {}, "of the optimizer that it is given"),
        ("own_parts:raising", {}, "scheduler: own_parts:raising cannot be built: KeyError: 'peak' (own_parts.py, line"),
    ],
)
def test_a_wrong_schedule_is_refused_with_its_reason(name, arguments, said):
    with pytest.raises(UserError) as caught:
        rates(name, **arguments)
    assert said in str(caught.value)


def test_the_number_of_epochs_is_not_an_argument():
    with pytest.raises(UserError, match=r"^scheduler\.epochs: unknown key"):
        get_scheduler(optimizer("torch.optim:SGD"), OwnSchedule(name="own_parts:triangle", epochs=3), 6)


def test_an_argument_that_a_class_stores_is_accepted(monkeypatch):
    class Storing(torch.optim.SGD):
        def __init__(self, params, lr=0.1, **others):
            self.others_of_mine = others.get("others_of_mine")
            super().__init__(params, lr=lr)

    monkeypatch.setitem(sys.modules, "mine_alone", types.SimpleNamespace(Storing=Storing))
    assert optimizer("mine_alone:Storing", others_of_mine=4).others_of_mine == 4
    assert "takes it and ignores it" in refused("mine_alone:Storing", fourth=4)
