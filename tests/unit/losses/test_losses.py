"""The contract of every loss in LOSSES, and a comparison with another implementation. New losses are covered by it."""

import numpy as np
import pytest
import skimage
import torch
from reference_losses import REFERENCES, photo_tensors, photos, reference_psnr
from torch.nn import functional as F
from vgg import write_weights

from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.losses import Loss, build_loss
from accel_restore.registry import LOSSES

AT_LEAST = {"charbonnier": 1e-3, "edge": 1e-3, "psnr": -80}  # the loss of a perfect output; 0 for the others
NEEDS = {  # the smallest side, in pixels
    "ssim": 11, "ms_ssim": 176, "gradient": 2, "perceptual": 16, "lpips": 16, "contextual": 4, "ldl": 4,
}  # fmt: skip
ROUNDS = ("ssim", "ms_ssim", "lpips", "dists")  # their gradient at a perfect output is zero up to rounding


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The configuration of each loss by name."""
    folder = tmp_path_factory.mktemp("vgg")
    networks = {"perceptual": "vgg19", "contextual": "vgg19", "lpips": "vgg16", "dists": "vgg16"}
    files = {name: write_weights(folder, network) for name, network in networks.items()}
    return {name: {"weights": files[name]} if name in files else {} for name in LOSSES}


@pytest.fixture
def loss(name, settings):
    return build_loss({name: settings[name]})


def size_for(name: str) -> tuple[int, int]:
    """A size that a loss accepts, with one odd side."""
    least = NEEDS.get(name, 1)
    return max(least, 24), max(least, 24) + 7


# The contract of every loss -------------------------------------------------------------------------------------------


def test_the_loss_of_a_sample_does_not_depend_on_its_batch(name, loss):
    output, gt = photo_tensors(3, *size_for(name))
    values = loss(output, gt)
    assert values.shape == (3,) and values.dtype == torch.float32
    alone = torch.cat([loss(output[i : i + 1], gt[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(values, alone, rtol=1e-5, atol=1e-7)
    assert len(set(values.tolist())) == 3


def test_loss_grows_with_the_error_and_is_minimal_for_a_perfect_output(name, loss):
    output, gt = photo_tensors(3, *size_for(name))  # with more noise from one to the next
    perfect = loss(gt, gt)
    torch.testing.assert_close(perfect, torch.full((3,), float(AT_LEAST.get(name, 0.0))), rtol=1e-6, atol=0)
    scales = (
        (0.5, 1, 2) if name == "contextual" else (0.25, 0.5, 1)
    )  # it is 0 while each position is nearest to its own
    values = [loss(gt + scale * (output - gt), gt) for scale in scales]
    assert (values[0] > perfect).all() and (values[1] > values[0]).all() and (values[2] > values[1]).all()


def test_gradients_are_finite_and_zero_at_a_perfect_output(name, loss):
    output, gt = photo_tensors(3, *size_for(name))
    output[0], output[1] = gt[0], 0.0
    gt[2], output[2] = 0.25, 0.75  # flat: the image has no structure and no gradient
    output.requires_grad_()
    loss(output, gt).sum().backward()
    assert output.grad.isfinite().all()
    if name != "perceptual":  # equal features differ by rounding, and the gradient of l1 is its sign
        assert output.grad[0].abs().max() <= (1e-6 if name in ROUNDS else 0)
    assert output.grad[1].abs().max() > 1e-6 and (output.grad[2].any() or name in ("gradient", "ldl"))
    assert gt.grad is None


def test_gradients_match_finite_differences(name, loss):
    if name == "focal_frequency":
        pytest.skip("its weight is a constant for the gradient; compared in a test of its own")
    size = NEEDS.get(name, 1)
    output, gt = photo_tensors(1, *(max(size, side) for side in (5, 4)), 1, dtype=torch.float64)
    output.requires_grad_()
    assert torch.autograd.gradcheck(lambda output: loss(output, gt), output, fast_mode=size > 4, rtol=1e-3)


def test_images_of_the_smallest_side_and_of_odd_sizes_are_accepted(name, loss, settings):
    least = NEEDS.get(name, 1)
    assert loss.smallest_side == least
    for height, width in ((least, least), (least + 6, least), (max(least, 19), max(least, 33))):
        for channels in (1, 3):
            output, gt = photo_tensors(1, height, width, channels)
            assert loss(output, gt).isfinite().all()
    assert build_loss({name: settings[name]}, patch_sizes={"data.patch_size": least}).smallest_side == least
    if least > 1:
        stage = "data.stages.0.patch_size"
        said = rf"loss\.{name}: needs images of at least {least} pixels a side, but {stage} is {least - 1}"
        with pytest.raises(UserError, match=said):
            build_loss({name: settings[name]}, patch_sizes={stage: least - 1, "data.patch_size": least})


@pytest.mark.parametrize("name", NEEDS)
def test_control_smaller_images_have_no_finite_loss(name, loss):
    output, gt = photo_tensors(1, NEEDS[name] - 1, NEEDS[name] - 1)
    try:
        value = loss(output, gt)
    except RuntimeError:  # a window or a pooling is larger than the image
        return
    assert not value.isfinite().all()


def test_half_precision_outputs_are_compared_in_float32(name, loss):
    output, gt = photo_tensors(2, *size_for(name))
    half = output.bfloat16()
    expected = loss(half.float(), gt)
    assert loss(half, gt).equal(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(half, gt).equal(expected)


def test_loss_is_deterministic_and_independent_of_memory_format(name, loss):
    output, gt = photo_tensors(2, *size_for(name))
    expected = loss(output, gt)
    assert loss(output, gt).equal(expected)
    last = [images.contiguous(memory_format=torch.channels_last) for images in (output, gt)]
    torch.testing.assert_close(loss(*last), expected, rtol=1e-4, atol=1e-6)


def test_a_loss_draws_no_random_numbers_and_has_no_trainable_parameters(name, settings):
    state = torch.get_rng_state()
    loss = build_loss({name: settings[name]})
    output, gt = photo_tensors(1, *size_for(name))
    loss(output.requires_grad_(), gt).sum().backward()
    assert torch.get_rng_state().equal(state)
    modules = [part.function for part in loss.parts if isinstance(part.function, torch.nn.Module)]
    assert all(not module.training for term in modules for module in term.modules())
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


# Comparison with another implementation ------------------------------------------------------------------------------


ELSEWHERE = {"perceptual", "lpips", "dists", "contextual"}  # compared in tests of their own


def test_every_loss_has_a_reference_implementation():
    assert set(REFERENCES) | ELSEWHERE == set(LOSSES)


@pytest.mark.parametrize("size", [(176, 181), (233, 190)])
@pytest.mark.parametrize("name", REFERENCES)
def test_loss_equals_the_reference_implementation(name, size):
    output, gt = photos(3, *size)
    expected = [REFERENCES[name](o, g) for o, g in zip(output, gt, strict=True)]
    double = build_loss({name: 1.0})(torch.from_numpy(output), torch.from_numpy(gt))
    assert double.tolist() == pytest.approx(expected, rel=1e-6)
    single = build_loss({name: 1.0})(torch.from_numpy(output).float(), torch.from_numpy(gt).float())
    assert single.tolist() == pytest.approx(expected, rel=1e-3)


def test_psnr_of_the_luma_equals_skimage():
    output, gt = photos(2, 40, 50)
    expected = [
        reference_psnr(*(skimage.color.rgb2ycbcr(image.transpose(1, 2, 0))[..., 0] / 255 for image in pair))
        for pair in zip(output, gt, strict=True)
    ]
    loss = build_loss({"psnr": {"to_y": True}})
    assert loss(torch.from_numpy(output), torch.from_numpy(gt)).tolist() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match=r"loss\.psnr: cannot work with .*to_y needs colour images"):
        build_loss({"psnr": {"to_y": True}}, channels=1)


def test_orthonormal_fft_loss_of_white_noise_is_independent_of_the_image_size():
    loss, generator = build_loss({"fft": {"norm": "ortho"}}), torch.Generator().manual_seed(0)
    values = []
    for side in (32, 64, 128):
        error = torch.randn(1, 3, side, side, generator=generator)
        values.append(loss(error, torch.zeros_like(error)).item())
        backward = build_loss({"fft": 1.0})(error, torch.zeros_like(error)).item()
        assert backward == pytest.approx(side * values[-1], rel=1e-5)
    assert values == pytest.approx([values[0]] * 3, rel=0.05)


def test_ms_ssim_of_inverted_images_is_finite_and_has_a_finite_gradient():
    gt = photo_tensors(1, 176, 176)[1]
    output = (1 - gt).requires_grad_()
    value = build_loss({"ms_ssim": 1.0})(output, gt)
    value.sum().backward()
    assert 0.9 < value.item() < 1 and output.grad.isfinite().all()


@pytest.mark.parametrize("arguments", [{}, {"alpha": 0.5}, {"alpha": 2.0, "log": True}])
def test_gradients_of_focal_frequency_are_those_with_a_constant_weight(arguments):
    output, gt = photo_tensors(2, 6, 5, 2, dtype=torch.float64)
    spectrum = np.abs(np.fft.fft2((output - gt).numpy(), norm="ortho")) ** arguments.get("alpha", 1.0)
    spectrum = np.log(1 + spectrum) if arguments.get("log") else spectrum
    weight = torch.from_numpy(spectrum / spectrum.max(axis=(2, 3), keepdims=True))

    def expected(output):
        real, imaginary = (getattr(torch.fft.fft2(output - gt, norm="ortho"), part) for part in ("real", "imag"))
        return (weight * (real**2 + imaginary**2)).flatten(1).mean(1)

    loss = build_loss({"focal_frequency": arguments})
    torch.testing.assert_close(loss(output, gt), expected(output))
    output.requires_grad_()
    found, wanted = (torch.autograd.grad(function(output, *rest).sum(), output)[0]
                     for function, rest in ((loss, (gt,)), (expected, ())))  # fmt: skip
    torch.testing.assert_close(found, wanted)


def test_focal_frequency_with_alpha_0_is_the_mean_squared_error():
    output, gt = photo_tensors(2, 12, 13, dtype=torch.float64)
    values = build_loss({"focal_frequency": {"alpha": 0.0}})(output, gt)
    torch.testing.assert_close(values, build_loss({"mse": 1.0})(output, gt))


def test_ldl_finds_artifacts_and_not_a_shift():
    gt = photo_tensors(1, 40, 40)[1]
    speckled, shifted = gt.clone(), gt + 0.1
    speckled[..., 10:14:2, 10:14:2] += 0.5
    loss = build_loss({"ldl": 1.0})
    assert loss(shifted, gt).item() < 1e-8 < 1e-6 < loss(speckled, gt).item()


# The weighted sum ----------------------------------------------------------------------------------------------------


def test_loss_is_the_weighted_sum_of_its_terms():
    output, gt = photo_tensors(3, 8, 8)
    loss = build_loss({"l1": 0.5, "mse": {"weight": 2}, "charbonnier": {"eps": 0.1}})
    assert loss.names == ["l1", "mse", "charbonnier"]
    expected = [
        0.5 * F.l1_loss(o, g) + 2 * F.mse_loss(o, g) + ((o - g) ** 2 + 0.01).sqrt().mean()
        for o, g in zip(output, gt, strict=True)
    ]
    torch.testing.assert_close(loss(output, gt), torch.stack(expected))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"charbonnier": {"esp": 1e-3}}, r"loss\.charbonnier\.esp: unknown key; did you mean 'loss\.charbonnier\.eps'"),
        ({"charbonnier": {"eps": "small"}}, r"loss\.charbonnier.*eps"),
        ({"focal_frequency": {"alpha": -1.0}}, r"loss\.focal_frequency: .*alpha=-1\.0 is not allowed"),
        ({"fft": {"norm": "orto"}}, r"loss\.fft: cannot work with .*orto"),
        ({"l1": {"weight": 0}}, r"loss\.l1\.weight"),
        ({"l1": {"weight": True}}, r"loss\.l1\.weight"),
        ({"l1": {"weight": float("inf")}}, r"loss\.l1\.weight"),
        ({"no.such.package:loss": 1.0}, "no.such.package:loss"),
        ({"accel_restore.losses:nothing": 1.0}, "accel_restore.losses:nothing"),
        ({".losses:l1": 1.0}, ".losses:l1"),
        ({"os:system": 1.0}, "os:system"),
        ({"os:sep": 1.0}, r"loss.*os:sep"),
    ],
)
def test_invalid_loss_is_rejected_with_its_key(terms, message):
    with pytest.raises(UserError, match=message):
        build_loss(terms)


def test_misspelt_loss_is_rejected_with_a_suggestion():
    with pytest.raises(UserError, match=r"unknown choice 'sim'.*did you mean 'ssim'"):
        config_from({"data": {"train": {"gt": "x"}}, "loss": {"sim": 1.0}}, [])


class Shifted:
    """A user-defined loss class."""

    smallest_side = 3

    def __init__(self, shift: float = 0.0):
        self.shift = shift

    def __call__(self, output, gt):
        return (output - gt - self.shift).abs().flatten(1).mean(1)


def absolute(restored, clean, *, factor=1.0):
    return factor * (restored - clean).abs().flatten(1).mean(1)


def test_the_images_of_a_loss_may_have_any_name():
    output, gt = photo_tensors(2, 8, 8)
    theirs = build_loss({"test_losses:absolute": {"factor": 2.0}})(output, gt)
    assert theirs.equal(2 * build_loss({"l1": 1.0})(output, gt))
    with pytest.raises(UserError, match="restored: unknown key; known keys: factor"):
        build_loss({"test_losses:absolute": {"restored": 1}})


def test_a_loss_by_import_path_may_be_a_function_or_a_class():
    output, gt = photo_tensors(2, 8, 8)
    theirs = build_loss({"accel_restore.losses.pixel:charbonnier": {"eps": 0.5}})(output, gt)
    assert theirs.equal(build_loss({"charbonnier": {"eps": 0.5}})(output, gt))
    loss = build_loss({"test_losses:Shifted": {"shift": 0.5}, "l1": 1.0})
    assert isinstance(loss, Loss) and loss.smallest_side == 3
    assert loss(gt + 0.5, gt).tolist() == pytest.approx([0.5, 0.5])
    with pytest.raises(
        UserError,
        match=r"loss\.test_losses:Shifted\.shft: unknown key; did you mean 'loss\.test_losses:Shifted\.shift'",
    ):
        build_loss({"test_losses:Shifted": {"shft": 0.5}})
