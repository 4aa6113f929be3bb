"""The configuration of sources of images, and of the named training and validation sets that have them."""

import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from accel_restore.config.base import OpenSection, PositiveInt, Section, one_of
from accel_restore.registry import DEGRADATIONS


def _check_home(path: str) -> str:
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise PydanticCustomError(
            "home", "{path} starts with an unknown home folder; write the full path", {"path": path}
        ) from None
    return path


PathText = Annotated[str, AfterValidator(_check_home)]
Paths = Annotated[PathText, Field(min_length=1)] | Annotated[list[PathText], Field(min_length=1)]
_GIVEN_IN_PYTHON = "<Dataset of "  # how config.yaml describes a data set object starts with this


def _check_dataset(value: Any) -> Any:
    """Return a name or a `datasets.Dataset`. A caller that has such an object has already imported `datasets`."""
    library, kind = sys.modules.get("datasets"), type(value).__name__
    if value is None or (library is not None and isinstance(value, library.Dataset)):
        return value
    if isinstance(value, str) and value.startswith(_GIVEN_IN_PYTHON):
        message = f"{value} was passed as a Python object; pass it again, or name a folder written by save_to_disk"
    elif isinstance(value, str) and value:
        return _check_home(value)
    elif isinstance(value, dict):
        message = f"must be one dataset, not a DatasetDict; choose a split: dataset[{next(iter(value), 'train')!r}]"
    elif kind.startswith("Iterable"):
        message = f"must support random access, and {kind} does not; load it without streaming"
    else:
        message = f"must be the name of a dataset or, in Python, a datasets.Dataset, not {value!r:.60}"
    raise PydanticCustomError("dataset", "{message}", {"message": message})


def _describe_dataset(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return f"{_GIVEN_IN_PYTHON}{len(value)} rows, fingerprint {value._fingerprint}>"


DatasetOrName = Annotated[
    Any,
    AfterValidator(_check_dataset),
    PlainSerializer(_describe_dataset, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}),
]


class Degradation(OpenSection):
    """One step of the synthetic degradation; further keys are its keyword arguments."""

    name: Annotated[str, one_of(DEGRADATIONS)]


class Source(Section):
    """Images on disk or rows of a dataset. `package:skimage/data/x.png` is a file of an installed Python package."""

    input: Paths | None = Field(None, description="degraded images, in the same form as gt; equal names make a pair")
    gt: Paths | None = Field(
        None,
        description="clean images: a folder, a pattern with {}, a list of folders, patterns or files, or the column "
        "of a dataset",
    )
    dataset: DatasetOrName = Field(
        None, description="a file, folder or Hub id for Hugging Face `datasets`; in Python, also a Dataset object"
    )
    split: str | None = Field(None, description="split of the dataset; null: train")
    subset: str | None = Field(None, description="name of a configuration, for a dataset with several of them")
    root: PathText | None = Field(
        None, description="folder that holds all files named in a dataset's rows; null: the folder of the dataset"
    )
    recursive: bool = Field(False, description="also use the images in sub-folders")

    @model_validator(mode="after")
    def _check(self) -> "Source":
        problems = self._problems_of_files() if self.dataset is None else self._problems_of_dataset()
        problems += self._problems_of_inputs()
        if problems:
            raise PydanticCustomError("source", "{text}", {"text": "\n".join(problems)})
        return self

    def _problems_of_inputs(self) -> list[str]:
        """Return problems of the keys that a kind of source adds, each starting with what follows the section's key."""
        return []

    def _problems_of_files(self) -> list[str]:
        """Return problems, each starting with what follows the key of the section."""
        problems = [
            f".{key}: applies to datasets only; set dataset, or remove {key}"
            for key in ("split", "subset", "root")
            if getattr(self, key)
        ]
        if self.gt is None:
            problems.append(": 'gt' is missing; set it to a folder, a pattern, or a column of a dataset")
        places = [
            place for side in (self.gt, self.input) for place in ([side] if isinstance(side, str) else side or [])
        ]
        if self.recursive and places and all("{}" in place for place in places):
            problems.append(".recursive: applies to folders only; in a pattern, write **/ for folders of any depth")
        return problems

    def _problems_of_dataset(self) -> list[str]:
        problems = [
            f".{key}: must be the name of one dataset column, not a list"
            for key in ("input", "gt")
            if isinstance(getattr(self, key), list)
        ]
        if self.recursive:
            problems.append(".recursive: applies to folders only; remove it, or the dataset")
        if not isinstance(self.dataset, str):
            problems += [
                f".{key}: does not apply to a Dataset object; remove it"
                for key in ("split", "subset", "root")
                if getattr(self, key) is not None
            ]
        return problems


class TrainSet(Source):
    """A training set. A key that is null has the value of the section `data`."""

    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="share of all samples that come from this set; null: the sets without a share divide the rest by "
        "their numbers of samples",
    )
    crops_per_image: PositiveInt | None = Field(None, description="samples per image per pass; null: as in data")
    degradation: Annotated[list[Degradation], Field(min_length=1)] | None = Field(
        None, description="steps that make the input of this set; null: as in data"
    )
    synthetic_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="share of this set's samples whose input is made by the degradation instead of read from `input`",
    )

    def _problems_of_inputs(self) -> list[str]:
        if self.synthetic_share is not None and self.input is None:
            return [".synthetic_share: needs `input`; without it the degradation makes all inputs, so remove the key"]
        if self.degradation is not None and self.input is not None and self.synthetic_share is None:
            return [".degradation: has no effect, as `input` is read; remove one of them, or set synthetic_share"]
        return []


