"""Starts training as train.py does, with what the environment variable RUN_TEST_MODE asks for added.

float64: all computation in float64. Other modes violate the flow of weights on purpose, for the audit to notice.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)

import torch

from accel_restore import engine, train


def violate(mode: str) -> None:
    """Break a rule of the flow from inside the loop."""

    class Culprit(engine.Hook):
        def after_step(self, state: engine.TrainState) -> None:
            if mode == "scheduler_per_batch":
                state.scheduler.step()
            elif mode == "weights_outside_step":
                self.perturb(state)
            elif mode == "perturbed_rank" and state.step == 3 and os.environ.get("RANK") == "1":
                # inside optimizer.step, where a change of weights is allowed: only comparing ranks can tell
                step = state.optimizer.optimizer.step

                def step_and_perturb(*arguments: object, **named: object) -> None:
                    step(*arguments, **named)
                    self.perturb(state)

                state.optimizer.optimizer.step = step_and_perturb

        @staticmethod
        def perturb(state: engine.TrainState) -> None:
            with torch.no_grad():
                next(state.model.parameters()).view(-1)[0].add_(1e-3)

    original = engine.train_epoch

    def train_epoch(state, steps, loss_fn, accelerator, hooks=(), max_grad_norm=None):
        return original(state, steps, loss_fn, accelerator, [*hooks, Culprit()], max_grad_norm)

    engine.train_epoch = train_epoch


mode = os.environ["RUN_TEST_MODE"]
if mode == "float64":
    torch.set_default_dtype(torch.float64)
else:
    violate(mode)
sys.exit(train.main())
