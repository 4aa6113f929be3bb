"""Spectral norm whose vectors move once per step: against torch's own, in every precision, compiled and under DDP."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from accel_restore.errors import UserError
from accel_restore.models.spectral_norm import SpectralConv2d, freeze_vectors, power_iteration


def layer(**options) -> SpectralConv2d:
    torch.manual_seed(0)
    return SpectralConv2d(3, 5, 3, padding=1, **options)


def images(dtype=torch.float32, count=2) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def vectors(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for name, value in module.named_buffers()]


def test_iterations_find_the_largest_singular_value():
    conv = layer().double()
    largest = torch.linalg.matrix_norm(conv.weight_orig.detach().flatten(1), 2)
    errors = []
    for _ in range(5):
        for _ in range(20):
            power_iteration(conv)
        errors.append((torch.linalg.matrix_norm(conv.normalized_weight().flatten(1), 2) - 1).abs().item())
    assert errors[-1] < 1e-10 and errors[-1] <= errors[0]
    torch.testing.assert_close(conv.normalized_weight(), conv.weight_orig / largest)


def test_outputs_gradients_and_iterations_equal_those_of_torch():
    torch.manual_seed(0)
    theirs = nn.utils.spectral_norm(nn.Conv2d(3, 5, 3, padding=1)).double()
    ours = layer().double()
    ours.load_state_dict(theirs.state_dict())  # the names are the same
    for _ in range(3):
        theirs.train()
        power_iteration(ours)
        expected = theirs(images(torch.float64))  # iterates
        found = ours(images(torch.float64))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
        theirs.zero_grad(), ours.zero_grad()
        expected.square().sum().backward()
        found.square().sum().backward()
        torch.testing.assert_close(ours.weight_orig.grad, theirs.weight_orig.grad, rtol=0, atol=1e-12)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-14)


def test_forwards_never_move_the_vectors():
    conv = layer()
    before = vectors(conv)
    for mode in (True, False, True):
        conv.train(mode)
        conv(images()).sum().backward()
    assert all(new.equal(old) for new, old in zip(vectors(conv), before, strict=True))
    power_iteration(conv)
    assert not any(new.equal(old) for new, old in zip(vectors(conv), before, strict=True))


def train(module: nn.Module, step, parts: int) -> list[torch.Tensor]:
    """Train for 4 steps with 8 images in `parts` micro-batches; `step` is called before the forwards."""
    module = copy.deepcopy(module).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        step(module)
        for part in images(torch.float64, 8).chunk(parts):
            (module(part).square().flatten(1).mean(1).sum() / 8).backward()
        optimizer.step()
    return [parameter.detach() for parameter in module.parameters()]


def test_training_does_not_depend_on_accumulation():
    ours = [train(layer(), power_iteration, parts) for parts in (1, 2, 8)]
    for other in ours[1:]:
        for one, two in zip(ours[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-13)
    torch.manual_seed(0)
    theirs = parametrizations.spectral_norm(nn.Conv2d(3, 5, 3, padding=1))
    control = [train(theirs, lambda module: None, parts) for parts in (1, 8)]
    assert any((one - two).abs().max() > 1e-6 for one, two in zip(*control, strict=True)), "control: per forward"


def test_torchs_parametrization_iterates_once_per_step_too():
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 3, 1), parametrizations.spectral_norm(nn.Conv2d(3, 5, 3, padding=1)))
    freeze_vectors(theirs)
    results = [train(theirs, power_iteration, parts) for parts in (1, 8)]
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-13)
    theirs.train()
    before = vectors(theirs)
    theirs(images())
    assert all(new.equal(old) for new, old in zip(vectors(theirs), before, strict=True))
    power_iteration(theirs)
    assert not any(new.equal(old) for new, old in zip(vectors(theirs), before, strict=True))


def test_one_iteration_of_torchs_parametrization_is_one_forward_of_it():
    torch.manual_seed(0)
    theirs = parametrizations.spectral_norm(nn.Conv2d(3, 5, 3))
    ours = copy.deepcopy(theirs)
    freeze_vectors(ours)
    power_iteration(ours)
    with torch.no_grad():
        theirs(images())
    assert all(one.equal(two) for one, two in zip(vectors(ours), vectors(theirs), strict=True))


def test_the_older_spectral_norm_of_torch_is_refused():
    with pytest.raises(UserError, match=r"its part '1' has torch\.nn\.utils\.spectral_norm, which changes in every"):
        freeze_vectors(nn.Sequential(nn.ReLU(), nn.utils.spectral_norm(nn.Conv2d(3, 3, 1))))


def test_a_module_without_spectral_norm_is_left_alone():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    before = copy.deepcopy(module.state_dict())
    freeze_vectors(module)
    power_iteration(module)
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())


def test_gradients_match_finite_differences_in_float64():
    conv = layer().double()

    def run(x, weight, bias):
        return torch.func.functional_call(conv, {"weight_orig": weight, "bias": bias}, (x,))

    inputs = (images(torch.float64, 1)[..., :4, :4], conv.weight_orig.detach(), conv.bias.detach())
    assert torch.autograd.gradcheck(run, [value.requires_grad_() for value in inputs], fast_mode=True)
    assert torch.autograd.gradgradcheck(run, [value.requires_grad_() for value in inputs], fast_mode=True)


def test_the_norm_is_computed_in_float32_under_autocast():
    conv = layer()
    with torch.autocast("cpu", torch.bfloat16):
        weight, output = conv.normalized_weight(), conv(images())
        power_iteration(conv)
    assert weight.dtype == torch.float32 and output.dtype == torch.bfloat16
    same = layer()
    assert weight.equal(same.normalized_weight())
    power_iteration(same)
    assert same.weight_u.equal(conv.weight_u) and same.weight_v.equal(conv.weight_v)


def test_a_compiled_layer_is_one_graph_and_follows_the_vectors():
    conv = layer()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(images()), conv(images()))
        power_iteration(conv)


def test_vectors_may_be_overwritten_between_forward_and_backward():
    conv = layer()
    output = conv(images())
    with torch.no_grad():
        for name in ("weight_u", "weight_v"):  # as DDP does before the next forward
            conv.get_buffer(name).copy_(conv.get_buffer(name).clone())
    output.sum().backward()
    assert conv.weight_orig.grad.isfinite().all()


def test_vectors_are_in_the_state_dict_and_survive_copies():
    conv = layer()
    power_iteration(conv)
    assert set(conv.state_dict()) == {"weight_orig", "weight_u", "weight_v", "bias"}
    other = SpectralConv2d(3, 5, 3, padding=1)
    other.load_state_dict(conv.state_dict())
    copied, before = copy.deepcopy(conv), vectors(conv)
    power_iteration(other)
    power_iteration(copied)
    assert all(new.equal(old) for new, old in zip(vectors(conv), before, strict=True))
    power_iteration(conv)
    for module in (other, copied):
        assert all(value.equal(conv.state_dict()[name]) for name, value in module.state_dict().items())
    assert "3, 5, 3, stride=1, padding=1" in repr(conv)
