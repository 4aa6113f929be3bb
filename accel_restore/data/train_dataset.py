"""Random draws per sample, batches of uint8 crops, and their conversion on the training device.

Every draw is a hash of (seed, epoch, sample id): no random state, the same crop on any rank, thread or machine.
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
from accel_restore.data.store import Store
from accel_restore.utils.rng import Draw, hashes, key, uniform


class CropDataset(Dataset):
    """Samples of an epoch as batches of crops: `__getitems__` gives a whole batch, copied from the mapped images.

    The batch: `gt` and, of paired sources, `input` as uint8 or uint16 (B, H, W, C); `weight` (B,); and on the host, as
    numpy arrays, `id`, `flips` (codes) and `seeds` of the degradation. With `scale` s a crop of gt begins at a multiple
    of s and the crop of input, s times smaller, at the same place.

    Where samples have partners, the partners' crops follow those of the batch, as they are drawn for themselves, and
    `partner` (B,) is the place of each sample's, `share` (B,) how much of the sample is kept.
    """

    def __init__(
        self,
        gt: Store,
        input: Store | None,
        images: list[int],
        *,
        crops_per_image: int,
        augment: list[str],
        seed: int,
        scale: int = 1,
        mixup_alpha: float = 1.0,
        readers: Executor | None = None,
    ):
        """`readers` copy the crops of a batch in parallel; without them it is done in turn."""
        self.gt, self.input, self.readers = gt, input, readers
        self.images = np.asarray(images, np.int64)  # the stores' images that belong to this set
        self.crops_per_image, self.seed, self.scale, self.mixup_alpha = crops_per_image, seed, scale, mixup_alpha
        self.flip_bits = sum(FLIPS[name] for name in set(augment))

    def __len__(self) -> int:
        return len(self.images) * self.crops_per_image

    def __getitems__(self, samples: Sequence[Sample]) -> dict[str, Tensor | np.ndarray]:
        samples = list(samples)  # which are made anew each time that they are asked for
        epoch, size, scale = samples[0].epoch, samples[0].patch_size, self.scale
        weights = np.array([sample.weight for sample in samples])
        own = np.array([sample.id for sample in samples], np.int64)
        partners = np.array([sample.partner for sample in samples], np.int64)
        ids = np.concatenate([own, partners[partners >= 0]])

        def draw(purpose: int) -> np.ndarray:
            return hashes(ids, key(self.seed, epoch, purpose))

        images = self.images[ids // self.crops_per_image]
        room = (self.gt.sizes[images] - size) // scale + 1  # (B, 2): places for a crop's corner
        tops = (uniform(draw(Draw.TOP)) * room[:, 0]).astype(np.int64)  # in pixels of input
        lefts = (uniform(draw(Draw.LEFT)) * room[:, 1]).astype(np.int64)
        batch = {
            "gt": self._crops(self.gt, size, images, scale * tops, scale * lefts),
            "weight": torch.from_numpy(weights).to(torch.get_default_dtype()),
            "id": np.where(weights > 0, own, -1),
            "flips": draw(Draw.FLIP).astype(np.int64) & self.flip_bits,
            "seeds": draw(Draw.DEGRADE),
        }
        if self.input is not None:
            batch["input"] = self._crops(self.input, size // scale, images, tops, lefts)
        if len(ids) > len(own):
            batch |= self._shares(partners, draw(Draw.SHARE))
        return batch

    def _shares(self, partners: np.ndarray, hashes: np.ndarray) -> dict[str, Tensor]:
        """Where each sample's partner lies in the batch (its own place without one), and how much of it is kept."""
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
