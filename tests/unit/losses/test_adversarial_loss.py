"""Adversarial objectives against formulas written out, however a step is divided; R1 against a gradient by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from accel_restore.losses.adversarial import NAMES, Objective, logit_mean, r1
from accel_restore.models.discriminators import UNetSN

PLAIN = ("vanilla", "lsgan", "hinge", "wgan")


def logits(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2


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
    assert Objective("relativistic").accuracy(real, fake).tolist() == [1.0, 0.0]  # means 1.5 and -1.5, -0.4 and 1.7
    assert logit_mean(real.bfloat16().requires_grad_()).tolist() == pytest.approx([1.5, -0.4], rel=1e-2)


def of_pair(real, fake):
    """Return both relativistic losses of a pair of images, as the paper writes them, each the mean of two parts."""

    def cost(values, is_real):
        return F.binary_cross_entropy_with_logits(values, torch.full_like(values, float(is_real)))

    d_loss = (cost(real - fake.mean(), True) + cost(fake - real.mean(), False)) / 2
    g_loss = (cost(real.detach() - fake.mean(), False) + cost(fake - real.detach().mean(), True)) / 2
    return d_loss, g_loss


def gradients(loss, real, fake):
    return torch.autograd.grad(loss, (real, fake), retain_graph=True, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 2, 2)])
def test_relativistic_losses_compare_each_image_with_its_own_pair(sizes):
    real, fake = (logits(6, 1, 4, 5, seed=seed).requires_grad_() for seed in (0, 1))
    pairs = [of_pair(r, f) for r, f in zip(real, fake, strict=True)]
    objective = Objective("relativistic")
    parts = list(zip(real.split(sizes), fake.split(sizes), strict=True))
    d_loss = sum(objective.discriminator(r, f).sum() for r, f in parts) / 6
    g_loss = sum(objective.generator(f, r).sum() for r, f in parts) / 6
    for found, wanted in zip((d_loss, g_loss), (sum(values) / 6 for values in zip(*pairs, strict=True)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
        for one, two in zip(gradients(found, real, fake), gradients(wanted, real, fake), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-15)
    assert gradients(g_loss, real, fake)[0].eq(0).all()
    whole = of_pair(real, fake)[1]  # the control: the mean over the batch gives another loss
    assert abs(whole - g_loss) > 1e-3


def test_a_relativistic_generator_needs_the_logits_of_gt():
    with pytest.raises(ValueError, match="give real too"):
        Objective("relativistic").generator(logits(2, 1))


def test_unknown_objectives_are_refused():
    with pytest.raises(ValueError, match=r"unknown choice 'vanila'; choose one of: vanilla, .*did you mean 'vanilla'"):
        Objective("vanila")
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
    with pytest.raises(RuntimeError, match=r"double backward|donated buffers"):  # control: no second derivative
        torch.autograd.grad(net(gt.requires_grad_()).sum(), gt, create_graph=True)[0].square().sum().backward()
