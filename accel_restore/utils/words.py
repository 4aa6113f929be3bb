"""Words of messages."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 epoch", "2 epochs"."""
    return f"{number} {noun}{'s' * (number != 1)}"
