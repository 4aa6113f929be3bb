"""Callbacks as a user writes them, for trainings in processes of their own."""

import os

from accel_restore import Callback


class OnRank(Callback):
    """Raises (`what: raise`) or asks to stop (`what: stop`) in a method on some ranks, at a step or later."""

    def __init__(self, what: str, method: str, ranks: list[int], step: int = 1):
        self.what, self.method, self.step = what, method, step
        self.is_here = int(os.environ.get("RANK", "0")) in ranks

    def _act(self, method, state):
        if self.is_here and method == self.method and state.step >= self.step:
            if self.what == "raise":
                raise ValueError("too hot")
            state.stop("it is late")

    def on_step(self, state):
        self._act("on_step", state)

    def on_validation_image(self, state, index, input, output, gt):
        self._act("on_validation_image", state)

    def on_epoch(self, state, record):
        self._act("on_epoch", state)

    def on_exit(self, state, error):
        print(f"on_exit on rank {os.environ.get('RANK', '0')} of {self.what}", flush=True)
        self._act("on_exit", state)


class WholeModel(Callback):
    """Raises if a sharded run holds the whole model outside of validation, or lacks it there."""

    def _memory(self, state):
        return sum(tensor.untyped_storage().nbytes() for tensor in state.full_copy.state_dict().values())

    def on_step(self, state):
        assert self._memory(state) == 0

    def on_validation_image(self, state, index, input, output, gt):
        assert self._memory(state) > 0
