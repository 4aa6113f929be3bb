"""The configuration's `data` section: sources of images, degradations, crops. Imports nothing heavy."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from accel_restore.config.base import OpenSection, PositiveInt, Section, one_of
from accel_restore.registry import DEGRADATIONS

MAX_PIXELS = 89_478_485  # Pillow's own limit of what it calls a possible decompression bomb


def _check_home(path: str) -> str:
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise PydanticCustomError(
            "home", "{path} begins in a home folder that is not known here; write the folder out", {"path": path}
        ) from None
    return path


PathText = Annotated[str, AfterValidator(_check_home)]
Paths = Annotated[PathText, Field(min_length=1)] | Annotated[list[PathText], Field(min_length=1)]
_GIVEN_IN_PYTHON = "<Dataset of "  # begins what stands in config.yaml for a data set object


def _check_dataset(value: Any) -> Any:
    """A name or a `datasets.Dataset`. Who holds one has imported that library, so it need not be imported here."""
    library, kind = sys.modules.get("datasets"), type(value).__name__
    if value is None or (library is not None and isinstance(value, library.Dataset)):
        return value
    if isinstance(value, str) and value.startswith(_GIVEN_IN_PYTHON):
        message = f"{value} was an object given in Python; give it there again, or name a folder made by save_to_disk"
    elif isinstance(value, str) and value:
        return _check_home(value)
    elif isinstance(value, dict):
        message = (
            f"must be one dataset; of a DatasetDict choose a split, such as dataset[{next(iter(value), 'train')!r}]"
        )
    elif kind.startswith("Iterable"):
        message = f"must give its rows in any order, which an {kind} does not; load it without streaming"
    else:
        message = f"must be the name of a data set, or in Python a datasets.Dataset, not {value!r:.60}"
    raise PydanticCustomError("dataset", "{message}", {"message": message})


def _dataset_in_words(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return f"{_GIVEN_IN_PYTHON}{len(value)} rows, fingerprint {value._fingerprint}>"


DatasetOrName = Annotated[
    Any,
    AfterValidator(_check_dataset),
    PlainSerializer(_dataset_in_words, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}),
]


class Source(Section):
    """Images on disk, or rows of a data set. `package:skimage/data/x.png` lies inside an installed Python package."""

    input: Paths | None = Field(None, description="degraded images, given as gt is; equal names make a pair")
    gt: Paths | None = Field(
        None,
        description="clean images: a folder, a pattern with {}, or a list of those or of files; a dataset's column",
    )
    dataset: DatasetOrName = Field(
        None, description="for Hugging Face `datasets`: a file, a folder or a Hub id; in Python an object too"
    )
    split: str | None = Field(None, description="of the dataset; null: train")
    subset: str | None = Field(None, description="of a dataset that has several configurations: one's name")
    root: PathText | None = Field(
        None, description="where paths in a dataset's rows begin and must lie; null: the folder of the dataset"
    )
    recursive: bool = Field(False, description="take the images of sub-folders too")

    @model_validator(mode="after")
    def _complete(self) -> "Source":
        problems = self._wrong_for_files() if self.dataset is None else self._wrong_for_dataset()
        if problems:
            raise PydanticCustomError("source", "{text}", {"text": "\n".join(problems)})
        return self

    def _wrong_for_files(self) -> list[str]:
        """Problems, each beginning with what follows the section's own key."""
        problems = [f".{key}: needs a dataset; remove it" for key in ("split", "subset", "root") if getattr(self, key)]
        if self.gt is None:
            problems.append(": 'gt' is missing: name the folder or pattern of the clean images, or a dataset")
        places = [
            place for side in (self.gt, self.input) for place in ([side] if isinstance(side, str) else side or [])
        ]
        if self.recursive and places and all("{}" in place for place in places):
            problems.append(".recursive: is for folders; in a pattern, write **/ for folders of any depth")
        return problems

    def _wrong_for_dataset(self) -> list[str]:
        problems = [
            f".{key}: must be the name of one column of the dataset, not a list"
            for key in ("input", "gt")
            if isinstance(getattr(self, key), list)
        ]
        if self.recursive:
            problems.append(".recursive: is for folders of images; remove it, or the dataset")
        if not isinstance(self.dataset, str):
            problems += [
                f".{key}: is for a dataset's files, but this dataset is an object; remove it"
                for key in ("split", "subset", "root")
                if getattr(self, key) is not None
            ]
        return problems


