"""Lists of degradations that are rejected before a run, each with its key."""

import pytest
import torch
from degraded import ASTRONAUT, SEEDS

from accel_restore.data.degradations.pipeline import DEGRADATIONS, build_degradation
from accel_restore.errors import UserError

HALF = {"name": "resize", "scale": 0.5}


RARE = {**HALF, "probability": 1e-9}


def problems(steps: list, *rest: int) -> str:
    with pytest.raises(UserError) as caught:
        build_degradation(steps, *rest)
    return str(caught.value)


@pytest.mark.parametrize(
    "sigma", [-1, [5], [50, 5], "25", float("nan"), float("inf"), True, None, [1, 2, 3], [1, True]]
)
def test_invalid_strength_is_rejected(sigma):
    message = problems([("gaussian_noise", {"sigma": sigma})])
    assert message.startswith("data.degradation.0.sigma: must be a number of at least 0 or a pair [low, high], not ")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gaussian_noise", {"sigmma": 2}, ".0.sigmma: unknown key; did you mean 'data.degradation.0.sigma'?"),
        ("gaussian_noise", {"image": 2}, ".0.image: unknown key"),
        ("gaussian_noise", {"gray": [0, 1]}, ".0.gray: must be a number from 0 up to 1, not [0, 1]"),
        ("gaussian_noise", {"probability": 1.5}, ".0.probability: must be a number from 0 up to 1, not 1.5"),
        ("gaussian_noise", {"probability": True}, ".0.probability: must be a number from 0 up to 1, not True"),
        ("poisson_noise", {"peak": 0}, ".0.peak: must be a number above 0 or a pair [low, high], not 0"),
        ("jpeg", {"quality": 0}, ".0.quality: must be a whole number from 1 up to 100 or a pair [low, high], not 0"),
        ("jpeg", {"quality": [30, 101]}, ".0.quality: must be a whole number from 1 up to 100"),
        ("jpeg", {"quality": 30.5}, ".0.quality: must be a whole number"),
        ("gaussian_blur", {"sigma_y": -1}, ".0.sigma_y: must be a number from 0 up to 200"),
        ("gaussian_blur", {"profile": ["gaussian"]}, ".0.profile: unknown choice"),
        (
            "downscale",
            {"method": "bicubc"},
            ".0.method: unknown choice 'bicubc'; choose one of: area, bilinear, bicubic",
        ),
        ("downscale", {"method": ["area", 3]}, ".0.method: unknown choice '3'"),
        ("downscale", {"size": 3}, ".0.size: unknown key"),
        ("random_order", {}, ".0.of: missing"),
        ("choice", {"of": 3}, ".0.of: must be a list of steps"),
        ("choice", {"of": ["jpeg"]}, ".0.of: must be a list of steps"),
        ("choice", {"of": []}, ".0: choice fails with these arguments"),
        ("choice", {"of": [{"name": "jpeg"}], "weights": [1, 2]}, ".0: choice fails with these arguments: weights"),
        ("choice", {"of": [{"name": "jpeg"}, {"quality": 3}]}, ".0.of.1.name: unknown choice ''"),
        ("choice", {"of": [{"name": "jpg"}]}, ".0.of.0.name: unknown choice 'jpg'; choose one of: gaussian_noise, "),
        (
            "choice",
            {"of": [{"name": "my.noise"}]},
            f".0.of.0.name: unknown choice 'my.noise'; choose one of: {', '.join(DEGRADATIONS)}; an import path is "
            "written 'my:noise'",
        ),
        (
            "sequence",
            {"of": [{"name": "choice", "of": [{"name": "jpeg", "quality": -1}]}]},
            ".0.of.0.of.0.quality: must",
        ),
        ("no.such.package:noise", {}, ".0.name: cannot import 'no.such.package:noise'"),
        (".degrade:gaussian_noise", {}, ".0.name: cannot import"),
        ("os:sep", {}, ".0.name: 'os:sep' is not a Python function"),
        ("torch:relu", {}, ".0.name: 'torch:relu' is not a Python function"),
        ("os:system", {"command": "touch hostile"}, ".0.command: unknown key; known keys: none"),
        ("test_pipeline:careless", {}, ".0: test_pipeline:careless returns different results for equal draws"),
        (
            "test_pipeline:careless",
            {"probability": 0},
            ".0: test_pipeline:careless returns different results for equal draws",
        ),
        ("test_pipeline:gray_of", {}, ": makes an input of 1 channel from a gt of 3, but the input must have 3"),
        ("test_pipeline:brighter", {"by": "much"}, ".0: test_pipeline:brighter fails with these arguments"),
        ("test_pipeline:brighter", {"byy": 1}, ".0.byy: unknown key; did you mean 'data.degradation.0.by'?"),
    ],
)
def test_invalid_degradation_is_rejected_with_its_key(name, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"data.degradation{message}" in problems([(name, arguments)])
    assert not list(tmp_path.iterdir())


def test_all_problems_of_a_list_are_reported_at_once():
    of = [{"name": "jpeg", "quality": 0}, {"name": "blurr"}]
    steps = [("gaussian_noise", {"sigma": -1, "gray": 2, "grey": 1}), ("jpeg", {}), ("choice", {"of": of})]
    keys = [line.split(":")[0].removeprefix("data.degradation.") for line in problems(steps).splitlines()]
    assert keys == ["0.grey", "0.sigma", "0.gray", "2.of.0.quality", "2.of.1.name"]


@pytest.mark.parametrize(
    ("steps", "scale", "size"),
    [
        ([("gaussian_noise", {})], 2, "64x64"),
        ([("resize", {"scale": 0.5})], 1, "16x16"),
        ([], 4, "128x128"),
        # What happens to few samples, or does not happen to a few:
        ([("resize", {"scale": 0.5, "probability": 1e-9})], 1, "16x16"),
        ([("resize", {"scale": [0.9, 1.1], "probability": 1e-9})], 1, ""),
        ([("downscale", {"probability": 0.5})], 2, "64x64"),
        ([("downscale", {"probability": 1 - 1e-9})], 2, "64x64"),
        ([("resize", {"scale": 0.5, "probability": 1e-9}), ("downscale", {"probability": 1 - 1e-9})], 1, "16x16"),
        ([("choice", {"of": [{"name": "jpeg"}, HALF], "weights": [1, 1e-9]})], 1, "16x16"),
        ([("choice", {"of": [{"name": "sequence", "of": [RARE]}, {"name": "jpeg"}]})], 1, "16x16"),
        ([("random_order", {"of": [HALF, {"name": "downscale"}]})], 1, "16x16"),
        ([("random_order", {"of": [{"name": "downscale"}, *[{"name": "quantize"}] * 5, RARE]})], 1, "16x16"),
        ([("sequence", {"of": [RARE, RARE, {"name": "resize", "scale": 2}]})], 1, "16x16"),
        ([("test_pipeline:twice", {"of": [RARE]})], 1, "8x8"),
        ([("test_pipeline:seldom_halved", {})], 1, "16x32"),
    ],
)
def test_list_that_can_change_the_size_is_rejected(steps, scale, size):
    side, message = 32 * scale, problems(steps, scale)
    assert message.startswith(f"data.degradation: can make an input of {size}")
    assert message.endswith(
        f" from a gt of {side}x{side}, but data.scale is {scale}; end the list with {{name: downscale}}, without a "
        "probability"
    )
    build_degradation([*steps, ("downscale", {})], scale)


@pytest.mark.parametrize(
    "steps",
    [
        [("resize", {"scale": 0.5, "probability": 0})],
        [("choice", {"of": [{"name": "jpeg"}, HALF], "weights": [1, 0]})],
        [("choice", {"of": [HALF, HALF]}), ("resize", {"scale": 2})],
        [("random_order", {"of": [HALF, {"name": "resize", "scale": 2}]})],
        [("random_order", {"of": []}), ("sequence", {"of": []})],
        [("test_pipeline:patient", {})],
    ],
)
def test_list_that_keeps_the_size_is_accepted(steps):
    gt = ASTRONAUT[None, :, :32, :32]
    assert build_degradation(steps)(gt, SEEDS[:1]).shape == gt.shape


FUTURE = """
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated
from torch import Tensor
from accel_restore.data.degradations.pipeline import Size, Steps, numbers
from accel_restore.utils.rng import KeyedRandom
if TYPE_CHECKING:
    from nowhere import Nothing

def brighter(image: Tensor, random: KeyedRandom, *, by: Annotated[float, numbers(0, 1)] = 0.5) -> Tensor:
    return image + by

def in_turn(image: Tensor, random: KeyedRandom, *, of: Steps, size: Size) -> Tensor:
    for position, step in enumerate(of):
        image = step(image, random.split(position), size)
    return image

def unknown(image: Tensor, random: KeyedRandom, *, by: Nothing = None) -> Tensor:
    return image
"""


def test_arguments_are_checked_with_string_annotations(tmp_path, monkeypatch):
    (tmp_path / "steps_of_the_future.py").write_text(FUTURE)
    monkeypatch.syspath_prepend(tmp_path)
    name = "steps_of_the_future:{}".format
    assert problems([(name("brighter"), {"by": 7})]).startswith(
        "data.degradation.0.by: must be a number from 0 up to 1"
    )
    of = [{"name": name("brighter"), "by": 1}, {"name": "jpeg"}, {"name": "resize", "scale": 2}]
    assert problems([(name("in_turn"), {"of": of})]).startswith("data.degradation: can make an input of 64x64")
    degrade, gt = build_degradation([(name("in_turn"), {"of": of[:2]})]), torch.zeros(1, 3, 8, 8)
    assert degrade.on_host and degrade(gt, SEEDS[:1]).eq(1).all()
    assert ".0.of.0.by: must be" in problems([(name("in_turn"), {"of": [{**of[0], "by": -1}]})])
    message = "data.degradation.0.of.0.name: an annotation of 'steps_of_the_future:unknown' cannot be evaluated (name "
    assert problems([(name("in_turn"), {"of": [{"name": name("unknown")}]})]).startswith(message + "'Nothing'")
