"""Keep secrets and paths out of files: keys and tokens of the environment, logins in URLs, tokens of known forms."""

import os
import re
from pathlib import Path
from typing import Any

from accel_restore.utils.places import home

HIDDEN = "***"
_MIN_LENGTH = 8  # characters; shorter values are often ordinary words
_NAMES = r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)S?(?:_?\d+)?"
_SECRET_VARIABLE = re.compile(_NAMES + "$", re.IGNORECASE)
# A configuration key may be just `key`, as in attention, without a secret.
_SECRET_KEY = re.compile(r"(?:^|.*[_-])(?:(?:api|access|secret|private|auth)[_-]?key|token|secret|password|passwd)$")
_FORMS = [
    (re.compile(r"(?<=://)[^/\s?#]+@"), f"{HIDDEN}@"),
    (re.compile(rf"([?&][\w.-]*(?:{_NAMES}|sig|signature)=)[^&#\s]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"\b(?:hf_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|wandb_v1_\w{16,}|sk-[\w-]{16,}"
            r"|(?:AKIA|ASIA)[0-9A-Z]{16}|xox[abeoprs]-[\w-]{10,})"
        ),
        HIDDEN,
    ),
]
_ABSOLUTE = re.compile(r"(?:file:/+|~|/|\\\\|[A-Za-z]:[\\/]|\.\.[\\/])")


def redacted(value: Any) -> Any:
    """Return `value`, a string or a tree of mappings and lists, with `***` in place of each secret.

    Secrets are: values of environment variables whose names end in key, token, secret or password; logins and
    signatures in URLs; tokens of known forms; and strings under such keys in mappings. Numbers do not change.
    """
    return _redacted(value, _of_environment())


def without_paths(tree: Any) -> Any:
    """Return the tree without secrets, and with absolute paths shortened to the name of their last folder or file.

    A pattern also keeps every part from its first `{`, `*` or `?` on: /mnt/shots/{}_real.JPG becomes shots/{}_real.JPG.
    """
    return _without_paths(redacted(tree))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    own = home()
    if not _ABSOLUTE.match(value):
        return value.replace(str(own), "~") if own not in (None, Path("/")) else value
    parts = [part for part in re.split(r"[\\/]+", value) if part and not part.endswith(":")]
    first = next((place for place, part in enumerate(parts) if re.search(r"[{*?]", part)), len(parts))
    base = [part for part in parts[max(0, first - 1) : first] if part not in ("~", "..", own.name if own else "")]
    return "/".join([*base, *parts[first:]]) or "data"


def _of_environment() -> list[str]:
    """Return the secrets of the environment, longest first, because one may contain another."""
    values = {value.strip() for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    return sorted((value for value in values if len(value) >= _MIN_LENGTH), key=len, reverse=True)


def _redacted(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            _redacted(key, secrets): HIDDEN if _hides(key, item) else _redacted(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(item, secrets) for item in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    for form, replacement in _FORMS:
        value = form.sub(replacement, value)
    return value


def _hides(key: Any, item: Any) -> bool:
    """Return whether a mapping's key marks its string as a secret; `token` is also an ordinary word in models."""
    if not (isinstance(key, str) and isinstance(item, str) and _SECRET_KEY.match(key.lower())):
        return False
    if "token" in key.lower():
        return len(item) >= 2 * _MIN_LENGTH and any(map(str.isdigit, item))
    return len(item) >= _MIN_LENGTH
