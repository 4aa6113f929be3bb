"""A list of problems has one line each, whatever the names of files hold."""

import pytest

from accel_restore.errors import UserError, raise_problems


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x85", "\u2028", "\t"])
def test_a_control_character_in_a_name_is_escaped(character):
    with pytest.raises(UserError) as raised:
        raise_problems("2 problems", [f"a{character}b.png: is damaged", "Ä é 日.png: is damaged"])
    lines = str(raised.value).splitlines()
    escaped = character.encode("unicode_escape").decode()
    assert lines == ["2 problems", f"  - a{escaped}b.png: is damaged", "  - Ä é 日.png: is damaged"]
