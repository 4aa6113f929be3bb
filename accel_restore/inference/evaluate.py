"""Score weights on pairs of files as validation does: the same protocol, the same input for an image, each once."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from accel_restore.config.schema import Validation
from accel_restore.data.cache import each_ahead
from accel_restore.data.decode import ImageError, ImageSource, read_header, read_image
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.pairs import Pair
from accel_restore.data.val_dataset import ValidationDataset
from accel_restore.errors import UserError
from accel_restore.inference.apply import PRECISIONS
from accel_restore.inference.restorer import Restorer
from accel_restore.metrics.protocol import METRICS, Protocol
from accel_restore.models.blocks import upscale
from accel_restore.utils.memory import is_out_of_memory

SETTINGS = ("crop_border", "y_channel", "quantize", "self_ensemble", "tile", "tile_overlap")
Row = dict[str, float]  # a score by its name; those of the input are called input_...


class Decoded:
    """A sequence of images that are decoded when they are asked for, as `Store` is one of decoded images."""

    def __init__(self, sources: list[ImageSource], channels: int, max_pixels: int):
        self.sources, self.channels, self.max_pixels = sources, channels, max_pixels

    def __getitem__(self, index: int) -> np.ndarray:
        source = self.sources[index]
        try:
            pixels = read_image(source, self.channels, read_header(source, self.max_pixels).bits, self.max_pixels)
        except ImageError as error:
            raise ImageError(f"{source}: {error}") from None
        return np.require(pixels, requirements=["C", "W"])  # what torch can take without a copy


def whole_images(
    pairs: list[Pair],
    channels: int,
    scale: int,
    degrade: DegradationPipeline,
    device: torch.device,
    seed: int | None,
    max_pixels: int,
) -> ValidationDataset:
    """The images of pairs as validation sees them; `seed`: with other draws of the degradation than validation's."""
    inputs = Decoded([pair.input for pair in pairs], channels, max_pixels) if pairs[0].input is not None else None
    gts = Decoded([pair.gt for pair in pairs], channels, max_pixels)
    names = [pair.name for pair in pairs]
    images = ValidationDataset(names, gts, inputs, list(range(len(pairs))), degrade, device, scale)
    if seed is not None:
        digests = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
        images.seeds = [int.from_bytes(digest[:8], "big") for digest in digests]
    return images


def protocol_of(
    restorer: Restorer, degradation: list[dict[str, Any]], given: dict[str, Any]
) -> tuple[Protocol, list[str]]:
    """The protocol that is stored beside weights, with what is `given` in its place; and notes about it.

    `degradation`: the steps that make the input, none where it is in files.

    Raises: UserError for settings that do not fit.
    """
    stored = restorer.metadata["metrics"].get("protocol")
    is_told = isinstance(stored, dict) or given.keys() >= set(SETTINGS)
    notes = [] if is_told else ["the weights hold no protocol; these are the defaults"]
    stored = stored if isinstance(stored, dict) else {}
    settings = {name: stored[name] for name in SETTINGS if name in stored}
    settings["metrics"] = [name for name in METRICS if name in stored] or ["psnr", "ssim"]
    weights = given.get("weights", {})
    for name in [name for name in ("lpips", "dists") if name in settings["metrics"] and name not in weights]:
        if "metrics" not in given:
            notes.append(f"{name} is left out: give --metric-weights {name}=FILE")
            settings["metrics"].remove(name)
    settings["metrics"] = settings["metrics"] or ["psnr", "ssim"]
    settings |= given
    try:
        checked = Validation.model_validate({**settings, "monitor": "loss"}).model_dump()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'protocol'}: {e['msg']}" for e in error.errors())
        raise UserError(f"the protocol, stored beside the weights and given, cannot be used: {wrong}") from None
    if checked["y_channel"] and restorer.channels == 1:
        raise UserError("--y-channel: needs weights for colours; gray images are luma already")
    kept = {name: checked[name] for name in (*SETTINGS, "weights")}
    return Protocol(restorer.channels, tuple(degradation), tuple(checked["metrics"]), **kept), notes


def find_misfits(pairs: list[Pair], scale: int, smallest_side: int, max_pixels: int) -> list[str]:
    """A sentence for each image that cannot be read, fits no partner, or is too small to be scored."""
    problems = []
    sources = [(pair.gt, pair.input) for pair in pairs]
    for (gt, input), sizes in zip(sources, each_ahead(partial(_sizes, max_pixels), sources), strict=True):
        if isinstance(sizes, ImageError):
            problems.append(str(sizes))
            continue
        (height, width), small = sizes
        if small is not None and (height, width) != (small[0] * scale, small[1] * scale):
            relation = f"gt must be {scale} times as large" if scale > 1 else "they must be equal"
            problems.append(
                f"{input}: is {small[1]}x{small[0]}, its gt {gt} is {width}x{height}; for these weights {relation}"
            )
        elif min(height - height % scale, width - width % scale) < smallest_side:
            problems.append(f"{gt}: is {width}x{height}, less than the {smallest_side} pixels that scores need")
    return problems


def _sizes(max_pixels: int, pair: tuple[ImageSource, ImageSource | None]) -> list[tuple[int, int] | None]:
    sizes: list[tuple[int, int] | None] = []
    for source in pair:
        try:
            header = read_header(source, max_pixels) if source is not None else None
        except ImageError as error:
            raise ImageError(f"{source}: {error}") from None
        sizes.append(header and (header.height, header.width))
    return sizes


@dataclass(frozen=True)
class Scorer:
    """Scores images by a protocol, restored by one or two networks."""

    restorers: list[Restorer]
    images: ValidationDataset
    protocol: Protocol
    precision: str = "no"

    def score(
        self, indices: Iterable[int], track: Callable[[Iterable], Iterable]
    ) -> tuple[list[tuple[int, Row]], list[str]]:
        """The index and scores of each image, and a sentence for each that is damaged.

        Of two networks, the second's scores are called ..._2, and what it has more ..._difference.
        """
        rows, problems = [], []
        indices = list(indices)
        for index, image in zip(indices, track(each_ahead(self.images.__getitem__, indices, 2)), strict=True):
            if isinstance(image, ImageError):
                problems.append(str(image))
            else:
                rows.append((index, self._row(image)))
        return rows, problems

    def outputs(self, image: dict[str, Tensor]) -> list[Tensor]:
        """What each network makes of an image, as validation computes it."""
        return [self._output(restorer, image) for restorer in self.restorers]

    @torch.no_grad()
    def _output(self, restorer: Restorer, image: dict[str, Tensor]) -> Tensor:
        dtype = PRECISIONS[self.precision]
        try:
            with torch.autocast(restorer.device.type, dtype, enabled=dtype != torch.float32):
                output = self.protocol.output(restorer.model, image["input"], restorer.scale)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError("an image does not fit into memory; give --tile, such as --tile 512") from error
        return output.to(image["gt"].dtype)

    @torch.no_grad()
    def _row(self, image: dict[str, Tensor]) -> Row:
        gt, before = image["gt"], upscale(image["input"], self.images.scale)
        row = {f"input_{name}": float(metric(before, gt)) for name, metric in self.protocol.scores.items()}
        first, *second = (
            {name: float(metric(output, gt)) for name, metric in self.protocol.scores.items()}
            for output in self.outputs(image)
        )
        row |= first
        for scores in second:
            row |= {f"{name}_2": value for name, value in scores.items()}
            row |= {f"{name}_difference": value - first[name] for name, value in scores.items()}
        return row


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
