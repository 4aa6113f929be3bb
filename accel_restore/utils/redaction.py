"""Keep secrets, and paths, out of files: keys and tokens of the environment, logins in URLs, tokens by their form."""

import os
import re
from pathlib import Path
from typing import Any

HIDDEN = "***"
_LEAST = 8  # characters; shorter values are words that stand elsewhere too
_NAMES = r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)S?(?:_?\d+)?"
_SECRET_VARIABLE = re.compile(_NAMES + "$", re.IGNORECASE)
# As the key of a configuration, `key` alone is an ordinary word, of attention for one.
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
    """`value`, a string or a tree of mappings and lists, in which `***` stands for every secret.

    Secrets are the values of environment variables that are called keys, tokens, secrets or passwords; logins and
    signatures in URLs; tokens of known forms; and in mappings what stands below such a key. Numbers are left alone.
    """
    return _redacted(value, _of_environment())


def without_paths(tree: Any) -> Any:
    """The tree without secrets and with no path of a machine: of an absolute one, the last folder's or file's name.

    Of a pattern such as /mnt/shots/{}_real.JPG, what has the braces stays too: shots/{}_real.JPG.
    """
    return _without_paths(redacted(tree))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if not _ABSOLUTE.match(value):
        return value.replace(str(Path.home()), "~") if Path.home() != Path("/") else value
    parts = [part for part in re.split(r"[\\/]+", value) if part and not part.endswith(":")]
    first = next((place for place, part in enumerate(parts) if re.search(r"[{*?]", part)), len(parts))
    base = [part for part in parts[max(0, first - 1) : first] if part not in ("~", "..", Path.home().name)]
    return "/".join([*base, *parts[first:]]) or "data"


def _of_environment() -> list[str]:
    """The environment's secrets, the longest first, as one may be part of another."""
    values = {value.strip() for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    return sorted((value for value in values if len(value) >= _LEAST), key=len, reverse=True)


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
    """Whether a mapping's key says that its text is a secret; of models, `token` alone may be an ordinary word."""
    if not (isinstance(key, str) and isinstance(item, str) and _SECRET_KEY.match(key.lower())):
        return False
    return len(item) >= 2 * _LEAST and any(map(str.isdigit, item)) if "token" in key.lower() else len(item) >= _LEAST
