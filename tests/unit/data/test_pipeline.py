"""Synthetic degradations: the contract of every degradation and of lists; `test_ops` tests the operations."""

import functools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from degraded import ASTRONAUT, SEEDS, apply
from torch import Tensor
from torch.nn import functional as F

from accel_restore.config.load import load_config
from accel_restore.data.degradations import ops
from accel_restore.data.degradations.pipeline import (
    DEGRADATIONS,
    DegradationPipeline,
    KeyedRandom,
    Step,
    Steps,
    build_degradation,
)
from accel_restore.errors import UserError

ROOT = Path(__file__).parents[3]
HALF = {"name": "resize", "scale": 0.5}
RARE = {**HALF, "probability": 1e-9}
COMPOSITIONS = ("sequence", "random_order", "choice")


def arguments_of(name: str) -> dict:
    return {"of": [{"name": "jpeg"}, {"name": "gaussian_noise"}]} if name in COMPOSITIONS else {}


# Every degradation


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DEGRADATIONS)
def test_every_degradation_is_a_pure_function_of_image_and_seed(name, channels):
    steps = [(name, arguments_of(name))] + [("downscale", {})] * (name == "resize")
    degrade = build_degradation(steps, 1, channels)
    for height, width in [(8, 8), (9, 31)]:
        for dtype in (torch.float32, torch.float64):
            gt = torch.rand(4, channels, height, width, generator=torch.Generator().manual_seed(0)).to(dtype)
            before = gt.clone()
            output = degrade(gt, SEEDS)
            assert output.shape == gt.shape and output.dtype == dtype and output.isfinite().all()
            assert gt.equal(before) and (name == "downscale" or not output.equal(gt))
            torch.manual_seed(99)  # torch's own random state decides nothing
            assert degrade(gt.flip(0), SEEDS[::-1].copy()).flip(0).equal(output)
            assert degrade(gt[2:3], SEEDS[2:3])[0].equal(output[2])
            assert degrade(gt.to(memory_format=torch.channels_last), SEEDS).equal(output)


