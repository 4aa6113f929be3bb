"""Where a run starts: from scratch, or exactly at the last commit in its folder, with an equal configuration."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accel_restore.checkpoint.commits import find_commits, is_commit, read_file, read_manifest, same_content, step_of
from accel_restore.checkpoint.comparison import Comparison, take_weights
from accel_restore.checkpoint.folder import (
    MARKER,
    RUN_FILES,
    check_inputs,
    find_lost,
    paths_in,
    refuse_foreign,
    remove_run,
)
from accel_restore.checkpoint.state_dict import read_counters
from accel_restore.config.schema import Config
from accel_restore.data.identity import Identity, describe_change, facts_of, read_record
from accel_restore.errors import UserError, raise_problems
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.tracking.run_files import read_lines, read_status
from accel_restore.utils.files import discard, replace_file
from accel_restore.utils.imports import did_you_mean, misspelt
from accel_restore.utils.redaction import redacted


@dataclass(frozen=True)
class Start:
    """What a run continues from: a commit and its counters, or neither."""

    commit: Path | None = None
    counters: dict[str, Any] | None = None
    finished: bool = False
    other_sources: bool = False  # the configuration names the images in another way than the commit's
    overwrites: bool = False  # what the folder holds is removed first, even if the commit is another run's
    of_other_run: bool = False  # the commit is another run's

    @property
    def clears(self) -> bool:
        """Whether the files of an earlier run in the folder are removed."""
        return self.overwrites or self.commit is None

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
    refuse_foreign(folder)
    start = _find_start(folder, config, overwrite, overrides, precision, log)
    if start.clears:
        if start.commit is not None and start.is_in(folder):
            raise UserError(
                f"run.resume: {start.commit} is in the folder that --overwrite empties; without --overwrite, the run "
                "goes back to it"
            )
        check_inputs(folder, paths_in(config))
    return start


def _find_start(
    folder: Path, config: Config, overwrite: bool, overrides: list[str], precision: str, log: Callable[[str], None]
) -> Start:
    resume = config.run.resume
    if resume == "never" and not overwrite and any((folder / name).exists() for name in RUN_FILES if name != MARKER):
        again = _or_again(folder, config)
        raise UserError(f"{folder}: holds a run, and run.resume is 'never'; choose another run.name{again}")
    if resume == "never" or (resume == "auto" and overwrite):
        return Start(overwrites=overwrite)
    unusable = []
    for commit in _candidates(folder, config, overwrite):
        try:
            counters = read_counters(commit)
        except UserError as error:
            unusable.append(str(error))
            continue
        comparison = Comparison(config, counters, overrides, precision)
        start = Start(commit, counters, comparison.is_finished, comparison.other_sources, overwrite)
        if start.is_in(folder):
            comparison.check_own(folder, _or_again(folder, config))
        else:
            comparison.check_other(commit)
            start = replace(start, of_other_run=True)
        if (cut := comparison.describe_cut()) is not None:
            unusable.append(f"{commit}: {cut}")
            continue
        for reason in unusable:
            log(f"{reason}; going back to {commit.name}")
        return start
    remedy = f"choose another run.name{_or_again(folder, config)}" if resume == "auto" else "choose another run.resume"
    raise_problems(f"{folder}: no checkpoint can be used; {remedy}", unusable)
    return Start()


def _or_again(folder: Path, config: Config) -> str:
    """The advice to start again; empty if that would remove a file that the configuration names."""
    return "" if find_lost(folder, paths_in(config)) else ", or start again with --overwrite"


def _candidates(folder: Path, config: Config, overwrite: bool) -> list[Path]:
    """Return the commits to try, best first, for `run.resume`: auto or a path."""
    resume = config.run.resume
    own = find_commits(folder / "checkpoints")[::-1]
    if not own and not overwrite and not _is_inside(resume, folder) and (what := _find_result(folder)):
        again = _or_again(folder, config)
        raise UserError(f"{folder}: holds {what}, but no checkpoint to continue from; choose another run.name{again}")
    if resume == "auto" or (own and not overwrite and _has_resumed(own, resume, folder)):
        return own
    path = Path(resume).expanduser()
    others = [path] if is_commit(path) else find_commits(path / "checkpoints")[::-1]
    if not others:
        raise UserError(f"run.resume: {path}: {_describe_no_commit(path)}")
    return others


def _describe_no_commit(path: Path) -> str:
    """Return why a run cannot start from `path`, and the nearest path that it can start from."""
    what = "holds no checkpoint" if path.exists() else "does not exist"
    for run in (path, *path.parents):
        if commits := find_commits(run / "checkpoints"):
            nearest = next((commit for commit in commits if commit.name == misspelt(path.name, _names(commits))), None)
            return f"{what}; give {nearest or f'{run} (its newest checkpoint is {commits[-1]})'}"
    siblings = [other for other in path.parent.glob("*") if find_commits(other / "checkpoints")]
    if guess := did_you_mean(path.name, _names(siblings)):
        return f"{what}; did you mean {path.parent / guess}?"
    return f"{what}; give the folder of a run, or one of its checkpoints/step-…; other choices are auto, never"


def _names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def _find_result(folder: Path) -> str | None:
    """Return what a run has left that must not be overwritten, in words. Steps of the first epoch do not count."""
    if read_status(folder).get("state") == "finished":
        return "a finished run"
    if (folder / WEIGHTS).exists():
        return f"the {WEIGHTS} of a run"
    lines = read_lines(folder / "metrics.jsonl")
    return "the metrics of a run" if any(line.get("event") == "epoch" for line in lines) else None


def _is_inside(resume: str, folder: Path) -> bool:
    return resume != "auto" and Path(resume).expanduser().resolve().is_relative_to(folder.resolve())


def _has_resumed(commits: list[Path], resume: str, folder: Path) -> bool:
    """Return whether the run in `folder` has already started from `resume`, and so continues from its own `commits`.

    A commit of another run is only a start. The run goes back to a commit of its own once, as recorded in its newest
    commit that can be read.
    """
    if not _is_inside(resume, folder):
        return True
    for commit in commits:
        try:
            return json.loads(read_file(commit, "state.json"))["config"]["run"]["resume"] == redacted(resume)
        except (UserError, ValueError, LookupError, TypeError):  # damaged
            continue
    return False


def clear(folder: Path, start: Start) -> None:
    """Remove what a run from scratch would overwrite, or the commits after the one to continue from."""
    if start.clears:
        remove_run(folder)
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
    remedy = ", or choose another run.name"
    if start.of_other_run:
        config = start.counters["config"]
        remedy = f"; {take_weights(start.commit, config['model']['name'], config.get('adversarial') is not None)}"
    raise UserError(f"the images have changed since {start.commit}: {change}; put them back{remedy}")
