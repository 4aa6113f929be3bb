"""The hook that commits a run and keeps its best weights, from the main process, on disks that may be full."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.callbacks.metrics_logger import MetricsLogger
from accel_restore.callbacks.replica_check import ReplicaCheck
from accel_restore.checkpoint.commits import find_commits, prune, write_commit
from accel_restore.checkpoint.state_dict import best_weights, collect
from accel_restore.config.schema import Checkpoint
from accel_restore.data.batch_plan import BatchSchedule
from accel_restore.errors import RunAbortedError
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.state import Callback, TrainState
from accel_restore.utils.files import replace_file


class Checkpointer(Callback):
    """Commits at the end of epochs and, where asked for, within them; runs after the Tracker.

    Training can go on without a save that fails, until the last one: it is told about, and made up for when the next is
    due.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        schedule: Checkpoint,
        *,
        epochs: int,
        stages: BatchSchedule,
        tracker: MetricsLogger,
        replica_check: ReplicaCheck,
        extra: Callable[[], dict[str, Any]],
        metadata: Callable[[TrainState], dict[str, str]],
        best: bytes | None,
    ):
        """`best` is the content of best.safetensors at the commit that the run continues from."""
        self.folder, self.accelerator, self.schedule = folder, accelerator, schedule
        self.epochs, self.stages = epochs, stages
        self.tracker, self.replica_check, self.log = tracker, replica_check, tracker.console.log
        self.extra, self.metadata = extra, metadata
        self.best, self.best_is_written = best, True
        self.saved: tuple[int, int] | None = None  # epoch and step of the last commit, or try of one
        self.failure: OSError | None = None  # of the last try, on the main process

    def on_step(self, state: TrainState) -> None:
        every = self.schedule.every_steps
        if every and state.step % every == 0 and state.epoch_step < self.stages.plan(state.epoch).steps_per_epoch:
            self.commit(state)

    def on_epoch(self, state: TrainState, record: dict[str, Any]) -> None:
        due = self.schedule.every_steps and state.step % self.schedule.every_steps == 0
        if due or state.epoch % self.schedule.every_epochs == 0 or state.epoch == self.epochs:
            self.commit(state)

    def save_best(self, state: TrainState) -> None:
        """Write best.safetensors; called by every rank."""
        best = best_weights(state, self.accelerator, self.metadata(state))
        if best is not None:
            self.best, self.best_is_written = best, False
            try:
                self._write_best()
            except OSError as error:
                self._report(f"{self.folder / WEIGHTS}", error)

    def _write_best(self) -> None:
        if not self.best_is_written:
            replace_file(self.folder / WEIGHTS, self.best)
            self.best_is_written = True

    def commit(self, state: TrainState) -> None:
        """Commit the state, unless that is done; called by every rank.

        Raises: DivergedError, RunAbortedError, where the weights are not worth keeping.
        """
        if self.saved == (state.epoch, state.step):
            return
        self.saved = (state.epoch, state.step)
        self.replica_check.check(state)
        files = collect(state, self.accelerator, self.extra())
        if files is not None:
            self._write(state, files)

    def _write(self, state: TrainState, files: dict[str, bytes]) -> None:
        folder, self.failure, last = self.folder / "checkpoints", None, "none"
        if self.best is not None:
            files[WEIGHTS] = self.best
        try:
            last = next((commit.name for commit in reversed(find_commits(folder))), last)
            self._write_best()
            self.tracker.sync()  # a commit is never newer than the lines before it
            write_commit(folder, state.step, state.epoch, files)
        except OSError as error:
            self.failure = error
            self._report(f"checkpoint of step {state.step} (the last one is {last})", error)
            return
        if not state.skipped_in_row:  # else this commit may be one of a run that is lost: the good ones stay
            try:
                prune(folder, self.schedule.keep)
            except OSError as error:
                self.log(f"{folder}: older checkpoints cannot be removed ({error.strerror}); tried again later")

    def _report(self, what: str, error: OSError) -> None:
        place = f" {error.filename}" if error.filename else ""
        self.log(f"{what}: cannot be written ({error.strerror}{place}); training goes on, and tries again later")

    def finish(self, state: TrainState) -> None:
        """Make sure that this state is committed, before the run ends; called by every rank.

        Raises: RunAbortedError, on all ranks, where it cannot be written.
        """
        if self._failed() is not None:
            self.saved = None  # try again
        self.commit(state)
        if (failure := self._failed()) is not None:
            raise RunAbortedError(
                f"{self.folder}: the last checkpoint cannot be written ({failure}); make room, and continue from the "
                "one before"
            )

    def _failed(self) -> str | None:
        """Why the main process could not write the last commit, known to all ranks."""
        failure = self.failure and f"{self.failure.strerror}: {self.failure.filename or self.folder}"
        return gather_object([failure])[0]
