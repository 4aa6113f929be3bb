"""The callback that warns when adversarial training collapses, with what to try."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from accel_restore.config.adversarial import Adversarial
from accel_restore.errors import UserError
from accel_restore.losses.adversarial import Objective
from accel_restore.state import Callback, EpochRecord, TrainState
from accel_restore.tracking.run_files import JsonlTail

_STEPS = 100  # that a state has to last
_RIGHT = 0.99  # accuracy above which the discriminator is right on everything
_WORSE = 1.01  # times the loss at chance, above which the discriminator has learned nothing
_SHARE = 1e-4  # of the gradient at the output, below which the adversarial term has no effect
_FALL = 2.0  # dB of PSNR below the best one
_RISE = 1.25  # times the lowest LPIPS or DISTS


class CollapseWarning(Callback):
    """Warns once of each kind of collapse, on the console and in metrics.jsonl; the run continues.

    Kinds: for 100 steps the discriminator was right on everything; over 100 steps its loss was higher than the loss of
    a discriminator that cannot tell gt from output; for 100 steps the adversarial term gave the generator no gradient;
    a validation is much worse than the best one since the discriminator started. It reads metrics.jsonl on the main
    process. So a run that continues gives the same warnings, and a commit holds nothing of this.
    """

    def __init__(
        self,
        path: Path,
        config: Adversarial,
        every_steps: int,
        record: Callable[[dict[str, Any]], None],
        log: Callable[[str], None],
    ):
        """`path` is metrics.jsonl, with a line every `every_steps` steps; `record` appends a line to it."""
        self.lines, self.config, self.every_steps = JsonlTail(path), config, every_steps
        self.record, self.log = record, log
        self.since: dict[str, int] = {}  # the step before each kind's current state began
        self.losses: deque[float] = deque(maxlen=max(1, _STEPS // every_steps))  # of the discriminator, mean over ranks
        self.chance = Objective(config.loss).chance
        self.best: dict[str, float] = {}
        self.warned: set[str] = set()

    def on_step(self, state: TrainState) -> None:
        if state.step % self.every_steps == 0:
            self._read(state)

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        self._read(state)

    def _read(self, state: TrainState) -> None:
        """Warn of what the lines since the last call show. If the file cannot be read, training continues."""
        with suppress(OSError, UserError):
            self._judge(state)

    def _judge(self, state: TrainState) -> None:
        """Judge the lines since the last call. A warning in the file is not given again."""
        found: dict[str, str] = {}
        for (event, step), lines in groupby(self.lines, lambda line: (line["event"], line.get("step"))):
            if event == "train":
                found |= self._judge_step(list(lines), step)
            else:
                for line in lines:
                    self.warned |= {line["kind"]} if event == "collapse" else set()
                    found |= self._judge_scores(line) if event == "epoch" else {}
        for kind, text in found.items():
            if kind not in self.warned:
                self.warned.add(kind)
                self.record({"event": "collapse", "epoch": state.epoch, "step": state.step, "kind": kind, "text": text})
                self.log(f"step {state.step}: {text}")

    def _judge_step(self, lines: list[dict[str, Any]], step: int) -> dict[str, str]:
        """Return what the ranks' lines of a step show: kind → text. A state counts if all ranks are in it."""
        found = {}
        is_right = all((line.get("d_accuracy") or 0.0) > _RIGHT for line in lines)
        if self._lasts("discriminator", is_right, step):
            found["discriminator"] = (
                f"for {_STEPS} steps the discriminator was right on more than {_RIGHT:.0%} of its logits, so the "
                "generator learns little from it; lower adversarial.optimizer.lr, or use adversarial.skip_above"
            )
        if all(line.get("d_loss") is not None for line in lines):
            self.losses.append(sum(line["d_loss"] for line in lines) / len(lines))
        mean = sum(self.losses) / max(1, len(self.losses))
        if self.chance > 0 and len(self.losses) == self.losses.maxlen and mean > _WORSE * self.chance:
            found["chance"] = (
                f"over {_STEPS} steps the discriminator's loss was {mean:.4g} on average, above "
                f"{self.chance:.4g}, the loss of a discriminator that cannot tell gt from output, so the generator "
                "learns nothing; lower adversarial.optimizer.lr"
            )
        shares = [line.get("g_share") for line in lines]
        if self._lasts("gradient", all(share is not None and share < _SHARE for share in shares), step):
            found["gradient"] = (
                f"for {_STEPS} steps the adversarial term had less than {_SHARE} of the gradient at the output, so "
                "it has no effect; raise adversarial.weight, or lower adversarial.optimizer.lr"
            )
        return found

    def _lasts(self, kind: str, is_so: bool, step: int) -> bool:
        """Return whether a state has lasted long enough."""
        if not is_so:
            self.since.pop(kind, None)
            return False
        return step - self.since.setdefault(kind, step - self.every_steps) >= _STEPS

    def _judge_scores(self, line: dict[str, Any]) -> dict[str, str]:
        """Return what an epoch's line shows: kind → text."""
        found = {}
        for name in ("psnr", "lpips", "dists"):
            value = line.get(f"val_{name}")
            if value is None or line["epoch"] < self.config.starts_at_epoch:
                continue
            better = max if name == "psnr" else min
            best = self.best[name] = better(value, self.best.get(name, value))
            fell = value < best - _FALL if name == "psnr" else value > best * _RISE
            if fell:
                what = f"{value:.2f} dB, {best - value:.2f} dB below" if name == "psnr" else f"{value:.4f}, above"
                found[name] = (
                    f"{name} of validation is {what} the best since the discriminator started, {best:.4g}; lower "
                    "adversarial.weight or adversarial.optimizer.lr, or go back to an earlier checkpoint with "
                    "run.resume"
                )
        return found
