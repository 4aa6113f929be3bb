"""The inputs that validation makes of clean images, and the findings about how they are made."""

from typing import Any

import numpy as np
import torch

from accel_restore.config.data import Data
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.pairs import Pair
from accel_restore.data.pixels import is_float
from accel_restore.data.scan import ScannedData, sources_of
from accel_restore.data.val_dataset import seed_of
from accel_restore.data_check.findings import Finding
from accel_restore.data_check.survey import Part
from accel_restore.errors import PART_ERRORS, UserError
from accel_restore.metrics.psnr_ssim import psnr
from accel_restore.models.blocks import upscale
from accel_restore.utils.imports import describe_error

_MEASURED = 8  # images of a set


def make_input(pair: Pair, gt: np.ndarray, degrade: DegradationPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input that validation makes of gt, and gt, cropped to multiples of the scale.

    Shapes: (H, W, C); both (1, C, H, W).
    Raises: UserError with the image if the degradation fails.
    """
    height, width = (side - side % degrade.scale for side in gt.shape[:2])
    images = torch.from_numpy(gt[:height, :width]).permute(2, 0, 1)[None]
    try:
        return degrade(images, np.array([seed_of(pair.name)], np.uint64)), images
    except PART_ERRORS as error:  # the function may be the user's
        raise UserError(f"{degrade.key}: cannot work on {pair.gt}: {describe_error(error)}") from error


def measure_inputs(part: Part, degrade: DegradationPipeline) -> list[float]:
    """Return the PSNR in dB of the inputs made of up to 8 images, spread evenly; see `make_input`.

    It is empty if the inputs have another number of channels than gt.
    """
    found = []
    for place in range(0, len(part.pairs), -(-len(part.pairs) // _MEASURED)):
        input, gt = make_input(part.pairs[place], part.pixels(place)[1], degrade)
        if input.shape[1] == gt.shape[1]:
            enlarged = upscale(input, degrade.scale)
            floats = is_float(part.headers[place][1].dtype)  # which are not clamped
            found.append(float(psnr(enlarged if floats else enlarged.clamp(0, 1), gt)))
    return found


def find_one_sided(found: ScannedData, data: Data) -> list[Finding]:
    """Return a finding for each validation set whose inputs are made, or are files, unlike those of all training."""
    findings: list[Finding] = []
    if any(source.synthetic_share for source in data.train_sets.values()):  # it has both
        return findings
    places = _degradation_keys(data)
    for one in found.val.values():
        if any(trained.is_made is one.is_made for trained in found.train.values()):
            continue
        keys = next(iter(found.train.values())).key, one.key
        made, given = keys[::-1] if one.is_made else keys
        text = f"{places[made]} makes the inputs of {made}, but those of {given} are files; is this intended?"
        findings.append(Finding("unlike", text))
    return findings


def find_unscaled_noise(data: Data) -> list[Finding]:
    """Return a finding for each noise step, nested ones included, with a sigma that suits images in [0, 1]."""
    findings, places = [], _degradation_keys(data)
    for key, source in sources_of(data).items():
        findings += _unscaled([step.model_dump() for step in data.degradation_of(source)], places[key])
    return list(dict.fromkeys(findings))


def _degradation_keys(data: Data) -> dict[str, str]:
    """Return the key of the degradation of each set, by the set's key."""
    return {
        key: f"{key}.degradation" if source.degradation else "data.degradation"
        for key, source in sources_of(data).items()
    }


def _unscaled(steps: list[dict[str, Any]], key: str) -> list[Finding]:
    found = []
    for step in steps:
        if step["name"] in ("sequence", "random_order", "choice"):
            found += _unscaled(step["of"], key)
        elif step["name"] == "gaussian_noise" and 0 < np.max(step.get("sigma", 0)) <= 1:
            text = (
                f"{key}: gaussian_noise has sigma {step['sigma']}, in levels of 255; if you mean units of "
                "[0, 1], multiply it by 255"
            )
            found.append(Finding("faint", text))
    return found
