"""Starts training as train.py does, modified by the modes in the environment variable RUN_TEST_MODE.

The modes, separated by commas:

float64: all computation in float64. kill:N: every rank kills itself right after step N. blind:R: rank R does not see
the first image. searches:M: print which rank searches for images, on M machines. backend: print the distributed
backend. patient: W&B has unlimited time. outputs=FOLDER: save the inputs of the losses there. acknowledge=FILE: append
the step of each commit. report: write report.html after every epoch. gate=FOLDER: see `Gate`. without=PART: disable a
protection. fsdp2[@POLICY], as_gpus: see `sharded`. waits=FILE: see `waits`.

FAULT@R:N: a fault below, on rank R at step N, in a launcher's first attempt only.

The other modes change weights where they must not change, so that the audit reports it.
"""

import hashlib
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    sys.path.insert(1, str(Path(__file__).parent))

import hosts
import phases
import sharded
import torch
import waits
import wandb_scenarios

from accel_restore import engine, losses, train
from accel_restore.callbacks import checkpointer as saving
from accel_restore.callbacks import replica_check
from accel_restore.checkpoint import commits, run_lock
from accel_restore.data import loader
from accel_restore.data import scan as sources
from accel_restore.data.manifest import Scan
from accel_restore.data.pairs import Pairs
from accel_restore.distributed import accelerator as distributed
from accel_restore.distributed import heartbeat as ranks
from accel_restore.distributed import machine
from accel_restore.losses import perceptual
from accel_restore.optim import adversary
from accel_restore.state import Callback, TrainState
from accel_restore.tracking import console, drawings
from accel_restore.trainer import run as session
from accel_restore.trainer import setup as preparation


class Culprit(Callback):
    """Carries out a mode from inside the training loop."""

    def __init__(self, mode: str):
        self.mode = mode

    def on_step(self, state: TrainState) -> None:
        if self.mode == "warn":
            warnings.warn("as a library does", stacklevel=1)
        elif self.mode == "scheduler_per_batch":
            state.scheduler.step()
        elif self.mode == "weights_outside_step":
            perturb(state.model)
        elif self.mode == "discriminator_outside_step":
            perturb(state.adversary.model)
        elif self.mode == "perturbed_rank" and state.step == 1 and os.environ.get("RANK") == "1":
            # inside optimizer.step, where weights may change: only comparing the ranks reveals this
            step = state.optimizer.optimizer.step

            def step_and_perturb(*arguments: object, **named: object) -> None:
                step(*arguments, **named)
                perturb(state.model)

            state.optimizer.optimizer.step = step_and_perturb
        elif self.mode == f"kill:{state.step}":
            os.kill(os.getpid(), signal.SIGKILL)


class Fault(Callback):
    """A fault on one rank after one step; `slow` acts after every step."""

    def __init__(self, name: str, step: int):
        self.name, self.step = name, step
        self.woke: float | None = None

    def on_step(self, state: TrainState) -> None:
        if self.name == "slow":  # several times the duration of a step, on any machine
            took = 0.0 if self.woke is None else time.monotonic() - self.woke
            time.sleep(min(max(0.05, 3 * took), 2.0))
            self.woke = time.monotonic()
        if state.step != self.step:
            return
        if self.name == "raise":
            raise ValueError("a fault that the test has made")
        if self.name == "flip":
            perturb(state.model)
        if self.name == "discriminator_flip":
            perturb(state.adversary.model)
        if self.name == "stall":
            threading.Event().wait()  # its other threads continue
        number = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "term": signal.SIGTERM}.get(self.name)
        if number is not None:
            os.kill(os.getpid(), number)