class Degradation(OpenSection):
    name: Annotated[str, one_of(DEGRADATIONS)]


DEFAULT_DEGRADATIONS = {
    False: [Degradation(name="gaussian_noise", sigma=25)],
    True: [Degradation(name="downscale"), Degradation(name="quantize")],
}


class Stage(Section):
    """Epochs that differ from the rest of the training; what is null is as without stages."""

    until_epoch: PositiveInt = Field(description="the stage is over when so many epochs of the run are complete")
    patch_size: PositiveInt | None = Field(None, description="side of a training crop of gt, pixels")
    batch_size: PositiveInt | None = Field(None, description="pairs per device per forward pass")
    global_batch_size: PositiveInt | None = Field(None, lt=2**24, description="pairs per optimizer step")


class Mixup(Section):
    """A second sample is mixed into some: both images of a pair, with one share, drawn from Beta(alpha, alpha)."""

    probability: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of the samples that are mixed")
    alpha: Annotated[float, Field(gt=0)] = Field(1.2, description="larger: shares nearer to one half")


def _check_batch_size(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise PydanticCustomError("batch_size", "must be a number above 0, or auto, not {value}", {"value": repr(value)})


BatchSize = Annotated[
    Any,
    AfterValidator(_check_batch_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"const": "auto", "type": "string"}]}),
]


class Data(Section):
    train: Source = Field(description="training images; without `input` it is made by `degradation`")
    val: Source | None = Field(None, description="validation images; null: `val_fraction` of the training images")
    scale: Literal[1, 2, 3, 4] = Field(1, description="gt is `scale` times larger than input (super-resolution)")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="share of training images held out")
    degradation: Annotated[list[Degradation], Field(min_length=1)] = Field(
        default_factory=lambda data: DEFAULT_DEGRADATIONS[data.get("scale", 1) > 1],
        description="makes the input of sources without one, applied in order; "
        "default: gaussian_noise of sigma 25, or with a scale above 1 bicubic downscale, rounded to 8 bits",
    )
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: gray (BT.601 luma of colour images)")
    patch_size: PositiveInt = Field(256, description="side of a training crop of gt, pixels; a multiple of scale")
    max_images: Annotated[int, Field(ge=2)] | None = Field(
        None, description="use only so many images of each source, the first by name: to try things out"
    )
    crops_per_image: PositiveInt = Field(1, description="samples per image per epoch")
    augment: list[Literal["hflip", "vflip", "rot90"]] = Field(
        ["hflip", "vflip", "rot90"], description="each done to half of the samples"
    )
    mixup: Mixup | None = None
    batch_size: BatchSize = Field(
        8,
        description="pairs per device per forward pass; auto: the largest power of two that fits, on a CPU at most 64",
    )
    stages: list[Stage] = Field(
        [], description="progressive training: crops and batches of the first epochs, in order; then those above hold"
    )
    num_threads: Annotated[int, Field(ge=0, le=64)] = Field(
        1, description="threads that read batches ahead; 0: in the training loop; the run is the same with any number"
    )
    cache_dir: PathText | None = Field(None, description="decoded images; null: ~/.cache/accel_restore")
    max_image_pixels: PositiveInt = Field(MAX_PIXELS, description="larger images are refused as decompression bombs")

    @property
    def patch_sizes(self) -> dict[str, int]:
        """The sides of training crops of all stages, by their keys."""
        stages = {f"data.stages.{i}.patch_size": stage.patch_size for i, stage in enumerate(self.stages)}
        return {key: size for key, size in stages.items() if size} | {"data.patch_size": self.patch_size}

    @model_validator(mode="after")
    def _multiple_of_scale(self) -> "Data":
        for key, size in self.patch_sizes.items():
            if size % self.scale:
                raise PydanticCustomError(
                    "patch_size",
                    "{key} is {size}, which is no multiple of scale {scale}",
                    {"key": key.removeprefix("data."), "size": size, "scale": self.scale},
                )
        return self

    @model_validator(mode="after")
    def _stages_in_order(self) -> "Data":
        ends = [stage.until_epoch for stage in self.stages]
        if ends != sorted(set(ends)):
            raise PydanticCustomError(
                "stages", "stages end at the epochs {ends}; give them in order", {"ends": ", ".join(map(str, ends))}
            )
        return self
