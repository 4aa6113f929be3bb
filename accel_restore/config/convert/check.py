"""Make a draft valid: options whose values the configuration refuses become comments."""

from pathlib import Path

from pydantic import ValidationError

from accel_restore.config.convert.data import PLACEHOLDER
from accel_restore.config.convert.draft import Draft
from accel_restore.config.convert.losses import NO_LOSS
from accel_restore.config.explain import explain
from accel_restore.config.safe_yaml import plain_copy
from accel_restore.config.schema import Config
from accel_restore.errors import UserError


def settle(draft: Draft, where: str) -> Config:
    """Return the checked configuration of a draft, without the keys that it refuses.

    Raises: UserError if an option that is needed has an invalid value.
    """
    while True:
        try:
            return Config.model_validate(plain_copy(draft.config, where))
        except ValidationError as error:
            lines = [line for detail in error.errors() for line in explain(detail)]
        dropped = [line for line in lines if _drop(draft, line)]
        if not dropped:
            raise UserError(f"{where}: cannot be converted: {'; '.join(lines)}")


def _drop(draft: Draft, line: str) -> bool:
    """Remove the key that a line of `explain` starts with; return whether it came from an option."""
    key, _, problem = line.partition(": ")
    named = [target for target in draft.origins if f"{key}.".startswith(f"{target}.")]
    if not named or key.startswith("data.train") or not draft.origins[max(named, key=len)]:
        return False
    draft.drop(max(named, key=len), problem)
    if key.startswith("loss.") and "loss" not in draft.config:
        draft.changes.append(NO_LOSS)
    return True


def missing_files(config: Config) -> list[str]:
    """Return what the configuration names and this machine does not have, as `key: path`."""
    sources = {"data.train": config.data.train, "data.val": config.data.val}
    named: dict[str, str | list[str] | None] = {
        f"{key}.{side}": getattr(source, side) for key, source in sources.items() if source for side in ("input", "gt")
    }
    named["model.checkpoint"] = config.model.checkpoint
    if config.adversarial is not None:
        named["adversarial.discriminator.checkpoint"] = config.adversarial.discriminator.checkpoint
    listed = {key: [places] if isinstance(places, str) else places or [] for key, places in named.items()}
    pairs = [(key, place) for key, places in listed.items() for place in places]
    return [f"{key}: {place}" for key, place in pairs if place != PLACEHOLDER and not _exists(place)]


def _exists(place: str) -> bool:
    """Return whether a path exists; of a pattern, the folder before its first part with a wildcard."""
    path = Path(place).expanduser()
    while set(str(path)) & set("{*?["):
        path = path.parent
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False
