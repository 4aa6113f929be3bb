"""Schedules, optimizers, weight decay and the average of the weights, compared with torch and plain loops."""

import itertools

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from accel_restore.config.load import config_from
from accel_restore.config.optim import OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS, SGD, AdamW
from accel_restore.errors import UserError
from accel_restore.models import build_model
from accel_restore.optim import OPTIMIZERS, get_optimizer
from accel_restore.optim.schedules import SCHEDULES, get_scheduler, preview_learning_rates, step_scheduler
from accel_restore.registry import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # nothing is trained here

EPOCHS, LR = 30, 0.013
MADE_UP = [1.0, 0.9, 0.95, 0.95, 0.95, 0.95, 0.8, 0.81, 0.82, 0.83, *[0.84] * 20]  # monitored values of 30 epochs

# The arguments, and a function that builds torch's scheduler for an optimizer.
BY_HAND = {
    "constant": ({}, lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0)),
    "cosine": ({"min_lr": 1e-5}, lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS, 1e-5)),
    "cosine_restarts": (
        {"min_lr": 1e-5, "period": 4, "period_factor": 2},
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2, 1e-5),
    ),
    "multistep": ({"milestones": [5, 11, 20], "gamma": 0.3}, lambda o: lr_scheduler.MultiStepLR(o, [5, 11, 20], 0.3)),
    "step": ({"step_size": 7, "gamma": 0.3}, lambda o: lr_scheduler.StepLR(o, 7, 0.3)),
    "exponential": ({"gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    "plateau": (
        {"factor": 0.3, "patience": 2, "min_lr": 1e-4},
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.3, patience=2, min_lr=1e-4, threshold=0.0),
    ),
}
FLOORED = {
    "multistep": {"milestones": [5, 11, 20], "gamma": 0.1},
    "step": {"step_size": 3, "gamma": 0.1},
    "exponential": {"gamma": 0.5},
    "plateau": {"factor": 0.1, "patience": 0},
    "cosine": {},
    "cosine_restarts": {"period": 10},
}


def optimizer(lr: float = LR) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.zeros(()))
    return torch.optim.SGD([parameter], lr=lr)


def section(name: str, **arguments: object):
    return SCHEDULE_SECTIONS[name](**arguments)


def rates(name: str, epochs: int = EPOCHS, lr: float = LR, **arguments: object) -> list[float]:
    """Return the rate of each epoch when the schedule is stepped as in training."""
    made = optimizer(lr)
    scheduler = get_scheduler(made, section(name, **arguments), epochs)
    found = []
    for epoch in range(epochs):
        found.append(made.param_groups[0]["lr"])
        step_scheduler(scheduler, MADE_UP[epoch])
    return found


