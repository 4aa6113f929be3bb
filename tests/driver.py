"""Starts training as train.py does, with what the environment variable RUN_TEST_MODE asks for added.

float64: all computation in float64. kill:N: every rank kills itself right after step N. blind:R: rank R does not see
the first image. The other modes violate the flow of weights on purpose, for the audit to notice.
"""

import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)

import torch

from accel_restore import engine, train
from accel_restore.data import sources


class Culprit(engine.Hook):
    """Does what the mode says, from inside the loop."""

    def __init__(self, mode: str):
        self.mode = mode

    def after_step(self, state: engine.TrainState) -> None:
        if self.mode == "scheduler_per_batch":
            state.scheduler.step()
        elif self.mode == "weights_outside_step":
            perturb(state)
        elif self.mode == "perturbed_rank" and state.step == 1 and os.environ.get("RANK") == "1":
            # inside optimizer.step, where weights may change: only a comparison of the ranks can tell
            step = state.optimizer.optimizer.step

            def step_and_perturb(*arguments: object, **named: object) -> None:
                step(*arguments, **named)
                perturb(state)

            state.optimizer.optimizer.step = step_and_perturb
        elif self.mode == f"kill:{state.step}":
            os.kill(os.getpid(), signal.SIGKILL)


def perturb(state: engine.TrainState) -> None:
    with torch.no_grad():
        next(state.model.parameters())[0].add_(1e-3)


def add_hook(hook: engine.Hook) -> None:
    original = engine.train_epoch

    def train_epoch(state, steps, loss_fn, accelerator, hooks=(), max_grad_norm=None):
        return original(state, steps, loss_fn, accelerator, [*hooks, hook], max_grad_norm)

    engine.train_epoch = train_epoch


mode = os.environ["RUN_TEST_MODE"]
if mode == "float64":
    torch.set_default_dtype(torch.float64)
elif mode == f"blind:{os.environ.get('RANK')}":
    find_pairs = sources.find_pairs
    sources.find_pairs = lambda *given: (find_pairs(*given)[0][1:], [])
else:
    add_hook(Culprit(mode))
sys.exit(train.main())
