"""Synthetic degradations: build the function that makes `input` from `gt` from the configured list of steps.

A step is a pure function of one image, `(image, random, *, keyword parameters) -> image`: image (C, H, W), nominally in
[0, 1]. Its keyword parameters are its configuration; their annotations define the valid values. Every draw comes from
`random`, so a sample's input depends only on its seed. Before training, the list is tried on 64 samples in which all
outcomes of a chance or a choice are equally likely, so that a rare one fails before training and not during it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.registry import DEGRADATIONS
from accel_restore.utils.imports import check_arguments, describe_error, resolve, unknown_choice, unknown_name
from accel_restore.utils.rng import EvenRandom, KeyedRandom
from accel_restore.utils.words import counted

if TYPE_CHECKING:  # names are checked before torch is imported
    from torch import Tensor

Size = tuple[int, int]  # height, width
Check = Callable[[Any], str | None]  # returns the problem of a value; used in Annotated[type, check]
_TRIAL_SAMPLES, _TRIAL_SIDE = 64, 32  # samples of a trial, and the side of their inputs


def with_defaults(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the configured steps with the defaults of all other parameters, as JSON values."""
    full = []
    for step in steps:
        function = resolve(step["name"], DEGRADATIONS, "data.degradation")
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        values = {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "size"} | step
        values |= {p.name: with_defaults(step[p.name]) for p in parameters if p.annotation == Steps and p.name in step}
        full.append(json.loads(json.dumps({"name": step["name"], **values}, default=repr)))
    return full


def numbers(
    low: float, high: float = float("inf"), *, above: bool = False, whole: bool = False, pair: bool = True
) -> Check:
    """Return the check of a number from `low` (with `above`: above it) to `high`; with `pair`, or of a range."""
    bounded = high < float("inf")
    what = f"a {'whole ' if whole else ''}number {'above' if above else 'from' if bounded else 'of at least'} {low}"
    what += f" up to {high}" if bounded else ""
    what += " or a pair [low, high]" if pair else ""

    def fits(value: Any) -> bool:
        right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        return right_type and (low < value if above else low <= value) and value <= high and value != float("inf")

    def check(value: Any) -> str | None:
        first, last = value if pair and isinstance(value, list | tuple) and len(value) == 2 else (value, value)
        return None if fits(first) and fits(last) and first <= last else f"must be {what}, not {value!r}"

    return check


def one_of(*names: str, several: bool = False) -> Check:
    """Return the check of a name; with `several`, or of a list of names."""

    def check(value: Any) -> str | None:
        listed = value if several and isinstance(value, list | tuple) and value else [value]
        return next((unknown_choice(str(name), names) for name in listed if name not in names), None)

    return check


_probability = numbers(0, 1, pair=False)

OF_BATCH: dict[Callable, Callable] = {}  # a degradation: the same for whole batches; see `Step.of_batch`


@dataclass(frozen=True)
class Step:
    """A degradation with its arguments, applied with a probability; `size` is that of the final input."""

    function: Callable
    arguments: dict[str, Any]
    probability: float
    takes_size: bool
    on_host: bool

    @property
    def of_batch(self) -> Callable | None:
        """The function of a whole batch, (images (B, C, H, W), one random per image, **arguments), if there is one.

        A step that is applied with a probability has none.
        """
        return OF_BATCH.get(self.function) if self.probability == 1 else None

    def __call__(self, image: Tensor, random: KeyedRandom, size: Size) -> Tensor:
        """Return the degraded image, or by chance the image itself."""
        if not random.chance(self.probability):
            return image
        import torch

        given = {"size": size} if self.takes_size else {}
        with torch.no_grad():  # a user's function may be a network; each thread has a gradient mode of its own
            result = self.function(image, random, **self.arguments, **given)
        if not isinstance(result, torch.Tensor) or (result.ndim, result.dtype) != (3, image.dtype):
            raise UserError("it must return an image (C, H, W) with the dtype of its argument")
        return result


Steps = list[Step]  # a parameter with this annotation is configured by a list of degradations


