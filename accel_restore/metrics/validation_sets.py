"""The protocols of a run's validation sets, and the scores of each set: the means over its images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel_restore.config.schema import Config
from accel_restore.metrics.protocol import Protocol
from accel_restore.state import Scores


@dataclass(frozen=True)
class SetProtocols:
    """The protocol of each set by its name. The metrics are the same, and are built once."""

    sets: dict[str, Protocol]
    whole: Protocol  # what the protocols have in common; where they differ, the values of the section `validation`

    @classmethod
    def of(cls, config: Config) -> "SetProtocols":
        """Return the protocols of a run."""
        return cls._joined(
            Protocol.of_sets(config), Protocol.from_settings(config.validation, config.data.image_spec, ())
        )

    @classmethod
    def _joined(cls, sets: dict[str, Protocol], base: Protocol) -> "SetProtocols":
        first, *others = sets.values()
        same = {
            field.name: getattr(first, field.name)
            for field in fields(Protocol)
            if all(getattr(other, field.name) == getattr(first, field.name) for other in others)
        }
        return cls(sets, replace(base, **same))

    def for_pixels(self, kinds: dict[str, np.dtype], range: tuple[float, float]) -> "SetProtocols":
        """Return the protocols for gts of these dtypes, by the names of their sets; see `Protocol.for_pixels`."""
        sets = {name: protocol.for_pixels(kinds[name], range) for name, protocol in self.sets.items()}
        return self._joined(sets, self.whole)

    def smallest_sides(self, least: int) -> dict[str, int]:
        """Return for each set the smallest side, in pixels, of an image that can be scored; at least `least`."""
        return {name: max(protocol.smallest_side, least) for name, protocol in self.sets.items()}

    def describe(self) -> dict[str, Any]:
        """Return what the protocols have in common, as it is stored with the scores."""
        described = self.whole.describe()
        if len(self.sets) > 1:
            described["average"] = "per image, then the mean over the images of each set, then over the sets"
        if any(protocol.degradation != self.whole.degradation for protocol in self.sets.values()):
            described["input"] = "differs between the sets"
        return described

    def describe_sets(self) -> dict[str, dict[str, Any]]:
        """Return the protocol of each set that has a name."""
        return {name: protocol.describe() for name, protocol in self.sets.items() if name}

    def describe_scores(self, best: dict[str, Any]) -> dict[str, Any]:
        """Return scores in the form of `Scores.record` with the protocols that they were measured by."""
        described = {**best, "protocol": self.describe()}
        if sets := best.get("sets"):
            protocols = self.describe_sets()
            described["sets"] = {name: {**scores, "protocol": protocols[name]} for name, scores in sets.items()}
        return described


def mean_scores(
    table: Tensor, set_of: Sequence[str], metrics: Sequence[str], inputs: Sequence[str], terms: Sequence[str]
) -> Scores:
    """Return the means over sets, and those of each set that has a name.

    `inputs` are the metrics that the input is scored by.

    Shapes: `table` (images, columns), rows of `score_image`; `set_of` has the name of each image's set.
    """
    places: dict[str, list[int]] = {}
    for index, name in enumerate(set_of):
        places.setdefault(name, []).append(index)
    of_sets = torch.stack([table[indices].mean(0) for indices in places.values()])
    whole, *each = (_scores(row, metrics, inputs, terms) for row in (of_sets.mean(0), *of_sets))
    named = {name: scores for name, scores in zip(places, each, strict=True) if name}
    return replace(whole, sets=named)


def _scores(row: Tensor, *columns: Sequence[str]) -> Scores:
    loss, *values, _ = row.tolist()
    value = iter(values)
    return Scores(loss, *({name: next(value) for name in names} for names in columns))
