"""Crops of photographs, and what may happen to them, for tests of the data check."""

import io

import numpy as np
import scipy
from photographs import photograph
from PIL import Image

SIDE = 144


MARGIN = 16  # around each crop, so that shifted crops show the same scene


def _photos() -> list[np.ndarray]:
    """12 crops of photographs, SIDE + 2 MARGIN pixels wide, without overlap."""
    sources = [photograph("astronaut"), photograph("coffee"), photograph("chelsea"), photograph("rocket")]
    places = [[(0, 150), (170, 10), (330, 300)], [(30, 100), (200, 300), (20, 400)], [(10, 20), (110, 230)]]
    places += [[(0, 230), (240, 40), (230, 440)]]
    width = SIDE + 2 * MARGIN
    cuts = [
        photo[top : top + width, left : left + width]
        for photo, corners in zip(sources, places, strict=True)
        for top, left in corners
    ]
    cuts.append(photograph("camera")[60 : 60 + width, 150 : 150 + width, None] * np.array([1.0, 0.9, 0.8]))  # tinted
    return [np.ascontiguousarray(cut, np.float32) / 255 for cut in cuts]


PHOTOS = _photos()


NAMES = [f"{number:02d}.png" for number in range(len(PHOTOS))]


GTS, INPUTS = [f"gt/{name}" for name in NAMES], [f"input/{name}" for name in NAMES]


def rounded(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.float32) / 255


def noisy(image: np.ndarray, sigma: float = 25) -> np.ndarray:
    random = np.random.default_rng(int(1e6 * image.mean()))
    return rounded(image + random.normal(0, sigma / 255, image.shape))


def blurred(image: np.ndarray) -> np.ndarray:
    return rounded(scipy.ndimage.gaussian_filter(image, (1.6, 1.6, 0)))


def jpeg(image: np.ndarray, quality: int = 10) -> np.ndarray:
    memory = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(memory, "JPEG", quality=quality)
    return np.asarray(Image.open(memory), np.float32) / 255


def resized(image: np.ndarray, height: int, width: int, how=Image.Resampling.BICUBIC) -> np.ndarray:
    pixels = Image.fromarray((image * 255).round().astype(np.uint8)).resize((width, height), how)
    return np.asarray(pixels, np.float32) / 255


def cut(image: np.ndarray, down: int = 0, right: int = 0) -> np.ndarray:
    """The centre of a photo, its content shifted down and right."""
    top, left = MARGIN - down, MARGIN - right
    return np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])
