"""Inputs without gt that a run restores and draws after validation. They have no part in training or scores."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from accel_restore.config.data import Data
from accel_restore.data.augment import to_float
from accel_restore.data.cache import Track, open_stores
from accel_restore.data.cache_folder import default_cache
from accel_restore.data.file_search import NamedFile, Searched, find_files, is_pattern, locate
from accel_restore.data.pixels import Range
from accel_restore.data.store import Store
from accel_restore.errors import raise_problems

_MOST = 24  # images: more would make a validation slow and its sheet long
_KEY = "data.preview"


@dataclass(frozen=True)
class Previews:
    """A sequence of inputs, float (1, C, H, W) in [0, 1]; the outputs are `scale` times larger."""

    names: list[str]
    store: Store
    scale: int
    range: Range  # of float pixels
    files: list[Path]
    notes: list[str]  # on what was left out

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        return to_float(torch.from_numpy(self.store[index])[None], range=self.range)

    def sizes(self) -> list[tuple[int, int]]:
        """Return the height and width of each output, in pixels."""
        return [(self.scale * height, self.scale * width) for height, width in self.store.sizes.tolist()]


def open_previews(data: Data, track: Track | None = None, log: Callable[[str], None] | None = None) -> Previews | None:
    """Return the images of `data.preview`, if it is set; see `find_previews`.

    Raises: UserError that lists all problems.
    """
    previews, problems = find_previews(data, track, log)
    raise_problems(f"{_KEY}: the images cannot be used", problems)
    return previews


def find_previews(
    data: Data, track: Track | None = None, log: Callable[[str], None] | None = None
) -> tuple[Previews | None, list[str]]:
    """Return the images of `data.preview`, decoded, and the problems found; see `open_stores`."""
    if data.preview is None:
        return None, []
    found, notes, problems = _search(data.preview)
    if problems:
        return None, problems
    chosen = sorted(found, key=lambda file: file.path)[: data.max_images][:_MOST]
    if len(chosen) < len(found):
        notes.append(f"{_KEY}: {len(found)} images were found; the first {len(chosen)} by path are restored")
    cache = Path(data.cache_dir).expanduser() if data.cache_dir else default_cache()
    files = [Path(file.path) for file in chosen]
    channels = data.image_spec.input_channels
    (opened,) = open_stores([files], channels, cache, track, data.max_image_pixels, log, data.cache.codec)
    if opened.store is None:
        return None, opened.problems
    return Previews([file.name for file in chosen], opened.store, data.scale, data.range, files, notes), []


def _search(places: str | list[str]) -> tuple[list[NamedFile], list[str], list[str]]:
    """Return the images of a folder, a pattern, or a list of folders, patterns and files, notes, and the problems."""
    found: dict[str, NamedFile] = {}
    searched, problems = Searched(), []
    for place in [places] if isinstance(places, str) else places:
        try:
            is_file = not is_pattern(place) and not locate(place).is_dir() and not isinstance(places, str)
            files, more = find_files([place] if is_file else place, _KEY, False, (), searched)
        except OSError as error:  # a name that is too long, a folder without permission
            files, more = [], [f"{_KEY}: cannot be searched: {error.strerror}: {error.filename!s:.200}"]
        found |= {file.path: file for file in files}
        problems += more
    return list(found.values()), searched.notes, problems
