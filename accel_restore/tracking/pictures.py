"""Pictures of validation images and previews, next to each other."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from accel_restore.data.val_dataset import ValidationSets
from accel_restore.metrics.format import titled_score
from accel_restore.metrics.psnr_ssim import PSNR, psnr
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.tracking.report.pictures import describe_tiles
from accel_restore.utils.captions import caption_width, draw_caption
from accel_restore.utils.redaction import redacted
from accel_restore.utils.visible import to_rgb

_MAX_SIDE = 400  # pixels of a tile
_CAPTION_HEIGHT, _CAPTION_LEFT, _GAP = 22, 2, 4  # pixels

Tile = tuple[str, np.ndarray]  # caption, pixels (H, W, 3) uint8


class Samples:
    """Collects some validation images that this rank sees: the centre of input, output and gt.

    They stay on their device until `tiles` are made, so a GPU never waits for them.
    """

    def __init__(self, count: int, images: ValidationSets, protocols: SetProtocols):
        """The first images of each set are collected, `count` in all."""
        chosen = sorted(sorted(range(len(images)), key=lambda index: images.places[index][1])[:count])
        self.names = {index: redacted(images.names[index]) for index in chosen}
        self.protocols = {index: protocols.sets[images.set_of[index]] for index in chosen}
        self.kept: dict[int, tuple[list[Tensor], list[Tensor]]] = {}  # centres, PSNR of output and, if scored, input

    def add(self, index: int, input: Tensor, output: Tensor, gt: Tensor) -> None:
        """Keep a validation image if it is one of the chosen.

        Shapes: (1, C, H, W) in [0, 1].
        """
        if index not in self.names:
            return
        protocol = self.protocols[index]
        scored = (output, input) if protocol.scores_input else (output,)
        scores = [protocol.score(PSNR, psnr, image, gt) for image in scored]
        self.kept[index] = [_centre(image).clone() for image in (input, output, gt)], scores

    def tiles(self) -> dict[int, list[Tile]]:
        """Return the rows of captioned tiles by the indices of their images."""
        return {index: self._row(self.names[index], *kept) for index, kept in self.kept.items()}

    def _row(self, name: str, centres: list[Tensor], scores: list[Tensor]) -> list[Tile]:
        after, before = [*(titled_score("psnr", float(score)) for score in scores), ""][:2]
        captions = f"{name}: input {before}".rstrip(), f"output {after}", "gt"
        return [(caption, _pixels(centre)) for caption, centre in zip(captions, centres, strict=True)]


def preview_row(name: str, input: Tensor, output: Tensor) -> list[Tile]:
    """Return the row of an image without gt: the centre of input and output, each (1, C, H, W) of one size."""
    return [(f"{redacted(name)}: input", _pixels(_centre(input))), ("output", _pixels(_centre(output)))]


def _centre(image: Tensor) -> Tensor:
    """Return the centre (C, h, w) of an image (1, C, H, W)."""
    height, width = image.shape[-2:]
    top, left = max(0, height - _MAX_SIDE) // 2, max(0, width - _MAX_SIDE) // 2
    return image[0, :, top : top + _MAX_SIDE, left : left + _MAX_SIDE]


def _pixels(image: Tensor) -> np.ndarray:
    return to_rgb(image.float().cpu().permute(1, 2, 0).numpy())


def worst_part(images: list[Tensor], output: Tensor, gt: Tensor) -> list[np.ndarray]:
    """Return a tile of each image: the window with the largest squared error between output and gt, as they are shown.

    Shapes: (1, C, H, W), all images of the same size; the input may have other channels.
    """
    height, width = (min(_MAX_SIDE, side) for side in gt.shape[-2:])
    errors = (output.clamp(0, 1) - gt.clamp(0, 1)).double().square().sum((0, 1)).cpu().cumsum(0).cumsum(1)
    sums = functional.pad(errors, (1, 0, 1, 0))  # integral image
    sums = sums[height:] - sums[:-height]
    sums = sums[:, width:] - sums[:, :-width]  # of each window
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return [_pixels(_centre(image[..., top : top + height, left : left + width])) for image in images]


def draw_samples(path: Path, rows: list[list[Tile]]) -> None:
    """Write a picture with one row of captioned tiles per image. A small tile leaves room for its caption."""
    widths = [[_width(*tile) for tile in row] for row in rows]
    height = sum(row[0][1].shape[0] + _CAPTION_HEIGHT for row in rows)
    width = max(sum(row) + _GAP * len(row) for row in widths)
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    top = 0
    boxes: list[list[dict[str, Any]]] = []
    for row, row_widths in zip(rows, widths, strict=True):
        left = 0
        boxes.append([])
        for (caption, pixels), tile_width in zip(row, row_widths, strict=True):
            box = (left, top + _CAPTION_HEIGHT, left + pixels.shape[1], top + _CAPTION_HEIGHT + pixels.shape[0])
            boxes[-1].append({"caption": caption, "box": box})
            draw_caption(pen, (left + _CAPTION_LEFT, top + 2), caption, tile_width)
            canvas.paste(Image.fromarray(pixels), box)
            left += tile_width + _GAP
        top += row[0][1].shape[0] + _CAPTION_HEIGHT
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, pnginfo=describe_tiles(boxes))


def _width(caption: str, pixels: np.ndarray) -> int:
    """Return the width of a tile with its caption; a caption alone widens it to at most the side of a large tile."""
    return max(pixels.shape[1], min(_CAPTION_LEFT + caption_width(caption), _MAX_SIDE))
