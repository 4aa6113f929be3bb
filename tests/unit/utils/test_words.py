"""Words of messages."""

from accel_restore.utils.words import counted


def test_one_of_a_thing_is_named_in_the_singular():
    assert [counted(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
