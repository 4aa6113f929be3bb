"""Where a run starts: from scratch, or exactly at the last commit in its folder, with an equal configuration."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_restore.checkpoint.commits import find_commits, is_commit, read_file, read_manifest, same_content, step_of
from accel_restore.checkpoint.state_dict import read_counters
from accel_restore.config.schema import Config
from accel_restore.data.identity import RECORD, Identity, describe_change, facts_of, read_record
from accel_restore.errors import UserError, raise_problems
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.optim.schedules import OPEN_ENDED
from accel_restore.tracking.run_files import read_status
from accel_restore.utils.files import discard, replace_file
from accel_restore.utils.redaction import HIDDEN, redacted

# What a run writes. --overwrite removes these and nothing else, and only if status.json shows that it was a run.
MARKER = "status.json"
RUN_FILES = (
    "checkpoints", "config.yaml", "metrics.jsonl", "memory.jsonl", WEIGHTS, "samples", "curves.png", "report.html",
    "plan.json", RECORD, "wandb", "tensorboard", "hub", "audit", "audit.json", MARKER,
)  # fmt: skip
# Sections and keys that a resumed run may change. Those in _BATCH may change as long as the global batch stays equal.
_FREE = (
    "tracking", "checkpoint", "run.dir", "run.name", "run.resume", "validation.num_samples", "validation.batch_size",
    "data.cache_dir", "data.num_threads", "data.max_image_pixels", "train.max_skipped_steps",
    "train.check_ranks_every_steps", "train.rank_timeout",
)  # fmt: skip
# What these keys name is compared, not how it is spelled: the same images may be in another folder.
_SOURCES = re.compile(r"data\.(train|val)(\..*)?")
_BATCH = re.compile(
    r"train\.(gradient_accumulation_steps|global_batch_size)|data\.(stages\.\d+\.)?(batch_size|global_batch_size)"
)
_ARGUMENTS = (
    "model.",
    "loss.",
    "data.degradation.",
)  # an argument that is left out has its own default, which null is not
_LENGTH = ("train.epochs", "train.max_steps")


@dataclass(frozen=True)
class Start:
    """What a run continues from: a commit and its counters, or neither."""

    commit: Path | None = None
    counters: dict[str, Any] | None = None
    finished: bool = False
    other_sources: bool = False  # the configuration names the images in another way than the commit's

    def is_in(self, folder: Path) -> bool:
        """Return whether the commit belongs to the run in `folder`, not to another run."""
        assert self.commit is not None
        return self.commit.resolve().is_relative_to(folder.resolve())


def find_resume_point(
    folder: Path,
    config: Config,
    overwrite: bool,
    overrides: list[str],
    precision: str,
    log: Callable[[str], None] = print,
) -> Start:
    """Return where the run in `folder` starts; `precision` is the mixed precision in use. Only reads.

    Raises: UserError if the folder may not be used, or the commit belongs to another configuration.
    """
    _refuse_foreign(folder)
    if overwrite:
        return Start()
    if config.run.resume == "never":
        if any((folder / name).exists() for name in RUN_FILES if name != MARKER):
            raise UserError(
                f"{folder}: holds a run, and run.resume is 'never'; choose another run.name, or use --overwrite"
            )
        return Start()
    damages = []
    for commit in _candidates(folder, config.run.resume):
        try:
            counters = read_counters(commit)
        except UserError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            log(f"{damage}; going back to {commit.name}")
        _check_equal(folder, config, counters, overrides, precision)
        then, now = counters["config"], redacted(config.model_dump(mode="json"))
        finished = _length(now) == _length(then) and counters["epoch"] >= counters["epochs"]
        return Start(commit, counters, finished, other_sources=_sources(now) != _sources(then))
    raise_problems(f"{folder}: no checkpoint can be read; start again with --overwrite", damages)
    return Start()


def _candidates(folder: Path, resume: str) -> list[Path]:
    """Return the commits to try, best first, for `run.resume`: auto or a path."""
    own = find_commits(folder / "checkpoints")[::-1]
    if resume == "auto":
        if not own and read_status(folder).get("state") == "finished":
            raise UserError(f"{folder}: holds a finished run without checkpoints; --overwrite starts it again")
        return own
    if own and _has_resumed(own, resume, folder):
        return own
    path = Path(resume).expanduser()
    others = [path] if is_commit(path) else find_commits(path / "checkpoints")[::-1]
    if not others:
        raise UserError(
            f"run.resume: {path} is not a checkpoint (a folder step-… with COMMIT.json); other choices are auto, never"
        )
    return others


def _has_resumed(commits: list[Path], resume: str, folder: Path) -> bool:
    """Return whether the run in `folder` has already started from `resume`, and so continues from its own `commits`.

    A commit of another run is only a start. The run goes back to a commit of its own once, as recorded in its newest
    commit that can be read.
    """
    if not Path(resume).expanduser().resolve().is_relative_to(folder.resolve()):
        return True
    for commit in commits:
        try:
            return json.loads(read_file(commit, "state.json"))["config"]["run"]["resume"] == redacted(resume)
        except (UserError, ValueError, LookupError, TypeError):  # damaged
            continue
    return False


def _refuse_foreign(folder: Path) -> None:
    """Raise `UserError` if a folder that is not a run holds files with the names of a run's files."""
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if found and MARKER not in found:
        raise UserError(
            f"{folder}: holds {', '.join(found)}, but no run; choose another run.name, or move these files so that "
            "they are not overwritten"
        )


