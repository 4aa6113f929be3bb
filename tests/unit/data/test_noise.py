"""The noise of a batch: splitmix64's numbers, a Gaussian, and a sample's own whatever batch it is in."""

import numpy as np
import pytest
import scipy
import torch
from degraded import SEEDS

from accel_restore.data.degradations.noise import normals, words
from accel_restore.data.degradations.pipeline import build_degradation

NOISE = [("gaussian_noise", {"sigma": [5, 50], "gray": 0.5})]


def test_words_are_the_published_outputs_of_splitmix64():
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert words(torch.tensor([1234567]), 5).numpy().view(np.uint64).tolist() == [expected]


def test_normals_are_a_gaussian_of_variance_1():
    values = normals(torch.arange(4), (1, 512, 512), torch.float32).flatten().double().numpy()
    assert scipy.stats.kstest(values[: 2**19], "norm").pvalue > 0.001
    assert abs(values.mean()) < 5 * len(values) ** -0.5 and abs(values.var() - 1) < 5 * (2 / len(values)) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / len(values)) ** 0.5
    for bound in (2, 3, 4):
        expected = 2 * scipy.stats.norm.sf(bound) * len(values)
        assert abs((np.abs(values) > bound).sum() - expected) < 5 * expected**0.5


def test_values_are_independent_of_their_neighbours_and_of_other_samples():
    one, other = normals(torch.tensor([3, 4]), (512, 512), torch.float32).double()
    pairs = [(one, other), (one[:256], one[256:]), (one[:, 1:], one[:, :-1]), (one.flatten()[2:], one.flatten()[:-2])]
    for left, right in pairs:
        assert abs((left * right).mean()) < 5 * left.numel() ** -0.5
        assert abs(((left**2 - 1) * (right**2 - 1)).mean()) < 5 * 2 * left.numel() ** -0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_has_the_same_noise_in_any_batch_and_layout(dtype):
    degrade, gt = build_degradation(NOISE).for_training(), torch.rand(4, 3, 9, 7, dtype=dtype)
    output = degrade(gt, SEEDS)
    assert output.dtype == dtype and len({tuple(image.flatten().tolist()) for image in output - gt}) == 4
    for place in range(4):
        assert degrade(gt[place : place + 1], SEEDS[place : place + 1])[0].equal(output[place])
    assert degrade(gt.to(memory_format=torch.channels_last), SEEDS).equal(output)


def test_strength_and_shared_channels_are_those_drawn_one_by_one():
    degrade, gt = build_degradation(NOISE), torch.zeros(40, 3, 64, 64)
    seeds = np.arange(40).astype(np.uint64)
    alone, together = degrade(gt, seeds), degrade.for_training()(gt, seeds)
    torch.testing.assert_close(together.flatten(1).std(1), alone.flatten(1).std(1), rtol=0.05, atol=0)
    assert [image[0].equal(image[1]) for image in together] == [image[0].equal(image[1]) for image in alone]


def test_a_list_with_a_step_that_has_no_form_for_batches_is_applied_one_by_one():
    for steps in ([*NOISE, ("quantize", {})], [("gaussian_noise", {"probability": 0.5})]):
        degrade, gt = build_degradation(steps), torch.rand(4, 3, 9, 7)
        assert degrade.for_training()(gt, SEEDS).equal(degrade(gt, SEEDS))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_noise_of_the_cpu():
    degrade, gt = build_degradation(NOISE).for_training(), torch.rand(4, 3, 64, 64)
    assert degrade(gt.cuda(), SEEDS).cpu().equal(degrade(gt, SEEDS))
