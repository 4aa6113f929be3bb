"""Adversarial objectives against formulas written out, however a step is divided; R1 against a gradient by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from accel_restore.losses.adversarial import NAMES, Objective, logit_mean, r1
from accel_restore.models.discriminators import UNetSN

PLAIN = ("vanilla", "lsgan", "hinge", "wgan")
RELATIVE = (Objective("relativistic"), Objective("vanilla", relativistic=True), Objective("lsgan", relativistic=True))


def logits(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2


def mean_over(parts):
    """Return an `average` of one process, which checks its calls."""
    calls = []

    def average(values):
        calls.append(tuple(values.shape))
        return values.mean(0)

    return average, calls


# Without means --------------------------------------------------------------------------------------------------------


def by_hand(name, real, fake):
    """Return the discriminator's and the generator's loss of one sample, number by number."""
    real, fake = real.flatten().tolist(), fake.flatten().tolist()

    def bce(value, is_real):
        probability = 1 / (1 + math.exp(-value))
        return -math.log(probability if is_real else 1 - probability)

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    if name == "vanilla":
        return mean(bce(v, True) for v in real) + mean(bce(v, False) for v in fake), mean(bce(v, True) for v in fake)
    if name == "lsgan":
        return mean((v - 1) ** 2 for v in real) + mean(v**2 for v in fake), mean((v - 1) ** 2 for v in fake)
    if name == "hinge":
        return mean(max(0, 1 - v) for v in real) + mean(max(0, 1 + v) for v in fake), -mean(fake)
    return mean(fake) - mean(real), -mean(fake)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 5, 4), (3, 7)])
@pytest.mark.parametrize("name", PLAIN)
def test_terms_are_those_of_the_papers_for_logits_of_any_shape(name, shape):
    real, fake = logits(*shape), logits(*shape, seed=1)
    objective = Objective(name)
    expected = [by_hand(name, r, f) for r, f in zip(real, fake, strict=True)]
    assert not objective.is_relativistic
    assert objective.discriminator(real, fake).tolist() == pytest.approx([d for d, _ in expected])
    assert objective.generator(fake).tolist() == pytest.approx([g for _, g in expected])
    assert (objective.real_term(real) + objective.fake_term(fake)).equal(objective.discriminator(real, fake))


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_match_finite_differences(name):
    real, fake = (logits(2, 1, 2, 3, seed=seed).requires_grad_() for seed in (0, 1))
    objective = Objective(name)
    assert torch.autograd.gradcheck(objective.discriminator, (real, fake))
    assert torch.autograd.gradcheck(objective.generator, (fake,))


@pytest.mark.parametrize("name", PLAIN)
def test_half_precision_and_large_logits_give_finite_float32(name):
    real, fake = (torch.tensor([[sign * 300.0], [0.5]], dtype=torch.bfloat16).requires_grad_() for sign in (1, -1))
    objective = Objective(name)
    with torch.autocast("cpu", torch.bfloat16):
        values = objective.discriminator(real, fake) + objective.discriminator(fake, real) + objective.generator(fake)
    assert values.dtype == torch.float32 and values.isfinite().all()
    values.sum().backward()
    assert real.grad.isfinite().all() and fake.grad.isfinite().all()


def test_accuracy_is_the_share_of_logits_on_the_right_side():
    real, fake = torch.tensor([[2.0, 1.0], [-1.0, 0.2]]), torch.tensor([[-1.0, -2.0], [3.0, 0.4]])
    for name in ("vanilla", "hinge"):
        assert Objective(name).accuracy(real, fake).tolist() == [1.0, 0.25]
    assert Objective("lsgan").accuracy(real, fake).tolist() == [1.0, 0.25]
    assert Objective("wgan").accuracy(real, fake).tolist() == [1.0, 0.0]
    objective = Objective("relativistic")
    statistics = objective.statistics([(real, fake)], lambda values: values.mean(0))  # means 0.55 and 0.1
    assert objective.accuracy(real, fake, statistics).tolist() == [1.0, 0.5]
    assert logit_mean(real.bfloat16().requires_grad_()).tolist() == pytest.approx([1.5, -0.4], rel=1e-2)


# The relativistic average ---------------------------------------------------------------------------------------------


def whole_step(objective, real, fake):
    """Return both losses of a whole batch, as the paper writes them, with the halves of ESRGAN's code."""

    def cost(values, is_real):
        if objective.name == "lsgan":
            return F.mse_loss(values, torch.full_like(values, float(is_real)))
        return F.binary_cross_entropy_with_logits(values, torch.full_like(values, float(is_real)))

    d_loss = (cost(real - fake.mean(), True) + cost(fake - real.mean(), False)) / 2
    g_loss = (cost(real.detach() - fake.mean(), False) + cost(fake - real.detach().mean(), True)) / 2
    return d_loss, g_loss


def gradients(loss, real, fake):
    return torch.autograd.grad(loss, (real, fake), retain_graph=True, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 5), (1, 1, 1, 1, 1, 1), (2, 0, 4)])
