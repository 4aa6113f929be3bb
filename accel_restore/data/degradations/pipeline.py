"""Synthetic degradations: from the configured list of steps to a function that makes `input` from `gt`.

A step is a pure function of one image, `(image, random, *, keyword parameters) -> image`: image (C, H, W), nominally in
[0, 1]. Its keyword parameters are its configuration, and what a parameter may be stands in its annotation. Every draw
comes from `random`, so that a sample's input depends on its seed alone. Before training the list is tried on 64 samples
in which all outcomes of a chance or a choice are equally likely, so that a rare one fails now and not during training.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_restore.errors import UserError
from accel_restore.registry import DEGRADATIONS
from accel_restore.utils.imports import check_arguments, resolve, unknown_choice, unknown_name
from accel_restore.utils.rng import EvenRandom, KeyedRandom

if TYPE_CHECKING:  # the names are checked before torch is imported
    from torch import Tensor

Size = tuple[int, int]  # height, width
Check = Callable[[Any], str | None]  # what a value must be, where it is not; stands in Annotated[type, check]
_GIVEN = ("image", "random", "size")  # parameters that the program gives
_TRIAL_SAMPLES, _TRIAL_SIDE = 64, 32  # samples of a trial, and the side of their inputs


def with_defaults(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps as they are configured, with the defaults of what they leave out, as JSON can hold them."""
    full = []
    for step in steps:
        function = resolve(step["name"], DEGRADATIONS, "data.degradation")
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        values = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in _GIVEN} | step
        values |= {p.name: with_defaults(step[p.name]) for p in parameters if p.annotation == Steps and p.name in step}
        full.append(json.loads(json.dumps({"name": step["name"], **values}, default=repr)))
    return full


def numbers(
    low: float, high: float = float("inf"), *, above: bool = False, whole: bool = False, pair: bool = True
) -> Check:
    """The check of a number from `low` (`above`: above it) to `high`; `pair`: or of a range [low, high]."""
    what = f"a {'whole ' if whole else ''}number {'above' if above else 'from'} {low}"
    what += f" up to {high}" if high < float("inf") else "" if above else " on"
    what += " or a pair [low, high]" if pair else ""

    def fits(value: Any) -> bool:
        right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        return right_type and (low < value if above else low <= value) and value <= high and value != float("inf")

    def check(value: Any) -> str | None:
        first, last = value if pair and isinstance(value, list | tuple) and len(value) == 2 else (value, value)
        return None if fits(first) and fits(last) and first <= last else f"must be {what}, not {value!r}"

    return check


def one_of(*names: str, several: bool = False) -> Check:
    """The check of a name; `several`: or of a list of names."""

    def check(value: Any) -> str | None:
        listed = value if several and isinstance(value, list | tuple) and value else [value]
        return next((unknown_choice(str(name), names) for name in listed if name not in names), None)

    return check


_probability = numbers(0, 1, pair=False)


@dataclass(frozen=True)
class Step:
    """A degradation with its arguments, done to a sample with a probability; `size` is that of the final input."""

    function: Callable
    arguments: dict[str, Any]
    probability: float
    takes_size: bool
    on_host: bool

    def __call__(self, image: Tensor, random: KeyedRandom, size: Size) -> Tensor:
        if not random.chance(self.probability):
            return image
        import torch

        given = {"size": size} if self.takes_size else {}
        result = self.function(image, random, **self.arguments, **given)
        right = isinstance(result, torch.Tensor) and (result.ndim, result.dtype) == (3, image.dtype)
        if not right or len(result) != len(image):
            raise UserError("it must return an image (C, H, W) with the channels and the dtype of the one it is given")
        return result


Steps = list[Step]  # a parameter with this annotation is configured by a list of degradations


