"""Training crops: random draws per sample, copied from the stores as batches of their pixels.

Every draw is a hash of (seed, pass, sample id). There is no random state, so a sample's crop is the same on any rank,
thread or machine.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from accel_restore.data.augment import FLIPS
from accel_restore.data.batch_plan import Sample
from accel_restore.data.pixels import UNIT, Range
from accel_restore.data.store import Store, StoredPairs
from accel_restore.utils.rng import Draw, hashes, keys, uniform


class CropDataset(Dataset):
    """The samples of a set's pass; `__getitems__` returns a whole batch of crops, copied from the mapped images.

    A batch holds `gt` and, for paired sources, `input`, (B, H, W, C) as stored, `weight` (B,) and, with `augment`, its
    codes `flips` (B,). On the host, as numpy arrays, it holds `id`, `seeds` of the degradation, and the `range` of
    float pixels. With `scale` s the corner of a gt crop is at a multiple of s, and the input crop, s times smaller,
    covers the same area.

    If samples have partners (mixup), the partners' crops follow those of the batch. `partner` (B,) is the index of each
    sample's partner in the batch, and `share` (B,) is the share of the sample that is kept.
    """

    def __init__(
        self,
        pairs: StoredPairs,
        *,
        crops_per_image: int,
        augment: Sequence[str],
        seed: int,
        scale: int = 1,
        mixup_alpha: float = 1.0,
        range: Range = UNIT,
        readers: Executor | None = None,
    ):
        """`readers` copy the crops of a batch in parallel; without them the crops are copied one by one."""
        self.gt, self.input, self.readers = pairs.gt, pairs.input, readers
        self.images = np.asarray(pairs.indices, np.int64)  # in the stores
        self.crops_per_image, self.seed, self.scale, self.mixup_alpha = crops_per_image, seed, scale, mixup_alpha
        self.range = range  # of float pixels
        self.flip_bits = sum(FLIPS[name] for name in set(augment))
        self.first_id = 0  # of the set's samples; `TrainingSets` numbers the sets one after the other

    def __len__(self) -> int:
        return len(self.images) * self.crops_per_image

    def image_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the index of each sample's image in the set."""
        return (ids - self.first_id) // self.crops_per_image

    def __getitems__(self, samples: Sequence[Sample]) -> dict[str, Tensor | np.ndarray]:
        """Return the crops of samples that get their inputs in the same way: read, or made."""
        samples = list(samples)  # a MicroBatch makes its samples again on every access
        size, scale = samples[0].patch_size, self.scale
        weights = np.array([sample.weight for sample in samples])
        passes = np.array([sample.pass_ for sample in samples], np.int64)
        own = np.array([sample.id for sample in samples], np.int64)
        partners = np.array([sample.partner for sample in samples], np.int64)
        ids = np.concatenate([own, partners[partners >= 0]])
        passes = np.concatenate([passes, passes[partners >= 0]])

        def draw(purpose: int) -> np.ndarray:
            return hashes(ids, keys(self.seed, passes, purpose))

        images = self.images[self.image_of(ids)]
        room = (self.gt.sizes[images] - size) // scale + 1  # (B, 2): possible corners of a crop
        tops = (uniform(draw(Draw.TOP)) * room[:, 0]).astype(np.int64)  # in pixels of input
        lefts = (uniform(draw(Draw.LEFT)) * room[:, 1]).astype(np.int64)
        batch: dict[str, Tensor | np.ndarray] = {
            "gt": self._crops(self.gt, size, images, scale * tops, scale * lefts),
            "weight": torch.from_numpy(weights).to(torch.get_default_dtype()),
            "id": np.where(weights > 0, own, -1),
            "seeds": draw(Draw.DEGRADE),
            "range": np.array(self.range),
        }
        if self.flip_bits:
            batch["flips"] = torch.from_numpy(draw(Draw.FLIP).astype(np.int64) & self.flip_bits)
        if self.input is not None and not samples[0].is_synthetic:
            batch["input"] = self._crops(self.input, size // scale, images, tops, lefts)
        if len(ids) > len(own):
            batch |= self._shares(partners, draw(Draw.SHARE))
        return batch

    def _shares(self, partners: np.ndarray, hashes: np.ndarray) -> dict[str, Tensor]:
        """The index of each sample's partner in the batch (its own index without one), and the share that is kept."""
        is_mixed = partners >= 0
        places = np.arange(len(partners))
        places[is_mixed] = len(partners) + np.arange(is_mixed.sum())
        drawn = [
            np.random.default_rng(int(h)).beta(self.mixup_alpha, self.mixup_alpha) for h in hashes[: len(partners)]
        ]
        shares = torch.from_numpy(np.where(is_mixed, drawn, 1.0)).to(torch.get_default_dtype())
        return {"partner": torch.from_numpy(places), "share": shares}

    def _crops(self, store: Store, size: int, images: np.ndarray, tops: np.ndarray, lefts: np.ndarray) -> Tensor:
        crops = np.empty((len(images), size, size, store.channels), store.dtype)
        each = map if self.readers is None else self.readers.map
        deque(each(store.crop, crops, images.tolist(), tops.tolist(), lefts.tolist()), maxlen=0)
        return torch.from_numpy(crops)