class DegradationPipeline:
    """A function (gt, seeds) → input; `on_host`: a step works only on the CPU, so all steps are best applied there.

    With `by_batch`, steps are applied to whole batches if all of them can be. The noise of a sample then has other
    values. They are the same on every device, and still depend only on the sample's seed.
    """

    def __init__(self, steps: Steps, scale: int, input_channels: int | None = None, key: str = "data.degradation"):
        """`input_channels` are those of the result; None: as many as gt has. `key` is that of the steps in messages."""
        self.steps, self.scale, self.input_channels, self.key = steps, scale, input_channels, key
        self.on_host, self.by_batch = any(step.on_host for step in steps), False

    def for_training(self) -> DegradationPipeline:
        """Return the same function with `by_batch`. Validation does not use it, because its inputs must not change."""
        other = copy(self)
        other.by_batch = True
        return other

    def __call__(self, gt: Tensor, seeds: np.ndarray, each: Callable[..., Iterable] = map) -> Tensor:
        """Return the degraded images; each depends only on its gt and seed. `each` is `map`, or the map of a pool.

        Shapes: gt (B, C, H, W), H and W multiples of the scale; seeds (B,) uint64; returns (B, C', H/scale, W/scale),
            where C' is C unless the pipeline has `input_channels`.
        Raises: UserError if the result has another shape.
        """
        import torch

        randoms = [KeyedRandom(seed) for seed in seeds.tolist()]
        if self.by_batch and all(step.of_batch is not None for step in self.steps):
            return self._degraded_together(gt, randoms)
        return torch.stack(list(each(self._degraded, zip(gt, randoms, strict=True))))

    def _degraded_together(self, images: Tensor, randoms: list[KeyedRandom]) -> Tensor:
        gt = images.shape[1:]
        for position, step in enumerate(self.steps):
            assert step.of_batch is not None
            parts = [random.split(position) for random in randoms]
            for part in parts:
                part.chance(step.probability)  # draws what a step draws for a single sample
            images = step.of_batch(images, parts, **step.arguments)
        self.check(images.shape[1:], gt)
        return images

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
        """Raise `UserError` if an input of this shape does not fit a gt of shape `gt`."""
        if tuple(shape[1:]) != (gt[1] // self.scale, gt[2] // self.scale):
            raise UserError(
                f"{self.key}: can make an input of {shape[2]}x{shape[1]} from a gt of {gt[2]}x{gt[1]}, but "
                f"data.scale is {self.scale}; end the list with {{name: downscale}}, without a probability"
            )
        wanted = self.input_channels or gt[0]
        if shape[0] != wanted:
            raise UserError(
                f"{self.key}: makes an input of {counted(shape[0], 'channel')} from a gt of {gt[0]}, but the "
                f"input must have {wanted} (data.input_channels); read it from files (data.train.input), or name a "
                "function of your own that makes it, by its import path"
            )


def build_degradation(
    steps: list[tuple[str, dict[str, Any]]],
    scale: int = 1,
    channels: int = 3,
    input_channels: int | None = None,
    key: str = "data.degradation",
) -> DegradationPipeline:
    """Return the function (gt, seeds) → input that applies the named degradations in order, tried on small images.

    Gt has `channels` channels, the input `input_channels`; None: as many.

    Raises: UserError that lists all invalid names, arguments and values by their dotted keys, which start with `key`,
    or reports that the input can have another size than gt / scale or other channels.
    """
    import torch

    image = torch.linspace(0, 1, channels * 16 * 16).view(channels, 16, 16)
    entries = [{"name": name, **arguments} for name, arguments in steps]
    degrade = DegradationPipeline(_build_steps(entries, key, image), scale, input_channels, key)
    _try_samples(degrade, channels)
    return degrade


def _try_samples(degrade: DegradationPipeline, channels: int) -> None:
    """Raise `UserError` if a step fails on a seeded sample, or if the result has another size than the input."""
    import torch

    size: Size = (_TRIAL_SIDE, _TRIAL_SIDE)
    shapes: set[tuple[int, ...]] = set()
    gt = torch.full((channels, _TRIAL_SIDE * degrade.scale, _TRIAL_SIDE * degrade.scale), 0.5)
    for seed in range(_TRIAL_SAMPLES):
        image, random = gt.clone(), EvenRandom(seed)
        for position, step in enumerate(degrade.steps):
            try:
                image = step(image, random.split(position), size)
            except PART_ERRORS as error:  # the function may be the user's
                raise UserError(f"{degrade.key}.{position}: fails on some images: {describe_error(error)}") from error
        shapes.add(tuple(image.shape))
    for shape in sorted(shapes):
        degrade.check(shape, gt.shape)


def _build_steps(entries: Any, where: str, trial: Tensor) -> Steps:
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: must be a list of steps such as {{name: quantize}}, not {entries!r}")
    steps: Steps = []
    problems: list[str] = []
    for position, entry in enumerate(entries):
        with _collected(problems):
            step, output = _build_step(entry, f"{where}.{position}", trial)
            steps.append(step)
            trial = output if len(output) != len(trial) else trial  # a function of the user's may change the channels
    if problems:
        raise UserError("\n".join(problems))
    return steps


def _build_step(entry: dict[str, Any], where: str, trial: Tensor) -> tuple[Step, Tensor]:
    """One entry of a list as a step, with its own lists of steps, and what it makes of the image `trial`."""
    arguments = {"name": "", "probability": 1.0, **entry}
    name, probability = str(arguments.pop("name")), arguments.pop("probability")
    if name not in DEGRADATIONS and ":" not in name:
        raise UserError(f"{where}.name: {unknown_name(name, DEGRADATIONS)}")
    function = resolve(name, DEGRADATIONS, f"{where}.name")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UserError(f"{where}.name: '{name}' is not a Python function (image, random, *, ...)") from None
    try:  # with `from __future__ import annotations`, annotations are strings
        parameters = inspect.signature(function, eval_str=True).parameters
    except Exception as error:  # whatever the user's annotation raises
        raise UserError(
            f"{where}.name: an annotation of '{name}' cannot be evaluated ({error}); its names must be imported "
            "at run time, not only under TYPE_CHECKING"
        ) from error

    problems: list[str] = []
    inner: Steps = []
    with _collected(problems):
        check_arguments(function, arguments, where, skip=("size",), positional=2)  # image and random
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
    try:
        return step, _tried(step, trial)
    except UserError as error:
        raise UserError(f"{where}: {name} {error}") from error.__cause__


def _tried(step: Step, image: Tensor) -> Tensor:
    """Return what a step makes of a small image, to which it is applied twice with the same draws.

    Raises: UserError with the problem of the step.
    """
    certain, size = replace(step, probability=1.0), (image.shape[1], image.shape[2])
    try:
        first, second = (certain(image.clone(), KeyedRandom(0), size) for _ in range(2))
    except UserError as error:
        raise UserError(f"fails with these arguments: {error}") from error.__cause__
    except PART_ERRORS as error:  # the function may be the user's
        raise UserError(f"fails with these arguments: {describe_error(error)}") from error
    if not first.equal(second):
        raise UserError("returns different results for equal draws; it must draw only from `random`")
    return first


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.append(str(error))