def clear(folder: Path, start: Start) -> None:
    """Remove what a run from scratch would overwrite, or the commits after the one to continue from."""
    if start.commit is None:
        for name in RUN_FILES:
            discard(folder / name)
        return
    assert start.counters is not None
    for commit in find_commits(folder / "checkpoints"):
        if step_of(commit) > start.counters["step"]:
            discard(commit)


def rewind_best(folder: Path, start: Start, log: Callable[[str], None]) -> bytes | None:
    """Return the content of best.safetensors at the commit to continue from, and restore the file if it differs.

    Raises: UserError if a folder is in its place.
    """
    if start.commit is None or not start.is_in(folder):
        return None  # another run keeps its best weights in its own folder
    assert start.counters is not None
    path = folder / WEIGHTS
    if start.counters["best"] is None:
        discard(path)  # written after the commit
    if WEIGHTS not in read_manifest(start.commit)["files"]:
        return None
    if path.is_dir():
        raise UserError(f"{path}: is a folder; move it away and give the same command again")
    data = read_file(start.commit, WEIGHTS)
    if not same_content(start.commit, WEIGHTS, path):
        what = "is damaged, or newer than the commit" if path.exists() else "is missing"
        log(f"{path}: {what}; restored from {start.commit.name}")
        replace_file(path, data)
    return data


def check_same_data(start: Start, identity: Identity) -> None:
    """Raise `UserError` if the images are not those that the commit was trained on."""
    if start.counters is None:
        return
    assert start.commit is not None
    then, now = start.counters["data"], facts_of(identity)
    if then == {kind: {key: facts[key] for key in facts if key in then.get(kind, ())} for kind, facts in now.items()}:
        return  # a commit of an older version has no digests of pixels
    change = describe_change(then, read_record(start.commit.parent.parent), identity)
    raise UserError(
        f"the images have changed since {start.commit}: {change}; put them back, or choose another run.name"
    )


def _has_digests(counters: dict[str, Any]) -> bool:
    return all("content" in facts for facts in counters["data"].values())


def _check_equal(folder: Path, config: Config, counters: dict[str, Any], overrides: list[str], precision: str) -> None:
    """Raise `UserError` if the configuration differs from the commit's in a key that may not change."""
    then, now = _flat(counters["config"]), _flat(redacted(config.model_dump(mode="json")))
    missing = object()  # a commit of an older version lacks newer keys; null there means the old behaviour
    unset = {key: missing if key.startswith(_ARGUMENTS) else None for key in [*then, *now]}
    changed = [key for key, value in unset.items() if then.get(key, value) != now.get(key, value)]
    refused = []
    for key in changed:
        if _BATCH.fullmatch(key) or key.startswith(_FREE) or (_SOURCES.fullmatch(key) and _has_digests(counters)):
            continue
        if str(then.get(key)).count(HIDDEN) != str(now.get(key)).count(HIDDEN):
            continue  # a secret of the environment was added or removed: the rest cannot be compared
        if key in _LENGTH and _may_lengthen(config, overrides, then.get(key), now.get(key)):
            continue
        refused.append(f"{key}: {then.get(key, 'unset')} in the commit, {now.get(key, 'unset')} now")
        if _is_longer(key, then, now):
            refused[-1] += f"; to train longer, give {key}={now[key]} on the command line"
    if counters["precision"] != precision:
        refused.append(f"mixed precision in use: {counters['precision']} in the commit, {precision} now")
    wanted = [stage.global_batch_size or config.train.global_batch_size for stage in config.data.stages]
    for held, asked in zip(counters["global_batches"], [*wanted, config.train.global_batch_size], strict=False):
        if asked is not None and asked != held:
            refused.append(f"global batch: {held} in the commit, {asked} now")
    raise_problems(
        f"{folder}: the run has another configuration; set these keys back, choose another run.name, or start again "
        "with --overwrite",
        refused,
    )


def _is_longer(key: str, then: dict[str, Any], now: dict[str, Any]) -> bool:
    before, after = then.get(key), now.get(key)
    return key in _LENGTH and isinstance(before, int) and isinstance(after, int) and before < after


def _may_lengthen(config: Config, overrides: list[str], then: Any, now: int | None) -> bool:
    explicit = any(override.startswith(tuple(f"{key}=" for key in _LENGTH)) for override in overrides)
    longer = then is None or now is None or (isinstance(then, int) and now > then)  # a file may contain anything
    return longer and (explicit or config.scheduler.name in OPEN_ENDED)


def _length(config: dict[str, Any]) -> tuple:
    return config["train"]["epochs"], config["train"]["max_steps"]


def _sources(config: dict[str, Any]) -> tuple:
    return config["data"]["train"], config["data"]["val"]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by their dotted keys."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        tree = {str(place): item for place, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, item in tree.items() for key, value in _flat(item, f"{prefix}.{name}".lstrip(".")).items()
    }