class DegradationPipeline:
    """A function (gt, seeds) → input; `on_host`: a step works on the CPU alone, so that all are best done there."""

    def __init__(self, steps: Steps, scale: int):
        self.steps, self.scale = steps, scale
        self.on_host = any(step.on_host for step in steps)

    def __call__(self, gt: Tensor, seeds: np.ndarray, each: Callable[..., Iterable] = map) -> Tensor:
        """The degraded images, each a function of its gt and seed alone; made through `each`, a map or a pool's.

        Shapes: gt (B, C, H, W), H and W multiples of the scale; seeds (B,) uint64; returns (B, C, H/scale, W/scale).
        Raises: UserError where the steps leave an image at another size.
        """
        import torch

        return torch.stack(list(each(self._degraded, zip(gt, map(KeyedRandom, seeds.tolist()), strict=True))))

    def _degraded(self, sample: tuple[Tensor, KeyedRandom]) -> Tensor:
        import torch

        gt, random = sample
        size = (gt.shape[1] // self.scale, gt.shape[2] // self.scale)
        image = gt.clone(memory_format=torch.contiguous_format)  # the result must not depend on the layout of gt
        for position, step in enumerate(self.steps):
            image = step(image, random.split(position), size)
        self.check(image.shape, gt.shape)
        return image

    def check(self, shape: Sequence[int], gt: Sequence[int]) -> None:
        """Raise `UserError` where images of a shape are no inputs for a gt of another."""
        if tuple(shape[1:]) != (gt[1] // self.scale, gt[2] // self.scale):
            raise UserError(
                f"data.degradation: can make an input of {shape[2]}x{shape[1]} from a gt of {gt[2]}x{gt[1]}, but "
                f"data.scale is {self.scale}: end the list with {{name: downscale}}, without a probability"
            )


def build_degradation(
    steps: list[tuple[str, dict[str, Any]]], scale: int = 1, channels: int = 3
) -> DegradationPipeline:
    """The function (gt, seeds) → input that applies the named degradations in order, tried on small images.

    Raises: UserError that lists, by their dotted keys, all names, arguments and values that cannot be used, or says
    that the input can have another size than gt / scale.
    """
    import torch

    image = torch.linspace(0, 1, channels * 16 * 16).view(channels, 16, 16)
    entries = [{"name": name, **arguments} for name, arguments in steps]
    degrade = DegradationPipeline(_build_steps(entries, "data.degradation", image), scale)
    _try_samples(degrade, channels)
    return degrade


def _try_samples(degrade: DegradationPipeline, channels: int) -> None:
    """Raise `UserError` if a step fails on a seeded sample, or if a sample ends at another size than the input."""
    import torch

    size, shapes = (_TRIAL_SIDE, _TRIAL_SIDE), set()
    gt = torch.full((channels, _TRIAL_SIDE * degrade.scale, _TRIAL_SIDE * degrade.scale), 0.5)
    for seed in range(_TRIAL_SAMPLES):
        image, random = gt.clone(), EvenRandom(seed)
        for position, step in enumerate(degrade.steps):
            try:
                image = step(image, random.split(position), size)
            except Exception as error:  # the function may be the user's
                raise UserError(f"data.degradation.{position}: cannot work on every image: {error}") from error
        shapes.add(tuple(image.shape))
    for shape in sorted(shapes):
        degrade.check(shape, gt.shape)


def _build_steps(entries: Any, where: str, trial: Tensor) -> Steps:
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: must be a list of steps such as {{name: quantize}}, not {entries!r}")
    steps, problems = [], []
    for position, entry in enumerate(entries):
        with _collected(problems):
            steps.append(_build_step(entry, f"{where}.{position}", trial))
    if problems:
        raise UserError("\n".join(problems))
    return steps


def _build_step(entry: dict[str, Any], where: str, trial: Tensor) -> Step:
    """One entry of a list as a step; its own lists of steps are built too."""
    arguments = {"name": "", "probability": 1.0, **entry}
    name, probability = str(arguments.pop("name")), arguments.pop("probability")
    if name not in DEGRADATIONS and ":" not in name:
        raise UserError(f"{where}.name: {unknown_name(name, DEGRADATIONS)}")
    function = resolve(name, DEGRADATIONS, f"{where}.name")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UserError(f"{where}.name: '{name}' is no function (image, random, *, ...) written in Python") from None
    try:  # annotations are strings in a module with `from __future__ import annotations`
        parameters = inspect.signature(function, eval_str=True).parameters
    except Exception as error:  # whatever the user's annotation raises
        raise UserError(
            f"{where}.name: an annotation of '{name}' cannot be evaluated ({error}); its names must be known to its "
            "module when it runs, not under TYPE_CHECKING alone"
        ) from error

    problems, inner = [], []
    with _collected(problems):
        check_arguments(function, arguments, where, skip=_GIVEN)
    if problem := _probability(probability):
        problems.append(f"{where}.probability: {problem}")
    for argument, value in arguments.items():
        parameter = parameters.get(argument)
        if parameter is None or (value is None and parameter.default is None):
            continue
        if parameter.annotation == Steps:
            with _collected(problems):
                arguments[argument] = _build_steps(value, f"{where}.{argument}", trial)
                inner += arguments[argument]
        checks = getattr(parameter.annotation, "__metadata__", ())
        problems += [f"{where}.{argument}: {problem}" for check in checks if (problem := check(value))]
    if problems:
        raise UserError("\n".join(problems))

    on_host = getattr(function, "on_host", False) or any(step.on_host for step in inner)
    step = Step(function, arguments, probability, "size" in parameters, on_host)
    if problem := _tried(step, trial):
        raise UserError(f"{where}: {name} {problem}")
    return step


def _tried(step: Step, image: Tensor) -> str | None:
    """What is wrong with a step, or None: it is done twice to a small image with the same draws."""
    certain, size = replace(step, probability=1.0), tuple(image.shape[1:])
    try:
        first, second = (certain(image.clone(), KeyedRandom(0), size) for _ in range(2))
    except Exception as error:  # the function may be the user's
        return f"cannot work with these arguments: {error}"
    return None if first.equal(second) else "gives another result each time; it must draw from `random` alone"


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.append(str(error))
