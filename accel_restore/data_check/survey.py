"""Read the headers and pixels of every comparable pair of a set."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from accel_restore.config.data import Data
from accel_restore.data.cache import Opened, Track
from accel_restore.data.decode import ImageSource, read_header, read_image
from accel_restore.data.image_formats import Header, ImageError
from accel_restore.data.pairs import Pair
from accel_restore.data.parallel import each_ahead
from accel_restore.data.pixels import Range, is_float, to_unit
from accel_restore.data.scan import Images, ScannedSet
from accel_restore.data.val_dataset import can_crop_gt
from accel_restore.data_check.colour_spaces import ColourSpace, find_unlike_spaces, read_colour_space
from accel_restore.data_check.findings import GRAY, Finding
from accel_restore.data_check.float_ranges import FloatValues, find_in_range, find_unused_range, measure_floats
from accel_restore.data_check.measure import PairFacts, examine_pair

_MIN_SIDE = 16  # pixels of the smallest gt that is compared
_CONVERTED = {  # pixel formats that are converted
    "black and white": "1 bit per pixel, read as black and white",
    "palette": "a palette, read as its colours",
    "RGB with alpha": "an opaque alpha channel, which is ignored",
    "gray with alpha": "an opaque alpha channel, which is ignored",
}
Headers = tuple[Header | None, Header]  # of input and gt
Spaces = tuple[ColourSpace | None, ColourSpace]
Values = tuple[FloatValues | None, FloatValues | None]  # of input and gt; None for integers


@dataclass
class Part:
    """The comparable pairs of a set, with what was read and measured of each."""

    images: Images | None
    data: Data
    total: int  # pairs of the set, comparable or not
    pairs: list[Pair] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    spaces: list[Spaces] = field(default_factory=list)
    facts: list[PairFacts] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)

    @property
    def gts(self) -> list[str]:
        """The gt file of each pair."""
        return [str(pair.gt) for pair in self.pairs]

    @property
    def inputs(self) -> list[str] | None:
        """The input file of each pair, None if the degradation makes the inputs."""
        return [str(pair.input) for pair in self.pairs] if self.images and self.images.input is not None else None

    def pixels(self, place: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Return input and gt of a pair, float32 (H, W, C), on the scale of networks."""
        assert self.images is not None  # a part without images has no pairs
        return _pixels(self.images, self.data, self.pairs[place])


