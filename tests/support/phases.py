"""Modes of the driver that report a training's phases to a test through a file and pause in them; see `install`."""

import functools
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from accel_restore import engine, train
from accel_restore.checkpoint import commits
from accel_restore.data import cache
from accel_restore.data.val_dataset import ValidationDataset
from accel_restore.state import Callback, TrainState
from accel_restore.tracking import drawings
from accel_restore.trainer import setup as preparation
from accel_restore.utils import signals as preemption

NAMES = ("main", "listens", "decode", "model", "folder", "micro", "step", "image", "commit", "exit")
MODES = ("phases=", "pause=", "await=", "linger=", "deaf", "no_curves", "no_death_signal", "every_signal_counts")


class Teller:
    """Appends `rank phase value` to a file when a phase is reached, and waits there if a pause is set."""

    def __init__(self) -> None:
        self.file: Path | None = None
        # (phase, occurrence; 0 is every one) → seconds, and whether a signal ends the pause
        self.pauses: dict[tuple[str, int], tuple[float, bool]] = {}
        self.count = dict.fromkeys(NAMES, 0)
        self.asked = False  # whether a stop signal has arrived

    def reach(self, phase: str, value: object = "") -> None:
        self.count[phase] += 1
        if self.file is not None:
            with self.file.open("a") as out:
                out.write(f"{os.environ.get('RANK', '0')} {phase} {value}\n")
        seconds, until_asked = self.pauses.get((phase, self.count[phase])) or self.pauses.get((phase, 0), (0.0, False))
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until_asked and self.asked):
            time.sleep(0.01)

    def before(self, phase: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*arguments, **named):
            self.reach(phase)
            return function(*arguments, **named)

        return wrapped


class Steps(Callback):
    def on_step(self, state: TrainState) -> None:
        TELLER.reach("step", state.step)


TELLER = Teller()


def install(mode: str) -> None:
    """Install one of the modes below.

    phases=FILE: report the phases. pause=PHASE:SECONDS: wait in each such phase. await=PHASE:N:SECONDS: wait in its
    N-th occurrence until a signal arrives, at most SECONDS. linger=PHASE:N:SECONDS: the same, but no signal ends it.
    Without a protection: deaf (to signals), no_death_signal, every_signal_counts. no_curves: draw no plots, which take
    longer than the training.
    """
    name, _, value = mode.partition("=")
    if name in ("pause", "linger", "await"):
        phase, *number, seconds = value.split(":")
        assert phase in NAMES
        TELLER.pauses[phase, int(*number)] = float(seconds), name == "await"
    elif name == "deaf":
        train.listening = lambda: nullcontext(preemption.StopRequest())
    elif name == "no_curves":
        drawings.draw_curves = lambda *_: None
    elif name == "no_death_signal":
        preemption.die_with_launcher = lambda: None
    elif name == "every_signal_counts":
        preemption.StopRequest._is_copy = lambda _: False
    else:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if tests run in the background
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored if tests run under nohup
        TELLER.file = Path(value)
        _wrap_all()


def _wrap_all() -> None:
    from driver import add_hook

    cache.read_image = TELLER.before("decode", cache.read_image)
    preparation.setup_model_and_optimizer = TELLER.before("model", preparation.setup_model_and_optimizer)
    preparation.clear = TELLER.before("folder", preparation.clear)
    train.load_config = TELLER.before("listens", train.load_config)  # the first call after the handlers are installed
    ValidationDataset.__getitem__ = TELLER.before("image", ValidationDataset.__getitem__)
    add_hook(Steps())
    backward, write, main, leave = engine.Accelerator.backward, commits.write_durably, train.main, os._exit
    handle = preemption.StopRequest._handle

    def note_and_handle(*arguments):
        TELLER.asked = True
        handle(*arguments)

    def backward_and_tell(*arguments, **named):
        backward(*arguments, **named)
        TELLER.reach("micro")

    def tell_and_write(path, data):
        if path.name == "COMMIT.json":
            TELLER.reach("commit", path.parent.name)
        write(path, data)

    def main_and_tell(*arguments):
        TELLER.reach("main", os.getpid())
        code = main(*arguments)
        TELLER.reach("exit", code)
        return code

    def tell_and_leave(code):
        TELLER.reach("exit", code)
        leave(code)

    preemption.StopRequest._handle = note_and_handle
    engine.Accelerator.backward, commits.write_durably = backward_and_tell, tell_and_write
    train.main, os._exit = main_and_tell, tell_and_leave
