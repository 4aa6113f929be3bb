"""The home folder and the folder for caches; a user may have no home, or one that is read-only."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from accel_restore.errors import UserError


def home() -> Path | None:
    """Return the home folder, or None if the user has none."""
    with suppress(RuntimeError):
        return Path.home()
    return None


def user_cache() -> Path:
    """Return `$XDG_CACHE_HOME` or `~/.cache`; if neither can be written, `accel-restore-UID` in the temporary folder.

    Raises: UserError if that folder belongs to another user.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    places = [named] if named.is_absolute() else []  # the specification ignores a relative path
    if (own := home()) is not None:
        places.append(own / ".cache")
    for place in places:
        if can_write(place):
            return place
    folder = Path(tempfile.gettempdir()) / f"accel-restore-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set XDG_CACHE_HOME to a folder for caches")
    return folder


def can_write(folder: Path) -> bool:
    """Return whether files can be written into a folder, which is created if that is possible."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    return False


def use_writable_caches() -> None:
    """Make libraries use `user_cache`. Without a home they would create a folder named `~`, or warn at every import."""
    cache = str(user_cache())
    if cache != (os.environ.get("XDG_CACHE_HOME") or str((home() or Path("~")) / ".cache")):
        os.environ["XDG_CACHE_HOME"] = cache
        os.environ.setdefault("XDG_CONFIG_HOME", str(Path(cache, "config")))
    if (named := os.environ.get("MPLCONFIGDIR")) and not can_write(Path(named)):
        os.environ["MPLCONFIGDIR"] = str(Path(cache, "matplotlib"))
