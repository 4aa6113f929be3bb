"""Find and match images in a data set of Hugging Face `datasets`: local files, a saved folder, or the Hub."""

import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from accel_restore.config.sets import Source
from accel_restore.data.decode import Cell
from accel_restore.data.hf_columns import Reach, choose_columns, images_of, names_of
from accel_restore.data.pairs import Pair, Pairs
from accel_restore.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_BUILDERS = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json", ".tar": "webdataset",
}  # fmt: skip
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def find_rows(source: Source, key: str) -> tuple[Pairs, list[str]]:
    """Return the pairs of a data set in order of their names, and the problems found; `key` is the source's dotted key.

    A pair is named by the stem of its gt's path if all rows have one and all differ, otherwise by its row number. A
    folder and the data set made from it therefore give the same pairs in the same order. Images in separate files
    become paths; others are read from the data set, one cell at a time, when they are decoded.
    """
    try:
        dataset, label = _load(source, key)
    except UserError as error:
        return Pairs.of([]), [str(error)]
    assert not isinstance(source.gt, list) and not isinstance(source.input, list)  # checked by the configuration
    columns, problems = choose_columns(dataset, source.gt, source.input, key, label)
    if problems:
        return Pairs.of([]), problems
    images: dict[str, list[Path | Cell | None]] = {}
    reach = _reach(source, key)
    for side, column in columns.items():
        images[side], more = images_of(dataset, column, label, reach)
        problems += more
    rows = zip(names_of(dataset, columns["gt"]), *images.values(), strict=True)
    pairs = [Pair(name, *those) for name, *those in rows if None not in those]
    return Pairs.of(sorted(pairs, key=lambda pair: pair.name)), problems


def _load(source: Source, key: str) -> tuple["Dataset", str]:
    """The rows of a source, and their name in messages."""
    if not isinstance(source.dataset, str):
        dataset, label = source.dataset, "the data set"
    else:
        label = source.dataset if _HUB_ID.fullmatch(source.dataset) else Path(source.dataset).absolute().name
        with _quiet():
            try:
                dataset = _load_named(source, key)
            except UserError:
                raise
            except Exception as error:  # the library may raise anything for an arbitrary file
                raise UserError(f"{key}.{_reason(error, source.dataset)}") from error
    if not len(dataset):
        raise UserError(f"{key}.dataset: {label} has no rows")
    return dataset, label


def _load_named(source: Source, key: str) -> "Dataset":
    from datasets import load_dataset

    name, split = str(source.dataset), source.split or "train"
    path = Path(name).expanduser()
    files = [path] if path.is_file() else [Path(file) for file in sorted(glob(str(path)))] if "*" in name else []
    if files or _is_saved(path):
        if source.subset is not None:
            raise UserError(f"{key}.subset: {name} has no subsets; remove it")
        return _load_files(files, split, key) if files else _load_saved(path, source, key)
    if path.is_dir():  # resolved: a relative name could be one of the library's builders
        _check_archives((file for file in path.rglob("*.tar") if file.is_file()), key)
        return load_dataset(str(path.resolve()), source.subset, split=split)
    if not _HUB_ID.fullmatch(name) or path.suffix in _BUILDERS:
        raise UserError(
            f"{key}.dataset: {name} does not exist (looked in {Path.cwd()}); name a file, a folder, or owner/name of a "
            "data set on the Hugging Face Hub"
        )
    return load_dataset(name, source.subset, split=split)


def _load_files(files: list[Path], split: str, key: str) -> "Dataset":
    from datasets import load_dataset

    suffix = files[0].suffix.lower()
    if suffix not in _BUILDERS:
        raise UserError(
            f"{key}.dataset: {files[0]} is not a data set file ({' '.join(_BUILDERS)}); name images by gt and input "
            "without `dataset`"
        )
    _check_archives((file for file in files if suffix == ".tar"), key)
    names = [str(file.resolve()) for file in files]
    return load_dataset(_BUILDERS[suffix], data_files={"train": names}, split=split)


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _load_saved(folder: Path, source: Source, key: str) -> "Dataset":
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(str(folder))
    if isinstance(saved, DatasetDict):
        split = source.split or "train"
        if split not in saved:
            raise UserError(f"{key}.split: no split '{split}' in {folder}; it has: {', '.join(saved)}")
        return saved[split]
    if source.split not in (None, str(saved.split)):
        raise UserError(f"{key}.split: {folder} was saved as one split; remove it")
    return saved


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and log lines of the libraries: every rank would print them, and problems are reported."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from datasets.utils import logging as datasets_logging
    from huggingface_hub.utils import logging as hub_logging

    shown = not are_progress_bars_disabled()
    levels = {library: library.get_verbosity() for library in (datasets_logging, hub_logging)}
    disable_progress_bars()
    for library in levels:
        library.set_verbosity(library.CRITICAL)
    try:
        yield
    finally:
        for library, level in levels.items():
            library.set_verbosity(level)
        if shown:
            enable_progress_bars()


def _reason(error: Exception, name: str) -> str:
    """The library's error in terms of the configuration; starts with the key inside the source."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).partition("Example of usage")[0].split()) or type(error).__name__
    if unknown := re.fullmatch(r'Unknown split "(.*)"\. Should be one of (.*)\.', text):
        return f"split: no split '{unknown[1]}' in {name}; it has: {_unquoted(unknown[2])}"
    if subsets := re.search(r"available(?: configs)?: (\[.*?\])", text, re.IGNORECASE):
        return f"subset: name one of the subsets of {name}: {_unquoted(subsets[1])}"
    if isinstance(error, DatasetNotFoundError):
        return (
            f"dataset: {name} is not a file or folder (looked in {Path.cwd()}), and the Hub reports: {text} Check the "
            "spelling; for a private or gated data set ask for access and log in with `hf auth login`"
        )
    if isinstance(error, ConnectionError):
        return (
            f"dataset: {name} is not a file or folder (looked in {Path.cwd()}), and the Hugging Face Hub cannot be "
            "reached; check the spelling, or load the data set once with a network connection"
        )
    return f"dataset: {name} cannot be loaded: {text}"


def _unquoted(names: str) -> str:
    return re.sub(r"[\[\]'\"]", "", names)


def _reach(source: Source, key: str) -> Reach:
    """The folder that paths in a data set are relative to (the folder of its files), and those they may point into.

    They may point into this folder and into the libraries' caches, which hold downloaded and unpacked images.
    """
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    if not isinstance(source.dataset, str):
        return Reach(Path())
    path = Path(source.root or source.dataset).expanduser()
    if source.root is None and not path.is_dir():
        parts = path.parts[:-1]
        path = Path(*takewhile(lambda part: "*" not in part, parts))
    places = (path, config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    remedy = f"if you trust the data set, set {key}.root to the folder that holds its images"
    return Reach(path, tuple(Path(place).resolve() for place in places), remedy)


def _check_archives(files: Iterable[Path], key: str) -> None:
    """Raise `UserError` for archives in which few bytes can expand to many: each member is read as a whole."""
    for file in files:
        try:
            with tarfile.open(file, "r:") as archive:  # uncompressed: not larger than the file
                bad = next((m for m in archive if m.issparse() or m.name.lower().endswith(_PACKED)), None)
        except tarfile.TarError as error:
            raise UserError(
                f"{key}.dataset: {file} is not a plain tar archive ({error}); unpack and pack it again"
            ) from None
        if bad is not None:
            raise UserError(
                f"{key}.dataset: {file} contains '{bad.name:.100}', which is compressed again; pack the plain files"
            )
