"""Pictures of images with any number of channels."""

import numpy as np


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Return the picture (H, W, 3), uint8, of an image (H, W, C) of floats in [0, 1]; values outside are clamped.

    Three or more channels: the first three are red, green and blue. One or two: the first is gray.
    """
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    return np.round(shown.clip(0, 1) * 255).astype(np.uint8)