class ValSet(Source):
    """A validation set. A key that is null has the value of the section `validation`, or of `data`."""

    degradation: Annotated[list[Degradation], Field(min_length=1)] | None = Field(
        None, description="steps that make the input of this set; null: as in data"
    )
    crop_border: Annotated[int, Field(ge=0)] | None = Field(None, description="pixels ignored at each border")
    y_channel: bool | None = Field(None, description="score the BT.601 luma (16–235) instead of RGB")
    quantize: bool | None = Field(None, description="round output and gt to 8 bits before scoring")
    tile: PositiveInt | None = Field(None, description="side of the input tiles that the network processes, pixels")

    @model_validator(mode="after")
    def _one_input(self) -> "ValSet":
        if self.input is not None and self.degradation is not None:
            text = ".degradation: makes the inputs of sets without `input`; remove one of the two"
            raise PydanticCustomError("source", "{text}", {"text": text})
        return self


NO_SECTIONS = "no_sections"  # the kind of error for named sets that are no sections
ONE, SEVERAL = "one set", "named sets"  # tags of the union; `explain` drops them, as they are no words of a key


def _kind_of_sets(value: Any) -> str:
    """Return whether a value of `data.train` or `data.val` is one set without a name, or a mapping of named sets."""
    has_sections = isinstance(value, dict) and any(isinstance(item, dict | Source) for item in value.values())
    return SEVERAL if has_sections and not value.keys() & _SOURCE_KEYS else ONE


def named_sets(value: dict[str, Any]) -> dict[str, Any]:
    """Return the sets of a value of `data.train` or `data.val` by name; the name of a single set may be ''."""
    return value if _kind_of_sets(value) == SEVERAL else {"": value}


_SOURCE_KEYS = TrainSet.model_fields.keys() | ValSet.model_fields.keys()


def _check_sections(value: Any) -> Any:
    """Refuse sets with the name of a key, and texts in place of sections."""
    if not isinstance(value, dict):
        return value
    for name in (key for key in value if key in _SOURCE_KEYS):
        if isinstance(value[name], Source) or (isinstance(value[name], dict) and value[name].keys() & _SOURCE_KEYS):
            text = "'{name}' is a key of a set, so no set can have this name; rename it"
            raise PydanticCustomError("set_name", text, {"name": name})
    if value and not value.keys() & _SOURCE_KEYS and all(isinstance(item, str | list) for item in value.values()):
        raise PydanticCustomError(NO_SECTIONS, "must be sections", {"sets": value})
    return value


def _check_names(sets: dict[str, Any]) -> dict[str, Any]:
    alike: dict[str, str] = {}
    for name in sets:
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", name):
            text = "the name of a set consists of letters, digits, - and _, and starts with a letter, not {name}"
            raise PydanticCustomError("set_name", text, {"name": repr(name)})
        if (other := alike.setdefault(name.replace("-", "_"), name)) != name:
            text = "{other} and {name} would have one name in W&B, where - is _; rename one of them"
            raise PydanticCustomError("set_name", text, {"other": repr(other), "name": repr(name)})
    return sets


def _check_shares(value: TrainSet | dict[str, TrainSet]) -> TrainSet | dict[str, TrainSet]:
    sets = value if isinstance(value, dict) else {"": value}
    shares = [one.share for one in sets.values() if one.share is not None]
    total = sum(map(Fraction, map(str, shares)), Fraction(0))
    others = [name for name, one in sets.items() if one.share is None]
    text = None
    if total > 1:
        text = f"the shares add up to {float(total):g}; lower them to 1 together"
    elif total == 1 and others:
        text = f"the shares add up to 1, which leaves nothing for {', '.join(others)}; lower them"
    elif total < _NEARLY_ONE and shares and not others:
        text = f"the shares add up to {float(total):g}; raise them to 1, or leave one out, which then gets the rest"
    if text is not None:
        raise PydanticCustomError("shares", "{text}", {"text": text})
    return value


_NEARLY_ONE = Fraction("0.99")  # of all sets: shares such as 0.33, three times, are scaled
_Discriminated = Discriminator(_kind_of_sets)
_Named = AfterValidator(_check_names)
TrainSets = Annotated[
    Annotated[TrainSet, Tag(ONE)] | Annotated[dict[str, TrainSet], _Named, Tag(SEVERAL)],
    _Discriminated,
    AfterValidator(_check_shares),
    BeforeValidator(_check_sections),
]
ValSets = Annotated[
    Annotated[ValSet, Tag(ONE)] | Annotated[dict[str, ValSet], _Named, Tag(SEVERAL)],
    _Discriminated,
    BeforeValidator(_check_sections),
]


def key_of(section: str, name: str) -> str:
    """Return the key of a set; the name may be empty."""
    return f"{section}.{name}" if name else section