@pytest.mark.parametrize("objective", RELATIVE, ids=str)
def test_relativistic_losses_and_gradients_are_exact_however_the_step_is_divided(objective, sizes):
    real, fake = (logits(6, 1, 4, 5, seed=seed).requires_grad_() for seed in (0, 1))
    expected = whole_step(objective, real, fake)
    average, calls = mean_over(sizes)
    parts = list(zip(real.split(sizes), fake.split(sizes), strict=True))
    statistics = objective.statistics(parts, average)
    assert calls == [(6, 2), (6, 3)] and not any(value.requires_grad for value in statistics)
    d_loss = sum(objective.discriminator(r, f, statistics).sum() for r, f in parts) / 6
    g_loss = sum(objective.generator(f, r, statistics).sum() for r, f in parts) / 6
    for found, wanted in zip((d_loss, g_loss), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
        for one, two in zip(gradients(found, real, fake), gradients(wanted, real, fake), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-15)
    assert gradients(g_loss, real, fake)[0].eq(0).all()


@pytest.mark.parametrize("objective", RELATIVE, ids=str)
def test_control_means_of_micro_batches_or_constant_means_give_other_gradients(objective):
    real, fake = (logits(6, 1, 4, 5, seed=seed).requires_grad_() for seed in (0, 1))
    expected = gradients(whole_step(objective, real, fake)[1], real, fake)[1]
    pieces = zip(real.split(2), fake.split(2), strict=True)
    divided = sum(whole_step(objective, r, f)[1] for r, f in pieces) / 3
    assert (gradients(divided, real, fake)[1] - expected).abs().max() > 1e-5
    statistics = objective.statistics([(real, fake)], lambda values: values.mean(0))
    constant = objective.generator(fake, real, statistics._replace(g_fake=torch.zeros(()))).mean()
    assert (gradients(constant, real, fake)[1] - expected).abs().max() > 1e-5


def test_a_rank_without_samples_takes_part_in_both_averages():
    average, calls = mean_over(())

    def global_average(values):
        average(values)
        return torch.arange(1.0, values.shape[1] + 1)

    statistics = Objective("relativistic").statistics([], global_average)
    assert calls == [(0, 2), (0, 3)] and [float(value) for value in statistics] == [1, 2, 1, 2, 3]


def test_a_relativistic_objective_is_not_computed_without_the_whole_step():
    objective = Objective("relativistic")
    values = logits(2, 1)
    for call in (objective.real_term, objective.fake_term):
        with pytest.raises(ValueError, match="statistics of the whole step"):
            call(values)
    with pytest.raises(ValueError, match="statistics of the whole step"):
        objective.generator(values, values)
    with pytest.raises(ValueError, match="give real too"):
        objective.generator(values)


def test_unknown_objectives_are_refused():
    with pytest.raises(ValueError, match=r"unknown choice 'vanila'; choose one of: vanilla, .*did you mean 'vanilla'"):
        Objective("vanila")
    for name in ("hinge", "wgan"):
        with pytest.raises(ValueError, match=f"relativistic is for the losses vanilla and lsgan, not for {name}"):
            Objective(name, relativistic=True)
    assert set(NAMES) == {*PLAIN, "relativistic"}


# R1 -------------------------------------------------------------------------------------------------------------------


def test_r1_of_a_quadratic_discriminator_is_known():
    gt = logits(3, 2, 4, 4)

    def discriminator(images):  # the mean logit is sum(x²) / 2: its gradient is x
        return images.square().flatten(1).sum(1, keepdim=True) / 2 + torch.tensor([-1.0, 1.0])

    torch.testing.assert_close(r1(discriminator, gt), gt.square().flatten(1).sum(1) / 2)


def test_r1_does_not_depend_on_the_batch_and_its_gradient_matches_finite_differences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Conv2d(3, 1, 2)).double()
    gt = logits(3, 2, 5, 5)
    values = r1(net, gt)
    assert values.shape == (3,) and len(set(values.tolist())) == 3
    torch.testing.assert_close(values, torch.cat([r1(net, image) for image in gt.split(1)]))
    weight = net[0].weight.detach().clone().requires_grad_()

    def penalty(weight):
        return r1(lambda images: torch.func.functional_call(net, {"0.weight": weight}, (images,)), gt)

    assert torch.autograd.gradcheck(penalty, weight)


def test_r1_works_within_no_grad_autocast_and_for_a_compiled_discriminator():
    torch.manual_seed(0)
    net = UNetSN(width=4)
    gt = torch.rand(2, 3, 16, 16)
    expected = r1(net, gt)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert r1(net, gt).equal(expected)
    net.compile(backend="aot_eager")
    net(gt).sum().backward()
    values = r1(net, gt)
    torch.testing.assert_close(values, expected)
    net.zero_grad()
    values.sum().backward()
    assert net.conv1.weight_orig.grad.abs().max() > 0
    with pytest.raises(RuntimeError, match="double backward"):  # control: compiled code has no second derivative
        torch.autograd.grad(net(gt.requires_grad_()).sum(), gt, create_graph=True)[0].square().sum().backward()
