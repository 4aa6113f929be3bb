"""Synthetic degradations: from the configured list of steps to a function that makes `input` from `gt`.

A step is a pure function of one image, `(image, random, *, keyword parameters) -> image`: image (C, H, W), nominally in
[0, 1]. Its keyword parameters are its configuration, and what a parameter may be stands in its annotation. Every draw
comes from `random`, so that a sample's input depends on its seed alone.
"""

from __future__ import annotations

import inspect
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_restore.data.order import key
from accel_restore.errors import UserError
from accel_restore.naming import check_arguments, resolve, unknown_choice

if TYPE_CHECKING:  # the names are checked before torch is imported
    import torch
    from torch import Tensor

# Import paths, so that names are checked without importing torch.
DEGRADATIONS = {
    name: f"accel_restore.data.effects:{name}"
    for name in (
        "gaussian_noise", "poisson_noise", "speckle", "jpeg", "gaussian_blur", "motion_blur", "sinc", "resize",
        "downscale", "quantize", "rain", "low_light", "sequence", "random_order", "choice",
    )
}  # fmt: skip

Range = float | Sequence[float]  # a number, or a pair [low, high] drawn uniformly for each sample
Size = tuple[int, int]  # height, width
Check = Callable[[Any], str | None]  # what a value must be, where it is not; stands in Annotated[type, check]
_GIVEN = ("image", "random", "size")  # parameters that the program gives
_TRIALS = 8  # samples that a list is tried on


class Random:
    """Keyed draws: the n-th draw is a hash of (seed, n), the same in any thread and on any rank."""

    def __init__(self, seed: int):
        self.seed, self.count = seed, 0

    def _next(self) -> int:
        self.count += 1
        return key(self.seed, self.count)

    def split(self, index: int) -> Random:
        """An independent source of draws for part `index`, whatever was drawn before."""
        return Random(key(self.seed, -1, index))

    def uniform(self, span: Range) -> float:
        """A float from low to high, or the number itself."""
        low, high = ends(span)
        return low + (high - low) * (self._next() >> 11) * 2.0**-53

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + self._next() % (high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform((0, 1)) < probability

    def choice(self, items: Sequence, weights: Sequence[float] | None = None) -> Any:
        """One of `items`, with chances in proportion to `weights`. Raises: ValueError for unfit weights."""
        weights = [1.0] * len(items) if weights is None else weights
        if len(weights) != len(items) or any(weight < 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"weights {weights} do not fit {len(items)} choices")
        place = self.uniform((0, sum(weights)))
        return items[bisect(list(accumulate(weights)), place, hi=len(items) - 1)]

    def permutation(self, n: int) -> list[int]:
        """0 … n − 1 in a random order."""
        return sorted(range(n), key=[self._next() for _ in range(n)].__getitem__)

    def generator(self, device: torch.device) -> torch.Generator:
        """A torch generator of the next key, for draws per pixel."""
        import torch

        return torch.Generator(device).manual_seed(self._next() >> 1)

    def normal(self, like: Tensor, sigma: float = 1.0) -> Tensor:
        """Gaussian noise of the shape, dtype and device of `like`."""
        import torch

        noise = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return noise.normal_(0.0, sigma, generator=self.generator(like.device))


def ends(span: Range) -> tuple[float, float]:
    """The lowest and the highest value of a range."""
    low, high = span if isinstance(span, Sequence) else (span, span)
    return low, high


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

    def __call__(self, image: Tensor, random: Random, size: Size) -> Tensor:
        if not random.chance(self.probability):
            return image
        given = {"size": size} if self.takes_size else {}
        return self.function(image, random, **self.arguments, **given)


Steps = list[Step]  # a parameter with this annotation is configured by a list of degradations


class Degrade:
    """A function (gt, seeds) → input; `on_host`: a step works on the CPU alone, so that all are best done there."""

    def __init__(self, steps: Steps, scale: int):
        self.steps, self.scale = steps, scale
        self.on_host = any(step.on_host for step in steps)

    def __call__(self, gt: Tensor, seeds: np.ndarray) -> Tensor:
        """The degraded images, each a function of its gt and seed alone.

        Shapes: gt (B, C, H, W), H and W multiples of the scale; seeds (B,) uint64; returns (B, C, H/scale, W/scale).
        Raises: UserError where the steps leave an image at another size.
        """
        import torch

        pairs = zip(gt, seeds.tolist(), strict=True)
        return torch.stack([self._degraded(image, Random(seed)) for image, seed in pairs])

    def _degraded(self, gt: Tensor, random: Random) -> Tensor:
        import torch

        size = (gt.shape[1] // self.scale, gt.shape[2] // self.scale)
        image = gt.clone(memory_format=torch.contiguous_format)  # the result must not depend on the layout of gt
        for position, step in enumerate(self.steps):
            image = step(image, random.split(position), size)
        if image.shape[1:] != size:
            raise UserError(
                f"data.degradation: leaves the input at {image.shape[2]}x{image.shape[1]}, but data.scale is "
                f"{self.scale}: end the list with {{name: downscale}}"
            )
        return image


def build_degradation(steps: list[tuple[str, dict[str, Any]]], scale: int = 1, channels: int = 3) -> Degrade:
    """The function (gt, seeds) → input that applies the named degradations in order, tried on small images.

    Raises: UserError that lists, by their dotted keys, all names, arguments and values that cannot be used, or says
    that the input has another size than gt / scale.
    """
    import torch

    side = 32 * scale
    gt = torch.linspace(0, 1, channels * side * side).view(1, channels, side, side)
    entries = [{"name": name, **arguments} for name, arguments in steps]
    degrade = Degrade(_build_steps(entries, "data.degradation", gt[0, :, :16, :16]), scale)
    degrade(gt.expand(_TRIALS, -1, -1, -1), np.arange(_TRIALS))
    return degrade


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
        raise UserError(f"{where}.name: {unknown_choice(name, DEGRADATIONS)}")
    function = resolve(name, DEGRADATIONS, f"{where}.name")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UserError(f"{where}.name: '{name}' is no function (image, random, *, ...) written in Python") from None

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
    import torch

    certain, size = replace(step, probability=1.0), tuple(image.shape[1:])
    try:
        first, second = (certain(image.clone(), Random(0), size) for _ in range(2))
    except Exception as error:  # the function may be the user's
        return f"cannot work with these arguments: {error}"
    if not isinstance(first, torch.Tensor) or first.ndim != 3 or len(first) != len(image) or first.dtype != image.dtype:
        return "must return an image (C, H, W) with the channels and the dtype of the one it is given"
    return None if first.equal(second) else "gives another result each time; it must draw from `random` alone"


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.append(str(error))