@pytest.mark.parametrize("name", ["gaussian_noise", "poisson_noise", "speckle", "rain", "motion_blur", "random_order"])
def test_other_seeds_and_positions_give_other_draws(name):
    gt = ASTRONAUT[None].repeat(2, 1, 1, 1)
    step = (name, {**arguments_of(name), **({"density": 0.1} if name == "rain" else {})})
    output = build_degradation([step])(gt, SEEDS[:2])
    assert not output[0].equal(output[1])
    later = build_degradation([("choice", {"probability": 0, "of": [{"name": "quantize"}]}), step])(gt, SEEDS[:2])
    assert not later[0].equal(output[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", DEGRADATIONS)
def test_gpu_result_is_independent_of_the_batch_and_equals_the_cpu_without_pixel_draws(name):
    steps = [(name, arguments_of(name))] + [("downscale", {})] * (name == "resize")
    degrade, gt = build_degradation(steps), ASTRONAUT[None].repeat(4, 1, 1, 1)
    output = degrade(gt.cuda(), SEEDS)
    assert output.is_cuda and degrade(gt[2:3].cuda(), SEEDS[2:3])[0].equal(output[2])
    if name not in ("gaussian_noise", "poisson_noise", "speckle", "rain", *COMPOSITIONS):
        torch.testing.assert_close(output.cpu(), degrade(gt, SEEDS), rtol=0, atol=5e-3)  # convolutions may use TF32


def test_draws_of_a_step_are_independent_of_earlier_steps():
    def noise_after(first: dict, nested: bool) -> Tensor:
        of = [first, {"name": "gaussian_noise"}]
        steps = [("sequence", {"of": of})] if nested else [(step.pop("name"), step) for step in of]
        return build_degradation(steps)(torch.zeros(1, 3, 8, 8), SEEDS[:1])

    for nested in (False, True):
        after_none = noise_after({"name": "quantize"}, nested)
        assert noise_after({"name": "gaussian_noise", "sigma": 0}, nested).equal(after_none)


def test_names_are_known_without_torch():
    check = "assert 'jpeg' in DEGRADATIONS and 'torch' not in sys.modules"
    code = f"import sys; from accel_restore.data.degradations.pipeline import DEGRADATIONS; {check}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# Compositions


BLUR = {"name": "gaussian_blur", "sigma": 2}
DARK = {"name": "low_light", "gain": 0.9, "gamma": 3}


def outcomes(steps: list, results: list[Tensor], samples: int = 200) -> list[int]:
    """How many samples of a list give each of the results; every sample must give one."""
    gt = ASTRONAUT[None, :, :16, :16].expand(samples, -1, -1, -1)
    outputs = build_degradation(steps)(gt, np.arange(samples).astype(np.uint64))
    counts = [sum(torch.allclose(output, result, atol=1e-6) for output in outputs) for result in results]
    assert sum(counts) == samples
    return counts


def in_turn(*steps: dict) -> Tensor:
    image = ASTRONAUT[:, :16, :16]
    for step in steps:
        image = apply(**step, image=image)
    return image


def test_random_order_applies_all_steps_in_either_order():
    first, _ = outcomes([("random_order", {"of": [BLUR, DARK]})], [in_turn(BLUR, DARK), in_turn(DARK, BLUR)])
    assert 65 < first < 135  # five standard deviations


def test_choice_applies_one_step_by_its_weight():
    counts = outcomes([("choice", {"of": [BLUR, DARK], "weights": [3, 1]})], [in_turn(BLUR), in_turn(DARK)])
    assert 119 < counts[0] < 181  # five standard deviations
    even = outcomes([("choice", {"of": [BLUR, DARK]})], [in_turn(BLUR), in_turn(DARK)])
    assert 65 < even[0] < 135


def test_a_probability_holds_for_a_step_and_for_a_whole_sequence():
    done, _ = outcomes([("gaussian_blur", {"sigma": 2, "probability": 0.25})], [in_turn(BLUR), in_turn()])
    assert 19 < done < 81
    group = {"name": "sequence", "of": [BLUR, DARK], "probability": 0.5}
    done, _ = outcomes([("sequence", {"of": [group]})], [in_turn(BLUR, DARK), in_turn()])
    assert 65 < done < 135


# Keyed draws


def test_draws_are_uniform_and_keyed():
    draws = [KeyedRandom(seed).uniform((2, 4)) for seed in range(4000)] + [
        value for random in [KeyedRandom(5)] for value in (random.uniform((2, 4)) for _ in range(4000))
    ]
    counts = np.histogram(draws, bins=8, range=(2, 4))[0]
    assert counts.sum() == 8000 and np.abs(counts - 1000).max() < 150  # five standard deviations
    assert KeyedRandom(7).uniform(3) == 3
    assert {KeyedRandom(seed).integer(2, 4) for seed in range(50)} == {2, 3, 4}
    orders = {tuple(KeyedRandom(seed).permutation(3)) for seed in range(100)}
    assert len(orders) == 6 and all(sorted(order) == [0, 1, 2] for order in orders)


def test_split_draws_are_independent_of_earlier_draws():
    random = KeyedRandom(3)
    before = random.split(1).uniform((0, 1))
    random.uniform((0, 1))
    assert random.split(1).uniform((0, 1)) == before
    assert len({random.split(i).split(j).uniform((0, 1)) for i in range(5) for j in range(5)}) == 25


def test_choice_of_weight_zero_is_never_drawn():
    assert {KeyedRandom(seed).choice("abc", [0, 2, 0]) for seed in range(100)} == {"b"}
    for weights in ([1], [0, 0, 0], [1, -1, 1], [1, float("nan"), 1]):
        with pytest.raises(ValueError, match="weights"):
            KeyedRandom(0).choice("abc", weights)


# Building a list


def problems(steps: list, *rest: int) -> str:
    with pytest.raises(UserError) as caught:
        build_degradation(steps, *rest)
    return str(caught.value)


def test_trial_of_a_long_list_ends():
    stage = [{"name": "choice", "of": [{"name": "resize", "scale": [0.8, 1.2]}, RARE, {"name": "jpeg"}]}] * 2
    of = [*stage, {"name": "downscale", "probability": 1 - 1e-9}] * 8  # so many combinations that it would never end
    assert "can make an input of " in problems([("sequence", {"of": of})])
    build_degradation([("random_order", {"of": of, "probability": 0.5}), ("downscale", {})], 2)


def test_trial_covers_rare_outcomes_of_draws():
    SEEN.clear()
    build_degradation([("test_pipeline:drawing", {})])
    rare = [outcome[1:] for outcome in SEEN if outcome[0]]
    assert 16 < len(rare) < 48 < len(SEEN) and {letter for letter, _ in rare} == {"a", "c"}
    assert len({order for _, order in rare}) == 6


def test_function_that_fails_on_rare_samples_is_rejected_with_its_key():
    steps = [("jpeg", {}), ("test_pipeline:seldom_failing", {"probability": 1e-9})]
    said = "data.degradation.1: fails on some images: RuntimeError: "
    assert problems(steps).startswith(f"{said}no luck (test_pipeline.py, line ")
    steps = [("resize", {"scale": 0.1, "probability": 0.1}), ("test_pipeline:wide_only", {})]
    assert problems(steps).startswith(f"{said}too small (test_pipeline.py, line ")


def test_empty_list_keeps_the_image():
    gt = ASTRONAUT[None]
    assert build_degradation([])(gt, SEEDS[:1]).equal(gt)


def brighter(image: Tensor, random: KeyedRandom, *, by: float = 0.1, size: tuple[int, int]) -> Tensor:
    """A user's function, with a habit that must not reach gt."""
    return image.add_(by * size[1])


def careless(image: Tensor, random: KeyedRandom) -> Tensor:
    return image + torch.randn_like(image)


def gray_of(image: Tensor, random: KeyedRandom) -> Tensor:
    return image[:1]


def lighter(img: Tensor, rng: KeyedRandom, *, by: float = 0.5) -> Tensor:
    return img + by


def test_the_first_parameters_of_a_function_by_import_path_may_have_any_name():
    gt = torch.zeros(2, 3, 8, 12)
    assert build_degradation([("test_pipeline:lighter", {"by": 0.25})])(gt, SEEDS[:2]).eq(0.25).all()
    with pytest.raises(UserError, match="img: unknown key; known keys: by"):
        build_degradation([("test_pipeline:lighter", {"img": 1})])


def test_function_by_import_path_gets_the_size_and_cannot_change_gt():
    gt = torch.zeros(2, 3, 8, 12)
    output = build_degradation([("test_pipeline:brighter", {"by": 0.5})])(gt, SEEDS[:2])
    assert output.eq(6).all() and gt.eq(0).all()
    noise = [("gaussian_noise", {"sigma": 5}), ("accel_restore.data.degradations.ops:gaussian_noise", {"sigma": 5})]
    assert build_degradation(noise[1:])(gt, SEEDS[:2]).equal(build_degradation(noise[:1])(gt, SEEDS[:2]))


@functools.wraps(ops.gaussian_noise)
def clipped_noise(image: Tensor, random: KeyedRandom, **arguments) -> Tensor:
    return ops.gaussian_noise(image, random, **arguments).clamp(0, 1)


NETWORK = torch.nn.Conv2d(3, 3, 3, padding=1)


def of_network(image: Tensor, random: KeyedRandom) -> Tensor:
    return NETWORK(image[None])[0]


def test_a_function_around_a_degradation_has_its_own_result_in_training_too():
    degrade, gt = build_degradation([("test_pipeline:clipped_noise", {"sigma": 50})]), torch.rand(4, 3, 9, 7)
    assert degrade.for_training()(gt, SEEDS).equal(degrade(gt, SEEDS)) and degrade(gt, SEEDS).min() >= 0
    inner = build_degradation([("gaussian_noise", {"sigma": 50})])
    assert inner.for_training()(gt, SEEDS).min() < 0, "the control"


def test_an_input_made_by_a_network_keeps_no_graph_in_any_thread():
    degrade, gt = build_degradation([("test_pipeline:of_network", {})]), torch.rand(4, 3, 9, 7)
    assert NETWORK(gt).requires_grad, "the control"
    with ThreadPoolExecutor(2) as pool:
        for output in (degrade(gt, SEEDS), degrade(gt, SEEDS, each=pool.map), degrade.for_training()(gt, SEEDS)):
            assert not output.requires_grad and output.allclose(NETWORK(gt), atol=1e-5)


def twice(image: Tensor, random: KeyedRandom, *, of: Steps, size: tuple[int, int]) -> Tensor:
    """A user's composition, of one step."""
    for _ in range(2):
        image = of[0](image, random, size)
    return image


def seldom_halved(image: Tensor, random: KeyedRandom) -> Tensor:
    return image[:, :, ::2] if random.chance(1e-9) and random.choice([1, 2], [1, 1e-9]) == 2 else image


def patient(image: Tensor, random: KeyedRandom) -> Tensor:
    """Draws until it has what it wants, and from much."""
    while random.chance(0.5):
        pass
    while not random.chance(0.5):
        pass
    return image + random.permutation(5000)[0] + random.choice(range(5000))


SEEN: list[tuple] = []


def drawing(image: Tensor, random: KeyedRandom) -> Tensor:
    rare = random.chance(1e-9)
    SEEN.append((rare, *((random.choice("abc", [1, 0, 1e-9]), tuple(random.split(3).permutation(3))) if rare else ())))
    return image


def seldom_failing(image: Tensor, random: KeyedRandom) -> Tensor:
    if random.chance(1e-9):
        raise RuntimeError("no luck")
    return image


def wide_only(image: Tensor, random: KeyedRandom) -> Tensor:
    if image.shape[2] < 8:
        raise RuntimeError("too small")
    return image


def met(image: Tensor, random: KeyedRandom) -> Tensor:
    """Waits until three samples are being degraded at once."""
    MEETING.wait(timeout=30)
    THREADS.add(threading.get_ident())
    return image + random.uniform((0, 1))


MEETING, THREADS = threading.Barrier(3), set()


def test_threads_of_a_pool_give_the_same_result():
    steps = [
        ("gaussian_noise", {"sigma": [5, 50]}),
        ("gaussian_blur", {"sigma": [0.1, 3]}),
        ("jpeg", {"quality": [5, 90]}),
    ]
    degrade, gt, seeds = build_degradation(steps), ASTRONAUT[None].repeat(9, 1, 1, 1), np.arange(9).astype(np.uint64)
    with ThreadPoolExecutor(3) as pool:
        assert degrade(gt, seeds, each=pool.map).equal(degrade(gt, seeds))
        DegradationPipeline([Step(met, {}, 1.0, False, False)], 1)(gt, seeds, each=pool.map)
        assert len(THREADS) == 3
        for each in (map, pool.map):
            with pytest.raises(ValueError, match="shorter"):
                degrade(gt, seeds[:8], each=each)


def test_the_blind_recipe_gives_every_sample_its_own_degradation():
    data = load_config(ROOT / "configs" / "sr_x4_blind.yaml").data
    degrade = build_degradation([(step.name, step.arguments) for step in data.degradation], data.scale, data.channels)
    gt = ASTRONAUT[None].expand(8, -1, -1, -1).contiguous()
    seeds = np.arange(8).astype(np.uint64)
    output = degrade(gt, seeds)
    assert degrade.on_host and output.shape == (8, 3, 15, 18)
    assert output.min() >= 0 and output.max() <= 1
    torch.testing.assert_close(output * 255, (output * 255).round(), rtol=0, atol=1e-3)
    assert len({image.numpy().tobytes() for image in output}) == 8
    assert degrade(gt[:3], seeds[[5, 2, 7]]).equal(output[[5, 2, 7]])
    small = F.interpolate(gt, (15, 18), mode="area")
    assert 0.01 < (output - small).abs().mean() < 0.15