def rates_by_hand(build, epochs: int = EPOCHS) -> list[float]:
    made = optimizer()
    scheduler = build(made)
    found = []
    for epoch in range(epochs):
        found.append(made.param_groups[0]["lr"])
        scheduler.step(*([MADE_UP[epoch]] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    return found


def test_every_schedule_and_optimizer_has_a_section_and_every_schedule_a_reference():
    assert set(BY_HAND) == set(SCHEDULES) == set(SCHEDULE_SECTIONS)
    assert set(OPTIMIZERS) == set(OPTIMIZER_SECTIONS)


@pytest.mark.parametrize("name", BY_HAND)
def test_rates_are_bit_identical_to_torch(name):
    arguments, build = BY_HAND[name]
    found = rates(name, **arguments)
    assert found == rates_by_hand(build)
    assert found[0] == LR
    assert (len(set(found)) > 1) == (name != "constant")  # the control: something has been compared


def test_cosine_may_start_after_hold_epochs():
    found = rates("cosine", min_lr=1e-5, hold_epochs=4)
    assert found[:5] == [LR] * 5
    assert found[4:] == pytest.approx(rates("cosine", epochs=EPOCHS - 4, min_lr=1e-5), rel=1e-12)
    assert rates("cosine", epochs=3, hold_epochs=5) == [LR] * 3


def test_cosine_ends_one_step_above_its_floor():
    found = rates("cosine", min_lr=1e-6)
    made = optimizer()
    scheduler = get_scheduler(made, section("cosine", min_lr=1e-6), EPOCHS)
    for _ in range(EPOCHS):
        scheduler.step()
    assert all(a > b for a, b in itertools.pairwise(found))
    assert made.param_groups[0]["lr"] == pytest.approx(1e-6, rel=1e-6)  # T_max is the number of epochs
    assert found[-1] > 1e-6


@pytest.mark.parametrize("name", FLOORED)
def test_no_rate_falls_below_the_floor(name):
    floor = 1e-3
    found = rates(name, min_lr=floor, **FLOORED[name])
    free = rates(name, min_lr=0.0, **FLOORED[name])
    assert min(free) < floor  # the control
    assert min(found) >= floor * (1 - 1e-12)
    if name in ("multistep", "step", "exponential", "plateau"):
        assert found == pytest.approx([max(rate, floor) for rate in free], rel=1e-12)
        assert found[-1] == pytest.approx(floor, rel=1e-12)


@pytest.mark.parametrize("name", BY_HAND)
def test_warm_up_rises_linearly_and_the_schedule_follows_over_the_remaining_epochs(name):
    warm_up = 4
    arguments = BY_HAND[name][0]
    found = rates(name, warmup_epochs=warm_up, **arguments)
    assert found[:warm_up] == pytest.approx([LR * (epoch + 1) / (warm_up + 1) for epoch in range(warm_up)], rel=1e-12)
    assert min(found) > 0
    if name == "plateau":
        assert found[warm_up] == LR
        return
    assert found[warm_up:] == rates(name, EPOCHS - warm_up, **arguments)


def test_a_warm_up_longer_than_the_run_only_rises():
    assert rates("cosine", epochs=3, warmup_epochs=5) == pytest.approx([LR / 6, LR / 3, LR / 2])


def test_plateau_counts_from_the_end_of_warm_up():
    warm_up = 3
    found = rates("plateau", warmup_epochs=warm_up, factor=0.3, patience=2)
    made = optimizer()
    alone = lr_scheduler.ReduceLROnPlateau(made, factor=0.3, patience=2, threshold=0.0)
    expected = []
    for epoch in range(warm_up, EPOCHS):
        expected.append(made.param_groups[0]["lr"])
        alone.step(MADE_UP[epoch])
    assert found[warm_up:] == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("name", BY_HAND)
def test_a_schedule_continues_from_its_stored_state(name):
    arguments = {**BY_HAND[name][0], "warmup_epochs": 2}
    whole, resumed = (optimizer() for _ in range(2))
    first = get_scheduler(whole, section(name, **arguments), EPOCHS)
    for epoch in range(9):
        step_scheduler(first, MADE_UP[epoch])
    second = get_scheduler(resumed, section(name, **arguments), EPOCHS)
    assert resumed.param_groups[0]["lr"] != whole.param_groups[0]["lr"]
    second.load_state_dict(first.state_dict())
    resumed.param_groups[0]["lr"] = whole.param_groups[0]["lr"]
    for epoch in range(9, EPOCHS):
        step_scheduler(first, MADE_UP[epoch])
        step_scheduler(second, MADE_UP[epoch])
        assert resumed.param_groups[0]["lr"] == whole.param_groups[0]["lr"]


@pytest.mark.parametrize("name", [name for name in BY_HAND if name != "plateau"])
@pytest.mark.parametrize("warm_up", [0, 3])
def test_previewed_rates_equal_the_rates_in_training(name, warm_up):
    arguments = {**BY_HAND[name][0], "warmup_epochs": warm_up}
    trained = rates(name, **arguments)
    at = [0, EPOCHS - 1, EPOCHS // 2]
    assert preview_learning_rates(section(name, **arguments), LR, EPOCHS, at) == [trained[epoch] for epoch in at]


def test_plateau_cannot_be_previewed():
    assert preview_learning_rates(section("plateau"), LR, EPOCHS, [0]) is None


@pytest.mark.parametrize("name", OPTIMIZER_SECTIONS)
def test_an_optimizer_receives_all_its_arguments(name):
    config = OPTIMIZER_SECTIONS[name](lr=0.25, weight_decay=0.125)
    made = get_optimizer(nn.Linear(2, 1), config)
    assert type(made) is OPTIMIZERS[name]
    for key, value in config.model_dump(exclude={"name", "no_decay"}).items():
        assert made.defaults[key] == value and made.param_groups[0][key] == value


def test_weights_change_only_in_optimizer_step_and_the_rate_only_in_scheduler_step():
    """A worked example with numbers computed by hand."""
    model = nn.ParameterList([torch.tensor(0.523, dtype=torch.float64)])
    (weight,) = model.parameters()
    sgd = get_optimizer(model, SGD(lr=0.001))
    scheduler = get_scheduler(sgd, section("cosine"), 2)

    def step(gradient: float) -> float:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        sgd.step()
        return weight.item()

    assert step(-0.15) == pytest.approx(0.52315, abs=1e-9)
    assert step(-0.12) == pytest.approx(0.52327, abs=1e-9)
    assert sgd.param_groups[0]["lr"] == 0.001  # unchanged by two steps of the optimizer
    before = weight.item()
    scheduler.step()
    assert weight.item() == before
    assert sgd.param_groups[0]["lr"] == pytest.approx((0.001 + 1e-6) / 2)
    assert step(-0.12) - before == pytest.approx(0.12 * (0.001 + 1e-6) / 2)  # the new rate is the one in use


def test_plateau_reduces_the_rate_when_a_monitored_psnr_falls():
    def rate_after(scheduler, made):
        for epoch in range(10):
            step_scheduler(scheduler, -(30.0 - 0.002 * epoch))
        return made.param_groups[0]["lr"]

    made = optimizer()
    assert rate_after(get_scheduler(made, section("plateau", patience=2, factor=0.5), 10), made) < LR
    made = optimizer()  # the control: with torch's default, relative threshold a slightly worse value counts as better
    assert rate_after(lr_scheduler.ReduceLROnPlateau(made, patience=2, factor=0.5), made) == LR


# Weight decay ---------------------------------------------------------------------------------------------------------


def exempt(model: nn.Module, *no_decay: str) -> set[str]:
    """Return the names of the parameters without weight decay, and check that all others have it."""
    made = get_optimizer(model, AdamW(weight_decay=0.5, no_decay=list(no_decay)))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(id(p) for group in made.param_groups for p in group["params"]) == sorted(names)
    assert {group["weight_decay"] for group in made.param_groups} <= {0.0, 0.5}
    assert len({group["lr"] for group in made.param_groups}) == 1
    return {names[id(p)] for group in made.param_groups if group["weight_decay"] == 0 for p in group["params"]}


class Scales(nn.Module):
    """Scales as in NAFNet and Restormer, and convolutions with equally few values."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))
        self.table = nn.Parameter(torch.ones(4, 4))
        self.one_by_one = nn.Conv2d(8, 1, 1)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8, bias=False)
        self.norm = nn.LayerNorm((8, 5))
        self.act = nn.PReLU()
        self.attention = nn.MultiheadAttention(8, 2)


def test_no_decay_selects_norms_biases_and_patterns():
    norms = {"beta", "temperature", "norm.weight", "norm.bias", "act.weight"}
    biases = {"one_by_one.bias", "norm.bias", "attention.in_proj_bias", "attention.out_proj.bias"}
    assert exempt(Scales()) == set()  # the original recipe
    assert exempt(Scales(), "norms") == norms
    assert exempt(Scales(), "biases") == biases
    assert exempt(Scales(), "norms", "biases") == norms | biases
    assert exempt(Scales(), "biases", "depth*", "table") == biases | {"depthwise.weight", "table"}
    batch = {"body.3.weight", "body.3.bias"}
    dncnn = build_model("dncnn", {"width": 8, "depth": 3, "norm": "batch"}, 3)
    assert exempt(dncnn, "norms") == batch
    assert exempt(dncnn, "norms", "biases") == batch | {"body.0.bias", "body.5.bias"}
    assert exempt(build_model("unet", {"width": 8}, 3), "norms", "biases") == set()  # it has none, which is no error


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_biases_leave_only_kernels_to_decay_in_every_model(name, channels):
    model = build_model(name, {}, channels)
    kernels = {f"{prefix}.weight" for prefix, module in model.named_modules() if hasattr(module, "kernel_size")}
    names = {name for name, _ in model.named_parameters()}
    assert exempt(model, "norms", "biases") == names - kernels
    assert kernels <= names


def test_a_pattern_without_a_match_is_rejected_with_a_suggestion():
    for pattern, said in (("norm.weigth", r"did you mean 'norm\.weight'\?"), ("zzz*", "names start with beta, ")):
        with pytest.raises(
            UserError, match=rf"^optimizer\.no_decay: no parameter matches '{pattern}'.*{said}".replace("*'", r"\*'")
        ):
            exempt(Scales(), pattern)
    with pytest.raises(UserError, match=r"optimizer\.no_decay"):
        config_from({"data": {"train": {"gt": "a"}}, "optimizer": {"no_decay": "norms"}})


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("warm_up", [0, 3])
def test_all_parameter_groups_have_the_same_rate(name, warm_up):
    arguments = {**BY_HAND[name][0], "warmup_epochs": warm_up}
    made = get_optimizer(Scales(), SGD(lr=LR, weight_decay=0.1, no_decay=["norms"]))
    scheduler = get_scheduler(made, section(name, **arguments), EPOCHS)
    found = []
    for epoch in range(EPOCHS):
        assert len(made.param_groups) == 2
        found.append({group["lr"] for group in made.param_groups})
        step_scheduler(scheduler, MADE_UP[epoch])
    assert found == [{rate} for rate in rates(name, **arguments)]


def test_weight_decay_shrinks_only_the_parameters_that_have_it():
    model = Scales()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    made = get_optimizer(model, AdamW(lr=0.1, weight_decay=0.5, no_decay=["norms", "biases"]))
    made.step()
    for name, parameter in model.named_parameters():
        kept = name in exempt(model, "norms", "biases")
        assert (parameter == (1.0 if kept else 0.95)).all(), name


# The average of the weights -------------------------------------------------------------------------------------------