def survey(one: ScannedSet, data: Data, limit: int | None, track: Track, name: str) -> Part:
    """Measure the comparable pairs of a set, at most `limit` of them, spread evenly, on all cores."""
    images = one.images
    part = Part(images, data, len(one.pairs))
    if images is None:
        return part
    candidates = [pair for pair in one.pairs if _is_comparable(images, pair, data.scale)]
    if limit is not None:
        candidates = candidates[:: max(1, -(-len(candidates) // limit))]
    examined = track(_examined(images, data, candidates), len(candidates), f"examining {name}")
    for pair, headers, spaces, facts, values in examined:
        part.pairs.append(pair)
        part.headers.append(headers)
        part.spaces.append(spaces)
        part.facts.append(facts)
        part.values.append(values)
    return part


def find_in_values(parts: dict[str, Part], range: Range) -> list[Finding]:
    """Return the findings about float pixels and the range, `data.range`."""
    found, has_floats = [], False
    for name, part in parts.items():
        for side, files, values in (
            ("input", part.inputs or [], [input for input, _ in part.values]),
            ("gt", part.gts, [gt for _, gt in part.values]),
        ):
            has_floats |= any(values)
            found += find_in_range(f"{name}.{side}", files, values, range, side == "input")
    return [*found, *find_unused_range(has_floats, range)]


def find_in_headers(part: Part) -> list[Finding]:
    """Return the findings about file formats: pairs of unequal depth or colours, files that are converted."""
    found = find_unlike_spaces(part.pairs, part.spaces)
    for pair, (input, gt), facts in zip(part.pairs, part.headers, part.facts, strict=True):
        files = (str(pair.input), str(pair.gt))
        if input is not None and input.dtype != gt.dtype and input.format != "raw":
            text = f"{pair.input}: is {input.depth}, its gt {pair.gt} {gt.depth}; {_scaled(input, gt)}"
            found.append(Finding("depth", text, files))
        if input is not None and ("gray" in input.mode) != ("gray" in gt.mode):
            text = f"{pair.input}: is {input.mode}, its gt {pair.gt} is {gt.mode}; is this intended?"
            found.append(Finding("colour", text, files))
        elif facts.input_colour < GRAY and facts.gt_colour > 4 * GRAY:
            text = f"{pair.input}: shows no colour, its gt {pair.gt} does; is this intended?"
            found.append(Finding("colour", text, files))
        for image, header in ((pair.input, input), (pair.gt, gt)):
            if image is not None and header is not None:
                found += [Finding(kind, f"{image}: {text}", (str(image),)) for kind, text in _notes(image, header)]
    return found


def _scaled(input: Header, gt: Header) -> str:
    if is_float(input.dtype) == is_float(gt.dtype):
        return "both are scaled to [0, 1]"
    return "integers are divided by their largest value, floats are scaled from data.range to [0, 1]"


def _notes(image: ImageSource, header: Header) -> Iterator[tuple[str, str]]:
    if header.mode in _CONVERTED:
        yield "format", f"has {_CONVERTED[header.mode]}"
    if header.orientation != 1:
        yield "orientation", f"is rotated upright by its EXIF orientation {header.orientation}"
    expected = Image.registered_extensions().get(getattr(image, "suffix", "").lower())
    if expected is not None and header.format not in (expected, "MPO"):  # MPO: a JPEG of some cameras
        yield "extension", f"is a {header.format} file, but has another extension"


def _is_comparable(images: Images, pair: Pair, scale: int) -> bool:
    place = images.place[pair.name]
    size = images.gt.heights_widths[place].tolist()
    if min(size) < _MIN_SIDE:
        return False
    if images.input is None:
        return True
    small = images.input.heights_widths[place].tolist()
    return min(small) > 0 and can_crop_gt(size, small, scale)


def _examined(
    images: Images, data: Data, pairs: list[Pair]
) -> Iterator[tuple[Pair, Headers, Spaces, PairFacts, Values]]:
    """Yield pairs with what was read and measured, in order, without damaged ones, which are errors elsewhere."""
    limit = data.max_image_pixels

    def examine(pair: Pair) -> tuple[Pair, Headers, Spaces, PairFacts, Values]:
        of_input = None if pair.input is None else read_header(pair.input, limit)
        of_gt = read_header(pair.gt, limit)
        spaces = None if of_input is None else _space(pair.input, of_input), _space(pair.gt, of_gt)
        input, gt = _pixels(images, data, pair)
        values = _values(input, of_input, data.range), _values(gt, of_gt, data.range)
        return pair, (of_input, of_gt), spaces, examine_pair(input, gt, data.scale), values

    return (result for result in each_ahead(examine, pairs) if not isinstance(result, ImageError))


def _values(image: np.ndarray | None, header: Header | None, range: Range) -> FloatValues | None:
    return None if image is None or header is None or not is_float(header.dtype) else measure_floats(image, range)


def _space(image: ImageSource | None, header: Header) -> ColourSpace:
    return ColourSpace() if image is None or header.format == "raw" else read_colour_space(image)


def _pixels(images: Images, data: Data, pair: Pair) -> tuple[np.ndarray | None, np.ndarray]:
    place = images.place[pair.name]
    gt = _floats(images.gt, place, pair.gt, data.channels, data)
    if pair.input is None or images.input is None:
        return None, gt
    input = _floats(images.input, place, pair.input, data.image_spec.input_channels, data)
    return input, gt[: data.scale * input.shape[0], : data.scale * input.shape[1]]


def _floats(opened: Opened, place: int, image: ImageSource, channels: int, data: Data) -> np.ndarray:
    """Return pixels (H, W, C) on the scale of networks, from the store if there is one."""
    if opened.store is not None:
        return to_unit(opened.store[place], data.range)
    return to_unit(read_image(image, channels, max_pixels=data.max_image_pixels), data.range)
