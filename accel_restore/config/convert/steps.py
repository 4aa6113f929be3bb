"""Iterations of an option file in epochs: an epoch is as long as the time between two validations."""

from accel_restore.config.convert.draft import Draft


class Steps:
    """The length of an epoch in steps, and the rounding of other numbers of steps to it."""

    def __init__(self, length: int):
        self.length = length
        self.rounded: list[int] = []  # numbers of steps that are no multiple of an epoch

    def epochs(self, steps: int, least: int = 0) -> int:
        """Return the whole number of epochs nearest to a number of steps, but at least `least`."""
        epochs, rest = divmod(steps, self.length)
        if rest or epochs < least:
            self.rounded.append(steps)
        return max(least, epochs + (2 * rest >= self.length))

    def explain(self, draft: Draft, option: str, steps: list[int], epochs: list[int]) -> None:
        """Comment on an option whose numbers of steps are not whole epochs."""
        if all(count == epoch * self.length for count, epoch in zip(steps, epochs, strict=True)):
            return
        exact = ", ".join(f"{count / self.length:g}" for count in steps)
        shown = ", ".join(map(str, epochs))
        draft.change(option, f"is {exact} epochs of {self.length} steps, rounded to {shown}")
