"""A step of two networks: every gradient equals that of a plain PyTorch loop, for any accumulation."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.nn import functional as F

from accel_restore.config.adversarial import Adversarial
from accel_restore.config.load import config_from
from accel_restore.losses import build_loss
from accel_restore.losses.adversarial import Objective, r1
from accel_restore.models.spectral_norm import SpectralConv2d, power_iteration
from accel_restore.optim import adversary as flow
from accel_restore.optim.adversary import COLUMNS, Adversary, adversarial_step, setup_adversary
from accel_restore.state import TrainState

WEIGHT, RATE = 0.3, 0.05


class Pointwise(nn.Module):
    """Two linear layers in each pixel."""

    def __init__(self, outputs: int, seed: int, *, spectral: bool = False):
        super().__init__()
        torch.manual_seed(seed)
        self.first = SpectralConv2d(3, 4, 1) if spectral else nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(images)))


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    for shared in (PartialState, AcceleratorState, GradientState):
        shared._shared_state.clear()


def networks(spectral: bool = False) -> tuple[nn.Module, nn.Module]:
    return Pointwise(3, 1), Pointwise(1, 2, spectral=spectral)


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.rand(count, 3, 5, 4), torch.rand(count, 3, 5, 4)


def micro_batches(size: int, real: int = 6) -> list[dict]:
    """Return the samples in micro-batches of `size`; those after the first `real` are padding."""
    inputs, gts = images()
    weight = torch.tensor([1 / real] * real + [0.0] * (6 - real))
    parts = zip(inputs.split(size), gts.split(size), weight.split(size), strict=True)
    made = [{"input": x, "gt": y, "weight": w, "is_last": False} for x, y, w in parts]
    made[-1]["is_last"] = True
    return made


def prepared(spectral: bool = False, **settings) -> TrainState:
    """Return a state of two networks with SGD, whose steps show the gradients."""
    accelerator = Accelerator(cpu=True)
    config = Adversarial.model_validate({"weight": WEIGHT, **settings})
    parts = []
    for network in networks(spectral):
        optimizer = torch.optim.SGD(network.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        parts.append(accelerator.prepare(network, optimizer, schedule))
    second = Adversary(config, *parts[1], accelerator, parts[1][0].forward)
    terms = ("adversarial", "l1")
    sums = torch.zeros(2 + len(terms) + len(COLUMNS))
    return TrainState(*parts[0], 1, sums, terms=terms, adversary=second, judged=COLUMNS)


def made_steps(state: TrainState, size: int, steps: int = 2, real: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    """Make steps, and return the weights of both networks."""
    assert state.adversary is not None
    for _ in range(steps):
        adversarial_step(state, micro_batches(size, real), build_loss({"l1": 1.0}), state.adversary.accelerator, None)
        state.step += 1
    return [[p.detach() for p in network.parameters()] for network in (state.model, state.adversary.module)]


def plain(objective: Objective, steps: int = 2, real: int = 6, spectral: bool = False, r1: float = 0.0):
    """Make the same steps in plain PyTorch, with all samples in one batch."""
    generator, discriminator = networks(spectral)
    g_optimizer, d_optimizer = (torch.optim.SGD(n.parameters(), RATE) for n in (generator, discriminator))
    x, y = (part[:real] for part in images())
    for _ in range(steps):
        output = generator(x)
        g_loss = (output - y).abs().mean() + WEIGHT * objective.generator(
            discriminator(output), discriminator(y)
        ).mean()
        g_gradients = torch.autograd.grad(g_loss, list(generator.parameters()))
        d_loss = objective.discriminator(discriminator(y), discriminator(output.detach())).mean()
        if r1:
            at = y.clone().requires_grad_()
            (slope,) = torch.autograd.grad(discriminator(at).flatten(1).mean(1).sum(), at, create_graph=True)
            d_loss = d_loss + r1 / 2 * slope.square().flatten(1).sum(1).mean()
        d_gradients = torch.autograd.grad(d_loss, list(discriminator.parameters()))
        for network, gradients, optimizer in (
            (generator, g_gradients, g_optimizer),
            (discriminator, d_gradients, d_optimizer),
        ):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        power_iteration(discriminator)
    return [[p.detach() for p in network.parameters()] for network in (generator, discriminator)]


def distance(one, other) -> float:
    """The largest difference of any weight of either network."""
    return max(
        float((a - b).detach().abs().max()) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("loss", ["vanilla", "lsgan", "hinge", "wgan", "relativistic"])
@pytest.mark.parametrize("size", [6, 2])  # one micro-batch, three
@pytest.mark.parametrize("real", [6, 4])  # the last step of an epoch has padding
def test_weights_of_both_networks_are_those_of_a_plain_loop(loss, size, real):
    expected = plain(Objective(loss), real=real)
    assert distance(made_steps(prepared(loss=loss), size, real=real), expected) < 1e-12
    assert distance(plain(Objective(loss), steps=1, real=real), expected) > 1e-4  # steps do change them


@pytest.mark.parametrize("size", [6, 2])
def test_the_gradient_penalty_is_that_of_a_plain_loop(size):
    expected = plain(Objective("wgan"), steps=1, r1=2.0 * 3)
    assert distance(made_steps(prepared(loss="wgan", r1=2.0, r1_every=3), size, steps=1), expected) < 1e-12
    assert distance(plain(Objective("wgan"), steps=1), expected) > 1e-6


@pytest.mark.parametrize("size", [6, 2])
def test_spectral_norm_does_not_depend_on_accumulation(size, monkeypatch):
    expected = plain(Objective("vanilla"), steps=4, spectral=True)
    assert distance(made_steps(prepared(spectral=True), size, steps=4), expected) < 1e-12

    def iterating(layer, images):  # the control: as torch does it
        layer.iterate()
        return F.conv2d(images, layer.normalized_weight(), layer.bias)

    monkeypatch.setattr(SpectralConv2d, "forward", iterating)
    assert distance(made_steps(prepared(spectral=True), size, steps=4), expected) > 1e-9


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 3, 6]), (2, [1, 7])])
def test_the_penalty_counts_steps_of_the_discriminator(every, steps):
    adversary = prepared(r1=1.0, r1_every=3, discriminator_every=every).adversary
    found = []
    for step in range(8):
        adversary.start_step(0, step)
        found += [step] * adversary.is_penalized
    assert found == steps


def test_the_penalty_is_computed_without_autocast():
    torch.set_default_dtype(torch.float32)
    given = {"data": {"train": {"gt": "photos"}, "patch_size": 32}, "adversarial": {"discriminator": {"width": 2}}}
    adversary = setup_adversary(config_from(given), Accelerator(cpu=True, mixed_precision="bf16"), 1)
    found = []
    layers = [part for part in adversary.module.modules() if not list(part.children())]
    layers[0].register_forward_hook(lambda layer, given, output: found.append(output.dtype))
    gt = torch.rand(1, 3, 32, 32)
    r1(adversary.plain_forward, gt)
    r1(adversary.module, gt)  # the control
    assert found == [torch.float32, torch.bfloat16]


def test_the_penalty_is_not_part_of_the_recorded_loss():
    plainly, penalized = prepared(), prepared(r1=100.0)
    for state in (plainly, penalized):
        made_steps(state, 6, steps=1)
    place = 2 + len(plainly.terms)
    assert plainly.epoch_sums[place] == penalized.epoch_sums[place]


def test_frozen_parameters_of_a_discriminator_stay_frozen():
    state = prepared()
    frozen = next(state.adversary.module.parameters()).requires_grad_(False)
    made_steps(state, 2, steps=2)
    assert not frozen.requires_grad and frozen.grad is None


def test_a_term_without_gradient_is_noticed(monkeypatch):
    expected = plain(Objective("vanilla"))
    generator = Objective.generator
    monkeypatch.setattr(Objective, "generator", lambda self, *logits: generator(self, *logits).detach())
    assert distance(made_steps(prepared(), 6), expected) > 1e-6


def test_the_discriminators_loss_does_not_reach_the_generator(monkeypatch):
    def attached(state, batches, *given):
        """The control: the output is not detached."""
        backward = Adversary.backward

        def of_whole_graph(self, output, batch):
            outputs.append(state.model(batch["input"]))
            return backward(self, outputs[-1], batch)

        monkeypatch.setattr(Adversary, "backward", of_whole_graph)
        return adversarial_step(state, batches, *given)

    outputs: list[Tensor] = []
    expected = plain(Objective("vanilla"))
    monkeypatch.setattr(flow, "adversarial_step", attached)
    state = prepared()
    attached(state, micro_batches(6), build_loss({"l1": 1.0}), state.adversary.accelerator, None)
    assert distance([list(state.model.parameters())], [expected[0]]) > 1e-6


def test_the_generators_loss_does_not_reach_the_discriminator():
    state = prepared(discriminator_every=2)
    before = [p.detach().clone() for p in state.adversary.module.parameters()]
    made_steps(state, 2, steps=1)
    assert all(parameter.grad is None for parameter in state.adversary.module.parameters())
    assert distance([before], [list(state.adversary.module.parameters())]) == 0


@pytest.mark.parametrize(
    ("settings", "generator", "discriminator"),
    [
        ({}, [1, 1, 1, 1], [1, 1, 1, 1]),
        ({"generator_every": 2}, [0, 1, 0, 1], [1, 1, 1, 1]),
        ({"discriminator_every": 3}, [1, 1, 1, 1], [0, 0, 1, 0]),
        ({"starts_at_epoch": 1}, [1, 1, 1, 1], [0, 0, 1, 1]),
        ({"skip_above": 0.51}, [1, 1, 1, 1], [0, 0, 0, 0]),
    ],
)
def test_each_network_is_stepped_when_it_is_due(settings, generator, discriminator, monkeypatch):
    monkeypatch.setattr(Objective, "accuracy", lambda self, real, fake: torch.full((len(real),), 0.6))
    state, changed = prepared(**settings), ([], [])
    for step in range(4):
        before = [[p.detach().clone() for p in n.parameters()] for n in (state.model, state.adversary.module)]
        state.epoch = step // 2
        after = made_steps(state, 3, steps=1)
        for which, one, other in zip(changed, before, after, strict=True):
            which.append(int(distance([one], [other]) > 0))
    assert changed == (generator, discriminator)


@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_both_steps_are_skipped_if_one_gradient_is_not_finite(which):
    state = prepared()
    network = state.model if which == "generator" else state.adversary.module
    weight = next(network.parameters())
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = [[p.detach().clone() for p in n.parameters()] for n in (state.model, state.adversary.module)]
    assert distance(made_steps(state, 3, steps=1), before) == 0


def test_what_the_discriminator_sees_is_recorded():
    state = prepared()
    made_steps(state, 2, steps=1, real=4)
    sums = dict(zip(("loss", "samples", *state.terms, *COLUMNS), state.epoch_sums.tolist(), strict=True))
    x, y = (part[:4] for part in images())
    generator, discriminator = networks()
    real, fake = discriminator(y), discriminator(generator(x))
    assert sums["samples"] == sums["d_samples"] == sums["g_samples"] == 4
    assert sums["d_real"] / 4 == pytest.approx(real.mean().item(), abs=1e-12)
    assert sums["d_fake"] / 4 == pytest.approx(fake.mean().item(), abs=1e-12)
    assert sums["d_loss"] / 4 == pytest.approx((F.softplus(-real) + F.softplus(fake)).mean().item(), abs=1e-12)
    assert sums["d_accuracy"] / 4 == pytest.approx(((real > 0).double() + (fake < 0).double()).mean().item() / 2)
    assert 0 < sums["g_share"] / 4 < 1
