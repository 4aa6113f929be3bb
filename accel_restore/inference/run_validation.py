"""A run's own validation, read from its folder: the images and how they are scored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_restore.config.data import MAX_PIXELS, Data
from accel_restore.config.load import load_run_config
from accel_restore.data.build import degradation_of, pairs_of
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.pairs import Pair, held_out
from accel_restore.errors import UserError, raise_problems
from accel_restore.inference.apply import PRECISIONS
from accel_restore.inference.evaluate import SETTINGS
from accel_restore.models import ImageSpec
from accel_restore.utils.files import read_object
from accel_restore.utils.glob import nfc

_SETTINGS = {"metrics", "weights", *SETTINGS}


@dataclass(frozen=True)
class ValidationSettings:
    """The images of an evaluation and how they are scored."""

    pairs: list[Pair]
    degrade: DegradationPipeline
    steps: list[dict[str, Any]]  # of the degradation, as in the configuration
    settings: dict[str, Any]  # of the protocol
    precision: str = "no"  # no | bf16 | fp16 | auto
    max_pixels: int = MAX_PIXELS
    notes: list[str] = field(default_factory=list)  # on what was left out of folders


def read_validation(folder: Path, images: ImageSpec) -> ValidationSettings:
    """Return the validation of the run in `folder`, for weights that map such images.

    Raises: UserError if the folder holds no run, its images are missing, or the weights do not match.
    """
    config, plan = load_run_config(folder), read_object(folder / "plan.json")
    data = config.data
    if data.image_spec != images:
        raise UserError(
            f"--run: {folder} has {data.image_spec.in_words}, but the weights have {images.in_words}; name the run "
            "that the weights come from"
        )
    try:
        pairs = _validation_pairs(data, _names(plan))
    except UserError as error:
        raise UserError(f"--run: {folder} (relative paths start where the run was started): {error}") from error
    is_made = pairs[0].input is None
    precision = plan.get("precision")  # plan.json of older runs has none
    return ValidationSettings(
        pairs,
        degradation_of(data),
        [step.model_dump() for step in data.degradation] if is_made else [],
        config.validation.model_dump(include=_SETTINGS),
        precision if precision in PRECISIONS else config.train.mixed_precision,
        data.max_image_pixels,
    )


def _validation_pairs(data: Data, names: list[str] | None) -> list[Pair]:
    """Return the pairs that a run with this data validates on, or the pairs in `names`, in their order.

    Raises: UserError if images are missing.
    """
    key = "data.train" if data.val is None else "data.val"
    source = next(iter((data.val_sets or data.train_sets).values()))
    if names is not None:
        data = data.model_copy(update={"max_images": None})  # new images may have changed the choice
    all_pairs, problems = pairs_of(source, key, data)
    if names is None:
        pairs = list(held_out(all_pairs, data.val_fraction)[1] if data.val is None and all_pairs else all_pairs)
    else:
        found = {pair.name: pair for pair in all_pairs}
        pairs = [found[name] for name in names if name in found]
        missing = [f"{key}: no longer has the image '{name}'" for name in names if name not in found]
        problems = [*problems, *missing] if missing else []
    raise_problems("the validation images cannot be found", problems)
    return pairs


def _names(plan: dict[str, Any]) -> list[str] | None:
    """Return the names of the validation images, None if the plan has none."""
    names = plan.get("validation_images")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return [nfc(name) for name in names]
