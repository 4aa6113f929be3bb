"""Counts what would make a step wait for a GPU: reads of tensor values by Python. Here the tensors are on the CPU."""

import json
import threading
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from accel_restore import engine
from accel_restore.state import Callback

READING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default}


class Reads(TorchDispatchMode):
    """Counts the reads of the main thread per step."""

    def __init__(self):
        super().__init__()
        self.counts, self.before_step, self.step = Counter(), {}, 1
        for name in ("tolist", "numpy", "cpu"):
            setattr(torch.Tensor, name, self.counted(getattr(torch.Tensor, name)))

    def counted(self, read):
        def counting(*arguments, **named):
            self.count()
            return read(*arguments, **named)

        return counting

    def count(self):
        if threading.current_thread() is threading.main_thread():
            self.counts[self.step] += 1

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function in READING:
            self.count()
        return function(*arguments, **(named or {}))


class Steps(Callback):
    """The last hook: reads after it belong to the next step."""

    def __init__(self, reads):
        self.reads = reads

    def on_step(self, state):
        self.reads.step = state.step + 1


def write_counts(file: Path) -> None:
    """Make training write, as JSON, the reads of each step of its last epoch: all, and those before
    `optimizer.step`."""
    reads, original = Reads(), engine.train_epoch

    def train_epoch(state, steps, loss_fn, accelerator, callbacks=(), max_grad_norm=None):
        reads.counts.clear()
        step = state.optimizer.step

        def noting(*arguments, **named):
            reads.before_step[reads.step] = reads.counts[reads.step]
            return step(*arguments, **named)

        state.optimizer.step = noting
        with reads:
            result = original(state, steps, loss_fn, accelerator, [*callbacks, Steps(reads)], max_grad_norm)
        state.optimizer.step = step
        file.write_text(json.dumps({"all": reads.counts, "before_step": reads.before_step}), encoding="utf-8")
        return result

    engine.train_epoch = train_epoch
