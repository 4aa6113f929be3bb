"""Compare the configuration of a run with that of the commit it continues from: which keys may change."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accel_restore import __version__
from accel_restore.checkpoint.commits import read_manifest
from accel_restore.config.keys import is_key
from accel_restore.config.schema import Config
from accel_restore.config.stored import with_new_keys
from accel_restore.errors import raise_problems
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.optim.schedules import OPEN_ENDED
from accel_restore.utils.redaction import HIDDEN, redacted
from accel_restore.utils.words import counted

# Sections and keys that a resumed run may change. Those in _BATCH may change as long as the global batch stays equal.
_FREE = (
    "callbacks", "tracking", "checkpoint", "run.dir", "run.name", "run.resume", "validation.num_samples",
    "validation.batch_size", "data.cache", "data.cache_dir", "data.num_threads", "data.max_image_pixels",
    "data.preview", "train.max_skipped_steps", "train.check_ranks_every_steps", "train.rank_timeout",
    "train.checkpoint_blocks", "train.early_stopping",
    "train.mixed_precision",  # the precision in use is compared, which `auto` chooses by the hardware
)  # fmt: skip
# What these keys name is compared, not how it is spelled: the same images may be in another folder.
_SOURCES = re.compile(r"data\.(train|val)((\.[\w-]+)?\.(input|gt|dataset|split|subset|root|recursive)(\.\d+)?)?")
_BATCH = re.compile(
    r"train\.(gradient_accumulation_steps|global_batch_size)|data\.(stages\.\d+\.)?(batch_size|global_batch_size)"
)
# A missing argument has its default, which may be another value than null.
_ARGUMENTS = re.compile(
    r"(model|loss|(adversarial\.)?(optimizer|scheduler|discriminator)|data\.((train|val)\.([\w-]+\.)?)?degradation)\..*"
)
_STOPPERS = ("train.early_stopping", "callbacks")  # once they change, a run that they have stopped continues
_LENGTH = ("train.epochs", "train.max_steps")
_WEIGHTS = (WEIGHTS, "ema.safetensors", "model.safetensors")  # in a commit; the best ones first
_DISCRIMINATOR = "discriminator.safetensors"
_MISSING = object()


def take_weights(commit: Path, model: str | None, is_adversarial: bool = False) -> str:
    """Return the advice to start a run from the weights of a commit alone, in place of continuing from it.

    `model` is the name of the commit's model. It is needed next to the arguments of a model in the configuration.
    A run with a discriminator takes the commit's discriminator too.
    """
    names = read_manifest(commit)["files"]
    keys = f"model.checkpoint={commit / next(name for name in _WEIGHTS if name in names)}"
    if model:
        keys += f" model.name={model}"
    if is_adversarial and _DISCRIMINATOR in names:
        keys += f" adversarial.discriminator.checkpoint={commit / _DISCRIMINATOR}"
    return f"to start at step 0 from its weights alone, give {keys} in place of run.resume"


class Comparison:
    """The configuration of a run next to that of the commit it continues from."""

    def __init__(self, config: Config, counters: dict[str, Any], overrides: list[str], precision: str):
        """`overrides` are those of the command line; `precision` is the mixed precision in use."""
        self.config, self.counters, self.precision = config, counters, precision
        self.then = _flat(with_new_keys(counters["config"]))
        self.now = _flat(redacted(config.model_dump(mode="json")))
        self.sets_length = any(override.startswith(tuple(f"{key}=" for key in _LENGTH)) for override in overrides)

    @property
    def is_finished(self) -> bool:
        """Whether the commit ends a run of this length.

        If the run was stopped early, the settings that may have stopped it (`_STOPPERS`) must be unchanged too.
        """
        same_length = all(self.then.get(key) == self.now[key] for key in _LENGTH)
        if self.counters.get("stopped") is not None:
            stoppers = [key for key in self.then | self.now if key.startswith(_STOPPERS)]
            same_length = same_length and all(self.then.get(key) == self.now.get(key) for key in stoppers)
        return same_length and self.counters["epoch"] >= self.counters["epochs"]

    def describe_cut(self) -> str | None:
        """Return why a longer run cannot continue from the commit, if it ends an epoch that `max_steps` cut short.

        Validation and schedule have counted that epoch, but the longer run has more steps in it.
        """
        length, completed = self.config.train.steps_per_epoch, self.counters["epoch"]
        if length is None or self.is_finished:
            return None
        missing = completed * length - (self.counters["step"] - self.counters["epoch_step"])
        if missing <= 0:
            return None
        return f"train.max_steps cut epoch {completed} short by {counted(missing, 'step')}, which a longer run makes"

    @property
    def other_sources(self) -> bool:
        """Whether the configuration names the images in another way than the commit's."""
        then, now = ({k: v for k, v in flat.items() if _SOURCES.fullmatch(k)} for flat in (self.then, self.now))
        return then != now

    def check_own(self, folder: Path, or_again: str) -> None:
        """Raise `UserError` if the run in `folder` cannot continue; `or_again` may advise --overwrite."""
        differences, another = self._differences(), f"choose another run.name{or_again}"
        self._refuse_lost_keys(f"{folder}: the run", folder, f", or {another}", differences)
        raise_problems(f"{folder}: the run has another configuration; restore these keys, or {another}", differences)

    def check_other(self, commit: Path) -> None:
        """Raise `UserError` if a new run cannot continue from the commit of another run."""
        differences = self._differences()
        fits = not any(line.startswith("model.") for line in differences)
        advice = f"; {take_weights(commit, self.now.get('model.name'), self._is_adversarial(self.now))}" if fits else ""
        self._refuse_lost_keys(f"run.resume: {commit}", commit.parent.parent, advice, differences)
        raise_problems(
            f"run.resume: only a run with the same settings can continue from {commit}; restore these keys{advice}",
            differences,
        )

    def _refuse_lost_keys(self, what: str, folder: Path, advice: str, differences: list[str]) -> None:
        """Raise `UserError` if the run in `folder` used keys that this version lacks: they cannot be restored."""
        if any(self._differs(key) and not self._is_key(key) for key in self.then):
            version = _read_version(folder)
            name = f" ({version})" if version not in (None, __version__) else ""
            raise_problems(
                f"{what} uses keys that this version of accel_restore ({__version__}) does not have; continue with the "
                f"version that wrote it{name}{advice}",
                differences,
            )

    def _differences(self) -> list[str]:
        keys: Iterable[str] = self.then | self.now
        was, is_now = self._is_adversarial(self.then), self._is_adversarial(self.now)
        refused = []
        if was != is_now:
            sides = ("set", "not set") if was else ("not set", "set")
            refused.append("adversarial: the section is {} in the commit, and {} now".format(*sides))
            keys = [key for key in keys if key.partition(".")[0] != "adversarial"]
        refused += [self._describe(key) for key in keys if self._differs(key)]
        stored = self.counters["precision"]
        if stored != self.precision:
            refused.append(
                f"mixed precision in use: {stored} in the commit, {self.precision} now; give "
                f"train.mixed_precision={stored}"
            )
        train = self.config.train
        wanted = [stage.global_batch_size or train.global_batch_size for stage in self.config.data.stages]
        for held, asked in zip(self.counters["global_batches"], [*wanted, train.global_batch_size], strict=False):
            if asked is not None and asked != held:
                refused.append(f"global batch: {held} in the commit, {asked} now")
        return refused

    @staticmethod
    def _is_adversarial(flat: dict[str, Any]) -> bool:
        return any(key.startswith("adversarial.") for key in flat)

    def _differs(self, key: str) -> bool:
        unset = _MISSING if _ARGUMENTS.fullmatch(key) else None
        then, now = self.then.get(key, unset), self.now.get(key, unset)
        if then == now or _BATCH.fullmatch(key) or key.startswith(_FREE):
            return False
        if _SOURCES.fullmatch(key) and all("content" in facts for facts in self.counters["data"].values()):
            return False  # the images themselves are compared; commits of older versions have no digests of them
        if str(then).count(HIDDEN) != str(now).count(HIDDEN):
            return False  # a secret of the environment was added or removed: the rest cannot be compared
        return not (key in _LENGTH and self._may_lengthen(then, now))

    def _may_lengthen(self, then: Any, now: int | None) -> bool:
        longer = then is None or now is None or (isinstance(then, int) and now > then)  # a file may contain anything
        return longer and (self.sets_length or self.config.scheduler.name in OPEN_ENDED)

    def _is_key(self, key: str) -> bool:
        """Return whether this version has a key of the commit."""
        places = key.split(".")
        sections = (".".join(places[:count]) for count in range(len(places) - 1, 0, -1))
        name = next((self.then[f"{section}.name"] for section in sections if f"{section}.name" in self.then), None)
        return is_key(key, by_path=":" in str(name))

    def _describe(self, key: str) -> str:
        then, now = self.then.get(key, "unset"), self.now.get(key, "unset")
        if not self._is_key(key):
            return f"{key}: {then} in the commit; this version does not have the key"
        text = f"{key}: {then} in the commit, {now} now"
        if (section := key.partition(".")[0]) in self.counters.get("objects", ()):
            text += f"; give fit the {section} of the commit as an object again"
        if key in _LENGTH and isinstance(then, int) and isinstance(now, int) and then < now:
            text += f"; to train longer, give {key}={now} on the command line"
        return text


def _read_version(folder: Path) -> str | None:
    """Return the version of accel_restore that plan.json names."""
    try:
        return f"{json.loads((folder / 'plan.json').read_bytes())['versions']['accel_restore']:.20}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by their dotted keys."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        tree = {str(place): item for place, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, item in tree.items() for key, value in _flat(item, f"{prefix}.{name}".lstrip(".")).items()
    }
