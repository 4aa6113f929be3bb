"""Images, seeds and a shorthand for tests of degradations."""

import numpy as np
import torch
from photographs import photograph
from torch import Tensor

from accel_restore.data.degradations import ops as effects
from accel_restore.data.degradations.pipeline import KeyedRandom

SEEDS = np.arange(40, 44).astype(np.uint64)
ASTRONAUT = torch.from_numpy(photograph("astronaut")[40:100, 150:222]).permute(2, 0, 1) / 255  # (3, 60, 72)


def apply(name: str, image: Tensor, seed: int = 0, **arguments) -> Tensor:
    return getattr(effects, name)(image, KeyedRandom(seed), **arguments)
