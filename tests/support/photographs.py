"""Photographs of scikit-image. Its own reader would import SciPy, which takes a second."""

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(name: str) -> np.ndarray:
    """Return a new uint8 array of a photograph, (H, W, 3), or (H, W) if it is gray."""
    return _decode(name).copy()


@functools.cache
def _decode(name: str) -> np.ndarray:
    (file,) = (Path(find_spec("skimage").origin).parent / "data").glob(f"{name}.*")
    return np.asarray(Image.open(file))
