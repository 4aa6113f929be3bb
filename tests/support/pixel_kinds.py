"""Folders of images with other pixels than those of photographs, made from photographs."""

from pathlib import Path

import numpy as np
import tifffile
from photographs import photograph

CFA, BAYER = 32803, bytes([0, 1, 1, 2])  # photometric interpretation of raw files; RGGB


def crops(count: int, side: int = 32, seed: int = 0) -> list[np.ndarray]:
    """Crops (side, side, 3) of photographs, floats in [0, 1]."""
    random, photo = np.random.default_rng(seed), photograph("coffee") / 255
    corners = random.integers(0, min(photo.shape[:2]) - side, (count, 2))
    return [photo[top : top + side, left : left + side].astype(np.float32) for top, left in corners]


def cubes(folder: Path, count: int, channels: int = 31, seed: int = 0, dtype: str = "float16") -> Path:
    """Images of many channels: smooth spectra whose red, green and blue parts are those of a photograph."""
    folder.mkdir(parents=True)
    places = np.linspace(0, 1, channels, dtype=np.float32)
    bands = np.stack([np.exp(-(((places - centre) / 0.2) ** 2)) for centre in (0.85, 0.5, 0.15)])
    for number, crop in enumerate(crops(count, seed=seed)):
        np.save(folder / f"{number}.npy", (crop @ bands / bands.sum(0).max()).astype(dtype))
    return folder


def floats(folder: Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """Pairs of noisy and clean float TIFFs; the clean values are from -0.3 to 2.2."""
    random, input, gt = np.random.default_rng(seed), folder / "input", folder / "gt"
    for one in (input, gt):
        one.mkdir(parents=True)
    for number, crop in enumerate(crops(count, seed=seed)):
        clean = (crop - crop.min()) / np.ptp(crop) * 2.5 - 0.3
        tifffile.imwrite(gt / f"{number}.tif", clean.astype(np.float32), photometric="rgb")
        noisy = clean + random.normal(0, 0.2, clean.shape)
        tifffile.imwrite(input / f"{number}.tif", noisy.astype(np.float32), photometric="rgb")
    return input, gt


def write_dng(path: Path, mosaic: np.ndarray, orientation: int = 1, pattern: bytes = BAYER) -> Path:
    """Write a raw file of a Bayer mosaic (H, W), uint16; black is 512, white 16383."""
    ones = (10000, 10000, 0, 1, 0, 1, 0, 1, 10000, 10000, 0, 1, 0, 1, 0, 1, 10000, 10000)
    tags = [
        (33421, "H", 2, (2, 2)), (33422, "B", 4, pattern), (50706, "B", 4, bytes([1, 4, 0, 0])), (271, "s", 0, "made"),
        (272, "s", 0, "from photographs"), (50708, "s", 0, "made from photographs"), (274, "H", 1, orientation),
        (50714, "H", 1, 512), (50717, "H", 1, 16383), (50721, "2i", 9, ones),
    ]  # fmt: skip
    tifffile.imwrite(path, mosaic, photometric=CFA, metadata=None, extratags=[(*tag, False) for tag in tags])
    return path


def raws(folder: Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """Pairs of raw files and 16-bit RGB TIFFs of the same size."""
    raw, gt = folder / "raw", folder / "gt"
    for one in (raw, gt):
        one.mkdir(parents=True)
    for number, crop in enumerate(crops(count, seed=seed)):
        tifffile.imwrite(gt / f"{number}.tif", (crop * 65535).round().astype(np.uint16), photometric="rgb")
        mosaic = np.empty(crop.shape[:2], np.float32)
        for top, left, colour in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
            mosaic[top::2, left::2] = crop[top::2, left::2, colour]
        write_dng(raw / f"{number}.dng", (mosaic * (16383 - 512) + 512).round().astype(np.uint16))
    return raw, gt
