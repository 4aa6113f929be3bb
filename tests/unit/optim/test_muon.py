"""Muon: orthogonal steps for large kernels, AdamW's steps for the rest."""

import pytest
import torch
from torch import nn

from accel_restore.config.optim import Muon as MuonSection
from accel_restore.models import build_model
from accel_restore.optim.muon import Muon, is_large, orthogonal

LR = 0.01


def matrices(shape: tuple[int, ...], decades: float = 2.0) -> torch.Tensor:
    """Return random matrices whose columns fall in size by `decades` powers of ten."""
    random = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=random, dtype=torch.float64) * torch.logspace(0, -decades, shape[-1])


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_the_iteration_applies_its_polynomial_to_the_singular_values(shape):
    given = matrices(shape, decades=4)
    left, values, right = torch.linalg.svd(given, full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left * values[:, None] @ right
    assert (orthogonal(given) - expected).abs().max() < 1e-11
    assert (orthogonal(given.float()) - expected).abs().max() < 1e-3  # torch, in bfloat16: 0.03
    assert torch.linalg.svdvals(orthogonal(matrices((1, 32, 64), decades=0))).min() > 0.65


def test_a_step_of_a_matrix_equals_torch_up_to_rounding():
    """torch iterates in bfloat16, so the steps are equal up to its rounding."""
    ours, theirs = (nn.Parameter(matrices((32, 20)).float()) for _ in range(2))
    settings = {"weight_decay": 0.1, "momentum": 0.9}
    made = Muon([ours], LR, **settings), torch.optim.Muon([theirs], LR, adjust_lr_fn="match_rms_adamw", **settings)
    for update in range(3):
        before = ours.detach().clone()
        for parameter, optimizer in zip((ours, theirs), made, strict=True):
            parameter.grad = matrices((32, 20)).roll(update, 1).float()
            optimizer.step()
        assert (ours - theirs).norm() < 0.1 * (ours - before).norm()


def test_the_norm_of_a_step_grows_up_to_64_channels_only():
    def norm(channels: int) -> float:
        kernel = nn.Parameter(torch.zeros(channels, channels, 3, 3))
        kernel.grad = matrices((channels, channels * 9), decades=0).float().view_as(kernel)
        Muon([kernel], LR).step()
        return torch.linalg.matrix_norm(kernel.detach().flatten(1), 2).item() / LR

    expected = {16: 0.2 * 144**0.5, 32: 0.2 * 288**0.5, 64: 0.2 * 576**0.5, 160: 0.2 * 576**0.5}
    for channels, size in expected.items():  # times a largest singular value of about 1
        assert 0.9 * size < norm(channels) < 1.21 * size


def test_the_default_decay_bounds_a_kernel_under_constant_gradients():
    def largest(weight_decay: float) -> float:
        kernel = nn.Parameter(torch.zeros(20, 32))
        optimizer = Muon([kernel], 0.1, weight_decay=weight_decay)
        for _ in range(300):
            kernel.grad = 1e-6 * matrices((20, 32), decades=0).float()
            optimizer.step()
        return torch.linalg.svdvals(kernel.detach()).max().item()

    assert Muon([nn.Parameter(torch.zeros(1))]).defaults["weight_decay"] == MuonSection().weight_decay
    step = 0.2 * 32**0.5  # times singular values of 0.7 to 1.2
    assert 0.7 * step / 0.3 < largest(MuonSection().weight_decay) < 1.21 * step / 0.3
    assert largest(0.01) > 4 * step / 0.3


def test_a_kernel_counts_as_the_matrix_of_its_first_dimension_and_the_others():
    weight = matrices((20, 16 * 9))
    kernel, matrix = nn.Parameter(weight.view(20, 16, 3, 3).clone()), nn.Parameter(weight.clone())
    for parameter in (kernel, matrix):
        parameter.grad = weight.cos().view(parameter.shape)
        Muon([parameter], LR).step()
    assert torch.equal(kernel.detach().view(20, -1), matrix.detach())
    last = nn.Parameter(weight.view(20, 16, 3, 3).clone().to(memory_format=torch.channels_last))
    last.grad = weight.cos().view(20, 16, 3, 3)
    Muon([last], LR).step()
    assert torch.equal(last.detach(), kernel.detach())


def test_small_parameters_take_steps_bit_identical_to_adamw():
    small = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 3, 1))
    twin = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 3, 1))
    twin.load_state_dict(small.state_dict())
    assert not any(map(is_large, small.parameters()))
    made = (
        Muon(small.parameters(), LR, betas=(0.8, 0.95), weight_decay=0.1),
        torch.optim.AdamW(twin.parameters(), LR, betas=(0.8, 0.95), weight_decay=0.1),
    )
    images = matrices((2, 3, 8, 8)).float()
    for _ in range(3):
        for model, optimizer in zip((small, twin), made, strict=True):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    for one, other in zip(small.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "arguments", "small"),
    [
        ("unet", {"width": 16, "multipliers": [1, 2]}, {"head.weight", "tail.weight"}),
        ("dncnn", {"width": 16, "depth": 4}, None),
        ("nafnet", {"width": 16}, None),
    ],
)
def test_first_and_last_layers_norms_and_depthwise_kernels_are_left_to_adamw(name, arguments, small):
    model = build_model(name, arguments, 3, 1)
    left = {key for key, parameter in model.named_parameters() if not is_large(parameter)}
    if small is not None:
        assert left == small
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            ends = 3 in (module.in_channels, module.out_channels)
            assert (f"{key}.weight" in left) == (ends or module.groups > 1), key


def test_parameters_without_a_gradient_do_not_change(tmp_path):
    idle, busy = (nn.Parameter(matrices((16, 16)).float()) for _ in range(2))
    busy.grad = torch.ones(16, 16)
    before = idle.detach().clone()
    Muon([idle, busy], LR, weight_decay=0.5).step()
    assert torch.equal(idle.detach(), before) and not torch.equal(busy.detach(), before)
    busy.grad = torch.zeros(16, 16)  # a gradient without a direction
    Muon([busy], LR).step()
    assert busy.isfinite().all()
