"""What is wrong with a configuration, and its values."""

import pytest

from accel_restore.config.load import config_from
from accel_restore.errors import UserError

LEAST = {"data": {"train": {"gt": "photos"}}}


def problems(*overrides: str, **sections: dict) -> list[str]:
    """Return the lines of the configuration's error, without the title."""
    with pytest.raises(UserError) as caught:
        config_from({**LEAST, **sections}, overrides)
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def value_at(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config