class Gate(Callback):
    """The main process creates the file at-STEP after each step, once the commit of that step, if any, is written.

    All ranks wait while a file hold-STEP exists.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        commit = saving.Checkpointer.commit

        def commit_and_wait(checkpointer, state):
            commit(checkpointer, state)
            checkpointer.wait()

        saving.Checkpointer.commit = commit_and_wait

    def on_step(self, state: TrainState) -> None:
        if os.environ.get("RANK", "0") == "0":
            (self.folder / f"at-{state.step}").touch()
        while (self.folder / f"hold-{state.step}").exists():
            time.sleep(0.01)


def perturb(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters())[0].add_(1e-3)


def add_hook(callback: Callback) -> None:
    original = engine.train_epoch

    def train_epoch(state, steps, loss_fn, accelerator, callbacks=(), max_grad_norm=None):
        return original(state, steps, loss_fn, accelerator, [*callbacks, callback], max_grad_norm)

    engine.train_epoch = train_epoch


def spoil_losses(first: int, last: int, value: float) -> None:
    """Set the loss of the first sample of a batch to `value` in training steps `first` to `last`."""
    state_of, call = {}, losses.Loss.terms
    original = engine.train_epoch

    def train_epoch(state, *arguments):
        state_of["now"] = state
        try:
            return original(state, *arguments)
        finally:
            state_of.clear()

    def terms(self, output, gt):
        values = call(self, output, gt)
        # A step that is computed again, to find the reason, is already counted.
        step = state_of["now"].step + torch.is_grad_enabled() if state_of else 0
        if first <= step <= last:
            # Adding it keeps the gradient finite, so that only the guard stops the step.
            spoilt = torch.zeros(len(output), device=output.device)
            spoilt[0] = value
            values = {name: each + spoilt for name, each in values.items()}
        return values

    engine.train_epoch, losses.Loss.terms = train_epoch, terms


def spoil_gradients(step: int) -> None:
    """Make one gradient of this rank infinite in step `step`, though all losses are finite."""
    backward = engine.Accelerator.backward

    count = {"steps": 0}

    def spoiled(self, loss, **named):
        count["steps"] += 1
        if count["steps"] == step:
            loss = loss * torch.tensor(1e38, dtype=loss.dtype).square()  # the value is not checked after this
        backward(self, loss, **named)

    engine.Accelerator.backward = spoiled


def keep_outputs(folder: Path) -> None:
    """Save what the losses receive for each micro-batch and each validation image, with the step."""
    seen, terms, count = [], losses.Loss.terms, TrainState.count
    files = (folder / f"{os.environ.get('RANK', '0')}-{number:04d}.pt" for number in itertools.count())

    def looking(self, output, gt):
        seen[:] = output.detach().clone(), gt.clone()
        if not torch.is_grad_enabled():
            torch.save({"output": seen[0], "gt": seen[1], "step": None}, next(files))
        return terms(self, output, gt)

    def saving(state, *arguments):
        real = arguments[-1]["weight"] > 0
        torch.save({"output": seen[0][real], "gt": seen[1][real], "step": state.step + 1}, next(files))
        return count(state, *arguments)

    losses.Loss.terms, TrainState.count = looking, saving


def hide_weights() -> None:
    """Make the weight file of a loss missing on this rank's machine."""
    read = perceptual.read_tensors
    perceptual.read_tensors = lambda path, *named: read(None, *named)


def acknowledge(file: str) -> None:
    """Append the step of each commit to `file` after the commit is written."""
    write = commits.write_commit

    def write_and_tell(folder, step, *arguments):
        path = write(folder, step, *arguments)
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(f"{step}\n")
        return path

    saving.write_commit = write_and_tell


def remove_guard(part: str) -> None:
    """Disable a protection."""
    if part == "gradient":  # every step is applied
        engine.gradient_norm = adversary.gradient_norm = lambda *_: torch.ones(())
    elif part == "loss":  # finite gradients hide a non-finite loss
        engine.propagate_nan = lambda loss: loss
    elif part == "weights":
        replica_check.ReplicaCheck.check = lambda *_: None
    elif part == "watch":
        ranks.RankMonitor.start = lambda _: None
    elif part == "console":  # every rank prints
        session.Console = lambda _: console.Console(True)
    elif part == "lock":
        run_lock.RunLock.acquire, run_lock.RunLock.is_held = lambda _: None, True
    elif part == "sha256":
        commits._read_listed = lambda commit, name, _: (commit / name).read_bytes()
    elif part == "tolerance":  # towards full disks
        saving.Checkpointer._report = lambda *_: reraise()
    elif part == "float32_parts":
        distributed.use_float32_weights = lambda _: None
    elif part == "tensorboard":
        sys.modules["tensorboard"] = None
    elif part == "seeds":  # of what the model draws
        loader.seed_forward = lambda *_: None
    elif part == "staging":
        commits.write_commit = saving.write_commit = write_in_place


def reraise() -> None:
    raise  # the error that is being handled


