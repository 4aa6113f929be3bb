"""Weights that fit a model in part: which of its tensors a file fills, and which stay as the model was built."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_COUNTS = "num_batches_tracked"  # of batch norms; old files have none
_GROUPS = 5  # that a list of tensors names


@dataclass(frozen=True)
class PartialFit:
    """What `model.partial` takes from a file. The names are those of the model, in its order."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]  # in the file
    other_shape: tuple[str, ...]
    unused: tuple[str, ...]  # in the file, but not in the model
    values_taken: int  # of parameters
    values: int

    @classmethod
    def of(cls, model: nn.Module, weights: dict[str, Tensor]) -> "PartialFit":
        """Compare the names and shapes of a model with those of a file.

        Buffers of whole numbers and booleans, such as indices, follow from the model's arguments. They are in no list:
        the model keeps its own.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        taken, missing, other_shape = [], [], []
        for name, tensor in model.state_dict().items():
            is_count = name.endswith(_COUNTS)
            if not (name in parameters or tensor.is_floating_point() or is_count):
                continue
            found = weights.get(name)
            if found is None:
                missing += [] if is_count else [name]
            elif found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
                other_shape.append(name)
            else:
                taken.append(name)
        state = model.state_dict()
        sizes = {id(parameter): parameter.numel() for parameter in parameters.values()}
        filled = {id(parameters[name]) for name in taken if name in parameters}  # a tied tensor has several names
        return cls(
            tuple(taken), tuple(missing), tuple(other_shape), tuple(name for name in weights if name not in state),
            sum(sizes[key] for key in filled), sum(sizes.values()),
        )  # fmt: skip

    @property
    def is_enough(self) -> bool:
        """Whether at least half of the parameters fit, counted by values."""
        return 2 * self.values_taken >= self.values

    @property
    def share(self) -> str:
        """The share of the parameters that fit, counted by values and rounded down: 100.0 % are all."""
        return f"{1000 * self.values_taken // max(self.values, 1) / 10:.1f} %"

    @torch.no_grad()
    def fill(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Copy the tensors that fit into the model."""
        state = model.state_dict()
        for name in self.taken:
            state[name].copy_(weights[name])

    def describe(self, source: str) -> str:
        """Return in words what is taken, and groups of what is not."""
        tensors = len(self.taken) + len(self.missing) + len(self.other_shape)
        parts = [f"{len(self.taken)} of {tensors} tensors, {self.share} of parameters, from {source}"]
        new = [*_in_words(self.missing), *_in_words(self.other_shape, " of another shape")]
        for what, groups in (("new", new), ("not in the model", _in_words(self.unused))):
            parts += [f"{what}: {', '.join(groups)}"] if groups else []
        return "; ".join(parts)

    def record(self, source: str) -> dict[str, Any]:
        """Return the same as JSON, for plan.json and commits."""
        lists = {"missing": self.missing, "other_shape": self.other_shape, "unused": self.unused}
        return {
            "checkpoint": source,
            "tensors_taken": len(self.taken),
            "tensors": len(self.taken) + len(self.missing) + len(self.other_shape),
            "parameters_taken": self.values_taken,
            "parameters": self.values,
            **{what: grouped(names) for what, names in lists.items()},
            "in_words": self.describe(source),
        }


def grouped(names: Iterable[str], most: int = _GROUPS) -> dict[str, int]:
    """Return the numbers of tensors by the first parts of their names.

    Groups are modules, or as many of the first parts as give at most `most` groups; at least the first part.
    """
    owners = [name.rpartition(".")[0] or name for name in names]
    for depth in range(max((owner.count(".") + 1 for owner in owners), default=1), 0, -1):
        groups = Counter(".".join(owner.split(".")[:depth]) for owner in owners)
        if len(groups) <= most:
            break
    return dict(groups)


def _in_words(names: Iterable[str], what: str = "") -> list[str]:
    groups = list(grouped(names).items())
    words = [f"{group:.100} ({count}{what})" for group, count in groups[:_GROUPS]]
    rest = sum(count for _, count in groups[_GROUPS:])
    return [*words, f"{rest} more{what}"] if rest else words
