"""The training sets of a run: a batch holds samples of all of them, read and finished in groups.

A group are the samples of one set whose inputs are all read, or all made by the set's degradation. So pixels of
different depths, and paired and synthetic sets, can share a batch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from accel_restore.data.augment import finish_batch
from accel_restore.data.batch_plan import Sample
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.mixture import MixedSet, uses_per_period
from accel_restore.data.pairs import Pair
from accel_restore.data.train_dataset import CropDataset


@dataclass(frozen=True)
class TrainingSet:
    """One training set."""

    name: str  # empty for a single one without a name
    crops: CropDataset
    degrade: DegradationPipeline  # makes the inputs that are not read
    pairs: Sequence[Pair] = ()
    share: float | None = None  # of all samples; None: by its number of samples
    synthetic_share: float | None = None

    def image_of(self, id: int) -> int:
        """Return the index of a sample's image in the set."""
        return int(self.crops.image_of(np.array(id)))

    def file_of(self, id: int, is_synthetic: bool) -> str:
        """Return what messages call the image of a sample: the file of its input, or of its gt if the input is made."""
        pair = self.pairs[self.image_of(id)]
        return str(pair.gt if is_synthetic or pair.input is None else pair.input)


class SampleGroup(NamedTuple):
    """The samples of a batch that are finished in one way."""

    places: np.ndarray  # in the batch
    batch: dict[str, Tensor | np.ndarray]
    degrade: DegradationPipeline | None  # None: the group is finished

    @property
    def needs_host(self) -> bool:
        """Whether the degradation works only on the CPU."""
        return self.degrade is not None and self.degrade.on_host

    def finished(self, *, channels_last: bool, readers: Executor | None = None) -> "SampleGroup":
        """Return the group with what `finish_batch` returns."""
        if self.degrade is None:
            return self
        batch = finish_batch(self.batch, self.degrade, channels_last=channels_last, readers=readers)
        return SampleGroup(self.places, batch, None)


class TrainingSets(Dataset):
    """All training sets; `__getitems__` returns a whole batch of samples, in groups."""

    def __init__(self, sets: Sequence[TrainingSet]):
        """The sample ids continue from set to set, in this order."""
        self.sets = list(sets)
        self.first_ids = [0, *accumulate(len(one.crops) for one in sets[:-1])]
        for one, first_id in zip(sets, self.first_ids, strict=True):
            one.crops.first_id = first_id
        uses = uses_per_period([one.share for one in sets], [len(one.crops) for one in sets])
        self.mixed = tuple(
            MixedSet(len(one.crops), count, Fraction(str(one.synthetic_share or 0)).limit_denominator(10**6))
            for one, count in zip(sets, uses, strict=True)
        )

    def __len__(self) -> int:
        return sum(len(one.crops) for one in self.sets)

    @property
    def readers(self) -> Executor | None:
        """The threads that read crops, if there are any; the same for all sets."""
        return self.sets[0].crops.readers

    def index_of(self, id: int) -> int:
        """Return the index of a sample's set."""
        return bisect_right(self.first_ids, id) - 1

    def files_of(self, samples: Sequence[Sample]) -> list[str]:
        """Return what messages call the images of samples and of their partners, each once."""
        drawn = [(sample.id, sample.is_synthetic) for sample in samples]
        drawn += [(sample.partner, sample.is_synthetic) for sample in samples if sample.partner >= 0]
        return list(dict.fromkeys(self.sets[self.index_of(id)].file_of(id, is_synthetic) for id, is_synthetic in drawn))

    def __getitems__(self, samples: Sequence[Sample]) -> list[SampleGroup]:
        samples = list(samples)
        kinds = np.array([2 * self.index_of(sample.id) + sample.is_synthetic for sample in samples])
        groups = []
        for kind in np.unique(kinds).tolist():
            one, places = self.sets[kind // 2], np.flatnonzero(kinds == kind)
            crops = one.crops.__getitems__([samples[place] for place in places.tolist()])
            if len(self.sets) > 1:
                crops["set"] = torch.full((len(places),), kind // 2)
            groups.append(SampleGroup(places, crops, one.degrade))
        return groups


def finish_groups(groups: Sequence[SampleGroup], *, channels_last: bool) -> dict[str, Tensor | np.ndarray]:
    """Return the batch that a model trains on, with the samples of all groups in their places.

    It holds what `finish_batch` returns, and, with several sets, `set` (B,): the index of each sample's set.
    """
    batches = [one.finished(channels_last=channels_last).batch for one in groups]
    if len(batches) == 1:
        return batches[0]
    order = np.argsort(np.concatenate([group.places for group in groups]))
    return {name: _joined([batch[name] for batch in batches], order) for name in batches[0]}


def _joined(parts: list, order: np.ndarray) -> Tensor | np.ndarray:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)[order]
    return torch.cat(parts)[torch.from_numpy(order).to(parts[0].device)]  # both keep the layout of images
