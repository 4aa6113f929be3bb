"""A run's own validation, from the files in its folder: which images it is scored on, and how."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_restore.config.data import MAX_PIXELS, Data
from accel_restore.config.load import load_run_config
from accel_restore.data.build import degradation_of, pairs_of
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.pairs import Pair, held_out
from accel_restore.errors import UserError, raise_problems
from accel_restore.inference.evaluate import SETTINGS
from accel_restore.tracking.run_files import read_object

_SETTINGS = {"metrics", "weights", *SETTINGS}


@dataclass(frozen=True)
class ValidationSettings:
    """Images, and how they are scored."""

    pairs: list[Pair]
    degrade: DegradationPipeline
    steps: list[dict[str, Any]]  # of the degradation, as the configuration names them
    settings: dict[str, Any]  # of the protocol
    precision: str = "no"
    max_pixels: int = MAX_PIXELS


def read_validation(folder: Path, channels: int, scale: int) -> ValidationSettings:
    """The validation of the run in `folder`, for weights of so many channels and of this scale.

    Raises: UserError where the folder holds no run, its images are not what they were, or the weights do not fit.
    """
    config, plan = load_run_config(folder), read_object(folder / "plan.json")
    data = config.data
    if (data.channels, data.scale) != (channels, scale):
        raise UserError(
            f"--run: {folder} is of {data.channels} channels at scale {data.scale}, the weights are of {channels} at "
            f"scale {scale}; name the run that they are from"
        )
    try:
        pairs = _validation_pairs(data, _names(plan))
    except UserError as error:
        raise UserError(f"--run: {folder}, whose paths begin where it was started: {error}") from error
    is_made = pairs[0].input is None
    return ValidationSettings(
        pairs,
        degradation_of(data),
        [step.model_dump() for step in data.degradation] if is_made else [],
        config.validation.model_dump(include=_SETTINGS),
        _precision(plan) or config.train.mixed_precision,
        data.max_image_pixels,
    )


def _validation_pairs(data: Data, names: list[str] | None) -> list[Pair]:
    """The pairs that a run of this data validates on, or those of `names`, in their order; no image is decoded.

    Raises: UserError where they cannot be found.
    """
    key = "data.train" if data.val is None else "data.val"
    if names is not None:
        data = data.model_copy(update={"max_images": None})  # others may have come
    pairs, problems = pairs_of(data.val or data.train, key, data)
    if names is None:
        pairs = held_out(pairs, data.val_fraction)[1] if data.val is None and pairs else pairs
    else:
        found = {pair.name: pair for pair in pairs}
        pairs = [found[name] for name in names if name in found]
        missing = [f"{key}: has no image '{name}' any more" for name in names if name not in found]
        problems = [*problems, *missing] if missing else []
    raise_problems("the validation images cannot be found", problems)
    return pairs


def _precision(plan: dict[str, Any]) -> str | None:
    """What the run has computed in, where `auto` chose it too."""
    rows = plan.get("plan")
    said = [row for row in rows if isinstance(row, list) and row[:1] == ["precision"]] if isinstance(rows, list) else []
    found = str(said[0][-1]).partition(" ")[0] if said else None
    return found if found in ("no", "bf16", "fp16") else None


def _names(plan: dict[str, Any]) -> list[str] | None:
    """The names of the validation images, None where the plan holds none: they follow from the configuration, too."""
    names = plan.get("validation_images")
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None
