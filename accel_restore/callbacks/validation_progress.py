"""The callback that shows how far a validation has come."""

from torch import Tensor

from accel_restore.state import Callback, TrainState
from accel_restore.tracking.console import Console


class ValidationProgress(Callback):
    """Shows "validating 3/20" in place of the values of training; it assumes that all ranks are equally fast."""

    def __init__(self, console: Console, images: int, world_size: int):
        self.console, self.images, self.world_size = console, images, world_size
        self.scored = 0  # by this rank

    def on_validation_start(self, state: TrainState) -> None:
        self.scored = 0
        self.console.validating(0, self.images)

    def on_validation_image(self, state: TrainState, index: int, input: Tensor, output: Tensor, gt: Tensor) -> None:
        self.scored += 1
        self.console.validating(min(self.scored * self.world_size, self.images), self.images)

    def on_validation(self, state: TrainState) -> None:
        self.console.validated()
