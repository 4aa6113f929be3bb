"""A run's own validation, read from its folder: the images of each set and how they are scored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_restore.config.data import MAX_PIXELS, Data
from accel_restore.config.load import load_run_config
from accel_restore.config.sets import Source, key_of
from accel_restore.data.build import degradations_of
from accel_restore.data.degradations.pipeline import DegradationPipeline
from accel_restore.data.pairs import Pair, held_out
from accel_restore.data.scan import pairs_of
from accel_restore.errors import UserError, raise_problems
from accel_restore.inference.apply import PRECISIONS
from accel_restore.inference.evaluate import SETTINGS
from accel_restore.metrics.protocol import OF_SETS, Protocol
from accel_restore.models import ImageSpec
from accel_restore.utils.files import read_object
from accel_restore.utils.glob import nfc

_SETTINGS = {"metrics", "weights", *SETTINGS}


@dataclass(frozen=True)
class ValidationSettings:
    """The images of a set and how they are scored."""

    pairs: list[Pair]
    degrade: DegradationPipeline
    steps: list[dict[str, Any]]  # of the degradation, as in the configuration
    settings: dict[str, Any]  # of the protocol
    precision: str = "no"  # no | bf16 | fp16 | auto
    max_pixels: int = MAX_PIXELS
    notes: list[str] = field(default_factory=list)  # on what was left out of folders
    made_by: str = "data.degradation"  # the key of the degradation


def read_validation(folder: Path, images: ImageSpec) -> dict[str, ValidationSettings]:
    """Return the validation sets of the run in `folder` by name, for weights that map such images.

    Raises: UserError if the folder holds no run, its images are missing, or the weights do not match.
    """
    config, plan = load_run_config(folder), read_object(folder / "plan.json")
    data = config.data
    if data.image_spec != images:
        raise UserError(
            f"--run: {folder} has {data.image_spec.in_words}, but the weights have {images.in_words}; name the run "
            "that the weights come from"
        )
    section = "data.train" if data.val is None else "data.val"
    sources = {key_of(section, name): source for name, source in data.validated.items()}
    try:
        pairs = [
            _validation_pairs(data, key, source, _names(plan, name))
            for (key, source), name in zip(sources.items(), data.validated, strict=True)
        ]
    except UserError as error:
        raise UserError(f"--run: {folder} (relative paths start where the run was started): {error}") from error
    precision = plan.get("precision")  # plan.json of older runs has none
    whole = config.validation.model_dump(include=_SETTINGS)
    protocols = Protocol.of_sets(config).items()
    return {
        name: ValidationSettings(
            found,
            degradation,
            list(protocol.degradation),
            {**whole, **{key: getattr(protocol, key) for key in OF_SETS}},
            precision if precision in PRECISIONS else config.train.mixed_precision,
            data.max_image_pixels,
            made_by=protocol.made_by,
        )
        for found, degradation, (name, protocol) in zip(
            pairs, degradations_of(data, sources).values(), protocols, strict=True
        )
    }


def _validation_pairs(data: Data, key: str, source: Source, names: list[str] | None) -> list[Pair]:
    """Return the pairs of a set that a run with this data validates on, or the pairs in `names`, in their order.

    Raises: UserError if images are missing.
    """
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


def _names(plan: dict[str, Any], set_name: str) -> list[str] | None:
    """Return the names of the validation images of a set, None if the plan has none."""
    found: Any = plan
    for key in ("validation_sets", set_name, "images") if set_name else ("validation_images",):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        return None
    return [nfc(name) for name in found]
