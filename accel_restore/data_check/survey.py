"""Look at every pair of a set that can be compared: its files' headers and its pixels."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from accel_restore.config.data import Data
from accel_restore.data.build import Images
from accel_restore.data.cache import Opened, Track, each_ahead
from accel_restore.data.decode import Header, ImageError, ImageSource, read_header, read_image
from accel_restore.data.pairs import Pair
from accel_restore.data_check.findings import Finding
from accel_restore.data_check.measure import PairFacts, examine_pair

_LEAST_SIDE = 16  # pixels of gt that can be compared
_NOTED = {  # pixel formats that are not taken as they are
    "black and white": "1 bit a pixel, read as black and white",
    "palette": "a palette, read as the colours that it stands for",
    "RGB with alpha": "an opaque alpha channel, which is left out",
    "gray with alpha": "an opaque alpha channel, which is left out",
}


@dataclass
class Part:
    """The pairs of the training or the validation set that can be compared, and what was found out about them."""

    images: Images | None
    data: Data
    total: int  # pairs of the set, with those that cannot be compared
    pairs: list[Pair] = field(default_factory=list)
    headers: list[tuple[Header | None, Header]] = field(default_factory=list)  # of input and gt
    facts: list[PairFacts] = field(default_factory=list)

    @property
    def gts(self) -> list[str]:
        return [str(pair.gt) for pair in self.pairs]

    @property
    def inputs(self) -> list[str] | None:
        return [str(pair.input) for pair in self.pairs] if self.images and self.images.input is not None else None

    def pixels(self, place: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Input and gt of a pair, float32 (H, W, C) in [0, 1]."""
        return _pixels(self, self.pairs[place])


def survey(images: Images | None, pairs: list[Pair], data: Data, limit: int | None, track: Track, name: str) -> Part:
    """The part of a source that `pairs` are, at most `limit` of them, spread evenly, examined on all cores."""
    part = Part(images, data, len(pairs))
    candidates = [pair for pair in pairs if _comparable(images, pair, data.scale)]
    if limit is not None:
        candidates = candidates[:: max(1, -(-len(candidates) // limit))]
    for pair, headers, facts in track(_examined(part, candidates), len(candidates), f"examining {name}"):
        part.pairs.append(pair)
        part.headers.append(headers)
        part.facts.append(facts)
    return part


def find_in_headers(part: Part) -> list[Finding]:
    """What the files' formats tell: pairs of unequal depth or colour, files that are not taken as they are."""
    found = []
    for pair, (input, gt) in zip(part.pairs, part.headers, strict=True):
        files = (str(pair.input), str(pair.gt))
        if input is not None and input.bits != gt.bits:
            text = f"{pair.input}: has {input.bits} bits, its gt {pair.gt} {gt.bits}: both are scaled to [0, 1]"
            found.append(Finding("depth", text, files))
        if input is not None and ("gray" in input.mode) != ("gray" in gt.mode):
            text = f"{pair.input}: is {input.mode}, its gt {pair.gt} is {gt.mode}: is that meant?"
            found.append(Finding("colour", text, files))
        for image, header in ((pair.input, input), (pair.gt, gt)):
            if header is not None:
                found += [Finding(kind, f"{image}: {text}", (str(image),)) for kind, text in _notes(image, header)]
    return found


def _notes(image: ImageSource, header: Header) -> Iterator[tuple[str, str]]:
    if header.mode in _NOTED:
        yield "format", f"has {_NOTED[header.mode]}"
    if header.orientation != 1:
        yield "orientation", f"is turned upright, as its EXIF orientation {header.orientation} says"
    expected = Image.registered_extensions().get(getattr(image, "suffix", "").lower())
    if expected is not None and header.format not in (expected, "MPO"):  # which a camera's JPEG may be
        yield "extension", f"is a {header.format} file, whatever its name ends in"


def _comparable(images: Images, pair: Pair, scale: int) -> bool:
    place = images.place[pair.name]
    size = images.gt.sizes[place]
    if size is None or min(size) < _LEAST_SIDE:
        return False
    return images.input is None or images.input.sizes[place] == (size[0] / scale, size[1] / scale)


def _examined(part: Part, pairs: list[Pair]) -> Iterator[tuple[Pair, tuple, PairFacts]]:
    """Pairs with their headers and facts, in order; damaged ones, which are errors anyway, are left out."""

    def examine(pair: Pair) -> tuple[Pair, tuple, PairFacts]:
        headers = tuple(image and read_header(image, part.data.max_image_pixels) for image in (pair.input, pair.gt))
        return pair, headers, examine_pair(*_pixels(part, pair), part.data.scale)

    return (result for result in each_ahead(examine, pairs) if not isinstance(result, ImageError))


def _pixels(part: Part, pair: Pair) -> tuple[np.ndarray | None, np.ndarray]:
    place = part.images.place[pair.name]
    gt = _floats(part.images.gt, place, pair.gt, part.data)
    return None if pair.input is None else _floats(part.images.input, place, pair.input, part.data), gt


def _floats(opened: Opened, place: int, image: ImageSource, data: Data) -> np.ndarray:
    """(H, W, C) in [0, 1], from the store where there is one."""
    if opened.store is not None:
        pixels = opened.store[place]
    else:
        pixels = read_image(image, data.channels, 16, data.max_image_pixels)
    return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
