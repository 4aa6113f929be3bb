"""Find and match images: folders (pairs share the stem), `{}` patterns (pairs share what stands for {}), or files."""

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from accel_restore.errors import UserError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}


@dataclass(frozen=True)
class Pair:
    """A clean image and, unless it is to be made from it, the degraded one."""

    name: str
    gt: Path
    input: Path | None = None


def find_pairs(gt: str | list[str], input: str | list[str] | None, key: str) -> tuple[list[Pair], list[str]]:
    """The pairs in order of their names, and the problems found (one sentence each); `key` is the source's dotted key.

    Raises: UserError for a pattern that cannot be one.
    """
    gts, problems = _named_files(gt, f"{key}.gt")
    if input is None:
        return [Pair(name, path) for name, path in gts.items()], problems
    inputs, more = _named_files(input, f"{key}.input")
    problems += more
    if gts and inputs:
        problems += [f"{inputs[n]}: has no partner '{n}' among {key}.gt ({gt})" for n in inputs if n not in gts]
        problems += [f"{gts[n]}: has no partner '{n}' among {key}.input ({input})" for n in gts if n not in inputs]
    same = [name for name, path in gts.items() if inputs.get(name) == path]
    if same:
        problems.append(
            f"{key}: input and gt are the same file for {len(same)} of {len(gts)} pairs ({gts[same[0]]}); name two "
            "folders, or patterns such as shots/{}_real.JPG and shots/{}_mean.JPG"
        )
    return [Pair(name, path, inputs[name]) for name, path in gts.items() if name in inputs], problems


def held_out(pairs: list[Pair], fraction: float) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: the `fraction` (at least one) whose names hash lowest is held out.

    It depends on names alone, so that runs of another seed or with a few more images are scored on the same ones.
    """
    count = max(1, round(fraction * len(pairs)))
    chosen = set(sorted((pair.name for pair in pairs), key=lambda name: hashlib.sha256(name.encode()).digest())[:count])
    return [p for p in pairs if p.name not in chosen], [p for p in pairs if p.name in chosen]


def _named_files(source: str | list[str], key: str) -> tuple[dict[str, Path], list[str]]:
    """Name → file, sorted by name, and problems."""
    if isinstance(source, list):
        found = [(path.stem, path) for path in map(_locate, source)]
        problems = [f"{key}: no such file: {path}" for _, path in found if not path.is_file()]
        found = [(name, path) for name, path in found if path.is_file()]
    elif "{}" in source:
        found, problems = _matching(source, key)
    else:
        found, problems = _in_folder(_locate(source), key)
    files: dict[str, Path] = {}
    for name, path in sorted(found):
        if name in files:
            problems.append(f"{path}: has the same name '{name}' as {files[name].name}; rename one")
        else:
            files[name] = path
    return files, problems


def _in_folder(folder: Path, key: str) -> tuple[list[tuple[str, Path]], list[str]]:
    if not folder.is_dir():
        what = "is a file; give a list [file, ...]" if folder.exists() else f"does not exist (looked in {Path.cwd()})"
        return [], [f"{key}: {folder} {what}"]
    found = [
        (path.stem, path)
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and path.is_file() and not path.name.startswith(".")
    ]
    if found:
        return found, []
    inside = sum(path.is_dir() for path in folder.iterdir())
    hint = f"; it has {inside} folders: name one of them, or use a pattern {folder}/{{}}/NAME.png" if inside else ""
    return [], [f"{key}: no images in {folder} (looked for {' '.join(sorted(EXTENSIONS))}){hint}"]


def _matching(pattern: str, key: str) -> tuple[list[tuple[str, Path]], list[str]]:
    if pattern.count("{}") != 1:
        raise UserError(f"{key}: the pattern '{pattern}' must hold {{}} exactly once")
    located = str(_locate(pattern))
    before, after = located.split("{}")
    expression = re.compile(re.escape(before) + r"([^/]+)" + re.escape(after))
    escaped = "*".join(re.sub(r"([*?[])", r"[\1]", part) for part in (before, after))
    found = [
        (match[1], Path(path))
        for path in glob(escaped)
        if (match := expression.fullmatch(path)) and Path(path).is_file()
    ]
    return found, [] if found else [f"{key}: no file matches {located}"]


def _locate(name: str) -> Path:
    """The path that a configuration names; `package:skimage/data/x.png` lies inside an installed package."""
    scheme, _, rest = name.partition(":")
    if scheme != "package":
        return Path(name).expanduser()
    package, _, inside = rest.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: the package '{package}' is not installed; pip install it")
    return Path(next(iter(spec.submodule_search_locations))) / inside