def write_in_place(folder: Path, step: int, epoch: int, files: dict[str, bytes]) -> Path:
    """Write a commit directly in its final place."""
    final = folder / f"step-{step:08d}"
    final.mkdir(parents=True, exist_ok=True)
    listed = {}
    for name, content in files.items():
        data = content if isinstance(content, bytes) else b"".join(content)
        commits.write_durably(final / name, data)
        listed[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    time.sleep(60)  # the test kills the process here
    manifest = {"schema": 1, "step": step, "epoch": epoch, "files": listed}
    commits.write_durably(final / "COMMIT.json", json.dumps(manifest).encode())
    return final


def hide_first_image() -> None:
    scan_files = sources.scan_files
    sources.scan_files = lambda *given: Scan(Pairs.of(list(scan_files(*given).pairs)[1:]), [])
    machine._file_system = lambda: "another machine, which searches its own disk"


def report_searches(machines: int) -> None:
    """Print which rank searches which images; with two `machines`, each rank is on its own."""
    scan_files, rank = sources.scan_files, os.environ["RANK"]

    def scan(place, *given):
        print(f"rank {rank} searches {place.key}", flush=True)
        return scan_files(place, *given)

    sources.scan_files = scan
    if machines == 2:
        machine._file_system = lambda: rank


def forget(part: str) -> None:
    """Resume without a part of the commit's state."""
    load = preparation.load_commit

    def load_and_forget(commit, state, *others):
        if part == "scheduler":
            schedule = state.scheduler.scheduler.state_dict()
        if part == "discriminator":
            new = {name: tensor.clone() for name, tensor in state.adversary.module.state_dict().items()}
        window_sums = load(commit, state, *others)
        if part == "optimizer":
            state.optimizer.optimizer.state.clear()
        elif part == "discriminator":
            state.adversary.module.load_state_dict(new)
        elif part == "discriminator_optimizer":
            state.adversary.optimizer.optimizer.state.clear()
        elif part == "ema":
            state.ema.module.load_state_dict(state.model.state_dict())
        elif part == "sums":
            state.epoch_sums.zero_()
        elif part == "window":
            window_sums.zero_()
        elif part == "scheduler":
            state.scheduler.scheduler.load_state_dict(schedule)
        elif part == "place":  # the position in the order of samples
            state.epoch_step -= 1
        return window_sums

    preparation.load_commit = load_and_forget


def install(modes: str) -> None:
    """Install each mode of a comma-separated list."""
    for mode in filter(None, modes.split(",")):
        fault, _, place = mode.partition("@")
        if mode == "float64":
            torch.set_default_dtype(torch.float64)
        elif mode.startswith("acknowledge="):
            acknowledge(mode.partition("=")[2])
        elif mode.startswith("gate="):
            add_hook(Gate(mode.partition("=")[2]))
        elif mode.startswith("outputs="):
            keep_outputs(Path(mode.partition("=")[2]))
        elif mode.startswith("forget="):
            forget(mode.partition("=")[2])
        elif mode.startswith("without="):
            remove_guard(mode.partition("=")[2])
        elif mode.startswith(phases.MODES):
            phases.install(mode)
        elif mode.startswith("hosts="):
            hosts.enter(mode.partition("=")[2].split(":"))
        elif fault == "fsdp2":
            sharded.install(place or "TRANSFORMER_BASED_WRAP")
        elif mode == "fsdp1":
            sharded.install("NO_WRAP", version="1")
        elif mode == "as_gpus":
            sharded.take_for_gpus()
        elif mode == "patient":
            wandb_scenarios.set_bounds({})
        elif mode == "parted":
            hosts.part()
        elif mode.startswith("waits="):
            waits.write_counts(Path(mode.partition("=")[2]))
        elif mode.startswith("apart="):
            if os.environ["RANK"] != "0":
                hosts.hide(mode.partition("=")[2])
        elif mode.startswith("blind:"):
            if mode == f"blind:{os.environ.get('RANK')}":
                hide_first_image()
        elif mode.startswith("searches:"):
            report_searches(int(mode.partition(":")[2]))
        elif mode == "backend":
            sharded.tell_backend()
        elif mode == "report":
            drawings._SECONDS, drawings._SHARE = 0.0, math.inf
        elif place:
            rank, *steps = place.split(":")
            if rank != os.environ.get("RANK", "0") or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
                continue
            steps = [int(step) for step in steps]
            if fault in ("nan", "inf"):
                spoil_losses(steps[0], steps[-1], float(fault))
            elif fault == "gradient":
                spoil_gradients(steps[0])
            elif fault == "unseen":
                hide_weights()
            else:
                add_hook(Fault(fault, steps[0] if steps else 0))
        else:
            add_hook(Culprit(mode))


if __name__ == "__main__":
    # Otherwise the first `optimizer.step` imports it for seconds, and with a short `train.rank_timeout` the rank
    # counts as lost. Forked processes get it from `preload`.
    import torch._dynamo

    install(os.environ["RUN_TEST_MODE"])
    sys.exit(train.main())
