"""What a run was trained and validated on: names of images and digests of their pixels, wherever the files are.

`images.json` in the folder of a run records it: about 55 bytes a pair, 5.5 MB for 100,000 pairs.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from accel_restore.utils.redaction import redacted

RECORD = "images.json"
_NAMED = 3  # images that a message names


@dataclass(frozen=True)
class ImageSet:
    """The images of a set in their order: names of the pairs, digests of the pixels of gt and input."""

    names: list[str]
    gt: list[str]
    input: list[str] | None  # None: made by the degradation

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.gt) == len(self.gt if self.input is None else self.input):
            raise ValueError("names and digests differ in number")

    def facts(self) -> dict[str, Any]:
        """Return what state.json records: the number of images, and hashes of their names and of their digests."""
        content = [self.gt, self.input]
        return {"images": len(self.names), "names": _hash(self.names), "content": _hash(content)}

    def digests(self) -> set[str]:
        """Return the digests of all images, gt and input."""
        return {*self.gt, *(self.input or [])}

    def without_secrets(self) -> "ImageSet":
        """Return the set with `***` in place of secrets in its names."""
        whole = "\n".join(self.names)  # four times as fast as name by name
        return self if redacted(whole) == whole else replace(self, names=redacted(self.names))

    def differences(self, now: "ImageSet") -> Iterator[str]:
        """Yield in words how `now` differs, with the first names."""
        then, new = self._by_name(), now._by_name()
        if (self.input is None) != (now.input is None):
            yield "inputs were made by the degradation" if self.input is None else "inputs were files"
        for what, names in (
            ("lacks", [name for name in then if name not in new]),
            ("has in addition", [name for name in new if name not in then]),
            ("other pixels in the gt of", [n for n in then if n in new and then[n][0] != new[n][0]]),
            ("other pixels in the input of", [n for n in then if n in new and then[n][1] and then[n][1] != new[n][1]]),
        ):
            if names:
                yield f"{what} {in_words(names)}"

    def _by_name(self) -> dict[str, tuple[str, str]]:
        inputs = [""] * len(self.gt) if self.input is None else self.input
        return {name: (gt, input) for name, gt, input in zip(self.names, self.gt, inputs, strict=True)}


Identity = dict[str, ImageSet]  # of the sets "train" and "val"; "train.div2k" for those with names
_RECORD: TypeAdapter[Identity] = TypeAdapter(Identity)


def facts_of(identity: Identity) -> dict[str, dict[str, Any]]:
    """Return what state.json records of each set."""
    return {kind: images.facts() for kind, images in identity.items()}


def find_shared(identity: Identity) -> list[str]:
    """Return the names of the validation images whose gt has the same pixels as that of a training image."""
    trained = {gt for images in of_kind(identity, "train") for gt in images.gt}
    sets = of_kind(identity, "val")
    return [name for images in sets for name, gt in zip(images.names, images.gt, strict=True) if gt in trained]


def of_kind(identity: Identity, kind: str) -> list[ImageSet]:
    """Return the sets of a kind: train or val."""
    return [images for name, images in identity.items() if kind_of(name) == kind]


def kind_of(name: str) -> str:
    """Return the kind of the set with this name: train or val."""
    return name.partition(".")[0]


def to_record(identity: Identity) -> bytes:
    """Return the content of images.json; secrets in names are hidden."""
    return _RECORD.dump_json({kind: images.without_secrets() for kind, images in identity.items()})


def read_record(folder: Path) -> Identity | None:
    """Return the images of the run in `folder`, or None if they are not recorded."""
    try:
        record = _RECORD.validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None
    return record if of_kind(record, "train") and of_kind(record, "val") else None


def describe_change(then: dict[str, Any], record: Identity | None, now: Identity) -> str:
    """Return in words how images differ from the facts `then` of a commit, with names if `record` belongs to it."""
    before, after = (", ".join(f"{d['images']} {kind}" for kind, d in x.items()) for x in (then, facts_of(now)))
    counts = [f"{before} images then, {after} now"] if before != after else []
    content = {kind: facts.get("content") for kind, facts in then.items()}
    if record is not None and content == {kind: facts["content"] for kind, facts in facts_of(record).items()}:
        changes = {k: ", ".join(record[k].differences(now[k].without_secrets())) for k in record if k in now}
        changes |= {k: "was not a set then" for k in now if k not in record}
        changes |= {k: "is no longer a set" for k in record if k not in now}
        if named := [f"{kind}: {text}" for kind, text in changes.items() if text]:
            return "; ".join([*counts, *named])
    return f"{before} images then, {after} now, and their names{' or pixels' * any(content.values())} differ"


def in_words(names: list[str]) -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:_NAMED]) + more


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
