"""Score weights on pairs of files as validation does: the same protocol and the same input for each image."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from accel_restore.config.validation import Validation
from accel_restore.data.decode import ImageSource, read_header, read_image
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.image_formats import Header, ImageError
from accel_restore.data.pairs import Pair
from accel_restore.data.parallel import each_ahead
from accel_restore.data.pixels import UNIT, Range, is_float
from accel_restore.data.store_file import digest_of
from accel_restore.data.val_dataset import ValidationDataset, can_crop_gt
from accel_restore.errors import UserError
from accel_restore.inference.apply import PRECISIONS, NonFiniteError, finite
from accel_restore.inference.restorer import Restorer
from accel_restore.metrics.format import metrics_of
from accel_restore.metrics.protocol import Protocol
from accel_restore.models import ImageSpec
from accel_restore.models.blocks import upscale
from accel_restore.registry import METRICS
from accel_restore.utils.memory import is_out_of_memory

SETTINGS = ("crop_border", "y_channel", "quantize", "crop_gt", "self_ensemble", "tile", "tile_overlap")
Row = dict[str, float]  # scores by name; scores of the input start with input_


class Decoded:
    """A sequence of images that are decoded when they are accessed; `Store` holds decoded ones.

    `digests` holds those of the pixels of the images that have been accessed, by index.
    """

    def __init__(self, sources: list[ImageSource], channels: int, max_pixels: int):
        self.sources, self.channels, self.max_pixels = sources, channels, max_pixels
        self.digests: dict[int, str] = {}

    def __getitem__(self, index: int) -> np.ndarray:
        source = self.sources[index]
        try:
            pixels = read_image(source, self.channels, max_pixels=self.max_pixels)
        except ImageError as error:
            raise ImageError(f"{source}: {error}") from None
        self.digests[index] = digest_of(pixels)
        return np.require(pixels, requirements=["C", "W"])  # torch takes these without a copy


def whole_images(
    pairs: list[Pair],
    spec: ImageSpec,
    degrade: DegradationPipeline,
    device: torch.device,
    seed: int | None,
    max_pixels: int,
    float_range: Range = UNIT,
) -> ValidationDataset:
    """Return the images of pairs as validation sees them; `seed` gives other draws of the degradation."""
    sources = [pair.input for pair in pairs if pair.input is not None]
    inputs = Decoded(sources, spec.input_channels, max_pixels) if sources else None
    gts = Decoded([pair.gt for pair in pairs], spec.channels, max_pixels)
    names = [pair.name for pair in pairs]
    # Of a Store, only `batches` needs more than the items, and scores are taken of one image at a time.
    places = list(range(len(pairs)))
    images = ValidationDataset(names, gts, inputs, places, degrade, device, spec.scale, float_range)
    if seed is not None:
        digests = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
        images.seeds = [int.from_bytes(digest[:8], "big") for digest in digests]
    return images


def protocol_of(
    restorer: Restorer, degradation: list[dict[str, Any]], given: dict[str, Any]
) -> tuple[Protocol, list[str]]:
    """Return the protocol stored with the weights, overridden by `given`, and notes about it.

    `degradation`: the steps that make the input; empty if the input is in files.

    Raises: UserError for invalid settings.
    """
    stored = restorer.metadata["metrics"].get("protocol")
    is_known = isinstance(stored, dict) or given.keys() >= set(SETTINGS)
    notes = [] if is_known else ["the weights hold no protocol; the defaults are used"]
    stored = stored if isinstance(stored, dict) else {}
    settings = {name: stored[name] for name in SETTINGS if name in stored}
    settings["metrics"] = [name for name in METRICS if name in stored] or ["psnr", "ssim"]
    weights = given.get("weights", {})
    for name in [name for name in ("lpips", "dists") if name in settings["metrics"] and name not in weights]:
        if "metrics" not in given:
            notes.append(f"{name} is not measured; give --metric-weights {name}=FILE")
            settings["metrics"].remove(name)
    settings["metrics"] = settings["metrics"] or ["psnr", "ssim"]
    own = [name for name in metrics_of(restorer.metadata["metrics"]) if name not in METRICS]
    if own and "metrics" not in given:
        paths = (name if ":" in name else "package.module:Name" for name in own)
        notes.append(
            f"{', '.join(own)}: not measured, as weights may not choose which code outside accel_restore runs; to "
            f"measure it, give --metrics {','.join((*settings['metrics'], *paths))}"
        )
    settings |= given
    try:
        checked = Validation.model_validate({**settings, "monitor": "loss"})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'protocol'}: {e['msg']}" for e in error.errors())
        raise UserError(f"the protocol (stored with the weights, changed by options) is invalid: {wrong}") from None
    if checked.y_channel and restorer.channels != 3:
        raise UserError("--y-channel: needs weights for colour images; gray images are luma already")
    return Protocol.from_settings(checked, restorer.images, tuple(degradation)), notes


def find_misfits(
    pairs: list[Pair], scale: int, smallest_side: int, max_pixels: int, crop_gt: bool = False
) -> list[str]:
    """Return a message for each image that cannot be read, does not match its partner, or is too small to score."""
    problems = []
    sources = [(pair.gt, pair.input) for pair in pairs]
    of_kind: dict[bool, ImageSource] = {}  # a gt of floats, and one of integers
    for (gt, input), headers in zip(sources, each_ahead(partial(_headers, max_pixels), sources), strict=True):
        if isinstance(headers, ImageError):
            problems.append(str(headers))
            continue
        of_kind.setdefault(is_float(headers[0].dtype), gt)
        (height, width), small = (head and (head.height, head.width) for head in headers)
        can_crop = small is not None and can_crop_gt((height, width), small, scale)
        fits = small is None or (can_crop and (crop_gt or (height, width) == (small[0] * scale, small[1] * scale)))
        if small is not None and not fits:
            relation = f"gt must be {scale} times as large" if scale > 1 else "they must be of equal size"
            problems.append(
                f"{input}: is {small[1]}x{small[0]}, its gt {gt} is {width}x{height}; for these weights {relation}"
                + ("; to crop gt at the bottom and right, give --crop-gt" if can_crop else "")
            )
        elif min(height - height % scale, width - width % scale) < smallest_side:
            problems.append(f"{gt}: is {width}x{height}; scores need at least {smallest_side} pixels a side")
    if len(of_kind) > 1:
        problems.append(f"{of_kind[True]}: has float pixels, but {of_kind[False]} has integers; score them apart")
    return problems


def _headers(max_pixels: int, pair: tuple[ImageSource, ImageSource | None]) -> list[Header | None]:
    return [None if source is None else _header(source, max_pixels) for source in pair]


def _header(source: ImageSource, max_pixels: int) -> Header:
    try:
        return read_header(source, max_pixels)
    except ImageError as error:
        raise ImageError(f"{source}: {error}") from None


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
        """Return (index, scores) of each image, and a message for each that is damaged or whose output is not finite.

        Scores of a second network end in _2, its differences from the first in _difference.
        """
        rows, problems = [], []
        indices = list(indices)
        for index, image in zip(indices, track(each_ahead(self.images.__getitem__, indices, 2)), strict=True):
            if isinstance(image, ImageError):
                problems.append(str(image))
                continue
            try:
                rows.append((index, self._row(image)))
            except (NonFiniteError, ImageError) as error:
                source = cast(Decoded, self.images.input or self.images.gt).sources[index]
                problems.append(f"{source}: {error}")
        return rows, problems

    def digests(self, index: int) -> tuple[str, str | None]:
        """Return the digests of the pixels of a scored image: gt, and input if it is in a file."""
        gt, input = cast(Decoded, self.images.gt), cast(Decoded | None, self.images.input)
        return gt.digests[index], None if input is None else input.digests[index]

    def outputs(self, image: dict[str, Tensor]) -> list[Tensor]:
        """Return the output of each network for an image, as validation computes it."""
        return [self._output(number, image) for number in range(len(self.restorers))]

    @torch.no_grad()
    def _output(self, number: int, image: dict[str, Tensor]) -> Tensor:
        restorer, dtype = self.restorers[number], PRECISIONS[self.precision]
        try:
            with torch.autocast(restorer.device.type, dtype, enabled=dtype != torch.float32):
                output = self.protocol.output(restorer.model, image["input"], restorer.scale)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError("an image does not fit in memory; give --tile, such as --tile 512") from error
        try:
            return finite(output, self.precision).to(image["gt"].dtype)
        except NonFiniteError as error:
            raise NonFiniteError(f"weights {number + 1}: {error}" if len(self.restorers) > 1 else str(error)) from None

    @torch.no_grad()
    def _row(self, image: dict[str, Tensor]) -> Row:
        try:
            self.restorers[0].check_values(image["input"], UNIT)
        except ValueError as error:
            raise ImageError(str(error)) from None
        gt, before = image["gt"], upscale(image["input"], self.images.scale)
        compared = self.protocol.scores if self.protocol.scores_input else {}
        row = {f"input_{name}": float(metric(before, gt)) for name, metric in compared.items()}
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
    """Return the sha256 of a file's content, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
