"""The home folder and the folder for caches."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from accel_restore.data.cache_folder import default_cache
from accel_restore.errors import UserError
from accel_restore.utils.places import home, use_writable_caches, user_cache
from accel_restore.utils.redaction import without_paths


def _unknown(uid):
    raise KeyError(uid)


@pytest.fixture(params=["no home", "a file", "a folder below a file"])
def unusable_home(request, monkeypatch, tmp_path):
    """Make the home folder unusable; return the folder that replaces it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    monkeypatch.delenv("XDG_CONFIG_HOME")  # set first, so that its value is restored
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    if request.param == "no home":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(pwd, "getpwuid", _unknown)
    else:
        monkeypatch.setenv("HOME", str(tmp_path / "file" / ("x" if "below" in request.param else "")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"accel-restore-{os.getuid()}"


def test_caches_are_in_the_temporary_folder_without_a_usable_home(unusable_home, monkeypatch):
    assert user_cache() == unusable_home and default_cache() == unusable_home / "accel_restore"
    assert unusable_home.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("MPLCONFIGDIR", str(unusable_home.parent / "file"))
    use_writable_caches()
    assert os.environ["MPLCONFIGDIR"] == str(unusable_home / "matplotlib")
    assert os.environ["XDG_CACHE_HOME"] == str(unusable_home) and not Path("~").exists()
    assert os.environ["XDG_CONFIG_HOME"] == str(unusable_home / "config")


def test_paths_are_redacted_without_a_home(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", _unknown)
    assert home() is None
    assert without_paths({"gt": "/mnt/photos/{}.png", "model": "unet"}) == {"gt": "photos/{}.png", "model": "unet"}


def test_a_home_that_can_be_written_is_used_and_the_environment_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    use_writable_caches()
    assert user_cache() == tmp_path / ".cache" and "XDG_CACHE_HOME" not in os.environ


def test_a_temporary_folder_of_another_user_is_refused(unusable_home):
    unusable_home.mkdir()
    os.chown(unusable_home, 12345, -1) if os.getuid() == 0 else pytest.skip("needs root")
    with pytest.raises(UserError, match="belongs to another user; set XDG_CACHE_HOME"):
        user_cache()
