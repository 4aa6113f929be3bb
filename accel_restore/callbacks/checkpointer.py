"""The callback that commits a run and keeps its best weights, from the main process."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from accel_restore.callbacks.folder_check import FolderCheck
from accel_restore.callbacks.metrics_logger import MetricsLogger
from accel_restore.callbacks.replica_check import ReplicaCheck
from accel_restore.checkpoint.commits import find_commits, prune, write_commit
from accel_restore.checkpoint.host_copy import HostCopy
from accel_restore.checkpoint.state_dict import Snapshot, best_file, best_weights, collect
from accel_restore.config.schema import Checkpoint
from accel_restore.data.batch_plan import BatchSchedule
from accel_restore.errors import PreemptedError, RunAbortedError
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.state import Callback, EpochRecord, TrainState
from accel_restore.utils.files import Part, replace_file


@dataclass(frozen=True)
class CommitSource:
    """The content of a commit other than the state of training."""

    counters: Callable[[], dict[str, Any]]  # stored in state.json
    metadata: Callable[[TrainState], dict[str, str]]  # of best.safetensors
    best: bytes | None  # content of best.safetensors at the commit that the run continues from


class Checkpointer(Callback):
    """Commits at the end of epochs and, if configured, every N steps; runs after the MetricsLogger.

    The main thread copies the state; one thread writes the copy while training continues. At most one commit is being
    written. The next one waits for it, because both copies use the same memory.

    If a commit cannot be written (full disk), this is logged and training continues; the next due commit replaces it.
    The last one must succeed.
    """

    def __init__(
        self,
        schedule: Checkpoint,
        accelerator: Accelerator,
        source: CommitSource,
        *,
        stages: BatchSchedule,
        logger: MetricsLogger,
        folder_check: FolderCheck,
        replica_check: ReplicaCheck,
        writer: ThreadPoolExecutor,
    ):
        """`writer` has one thread, so jobs run in order."""
        self.folder, self.schedule, self.accelerator, self.source = logger.log.folder, schedule, accelerator, source
        self.stages, self.folder_check, self.replica_check = stages, folder_check, replica_check
        self.logger, self.log = logger, logger.console.log
        self.saved: tuple[int, int] | None = None  # epoch and step of the last commit, or attempt at one
        self.writer = writer
        self.commit_job: Future | None = None  # the last job of each kind
        self.best_job: Future | None = None
        self.state_copy, self.best_copy = HostCopy(), HostCopy()
        # Used by the jobs alone, on the main process:
        self.best: list[Part] | None = None if source.best is None else [source.best]  # content of best.safetensors
        self.best_is_written = True
        self.written: Path | None = None  # the last commit
        self.failure: OSError | None = None  # of the last attempt

    def on_step(self, state: TrainState) -> None:
        every = self.schedule.every_steps
        if every and state.step % every == 0 and not self.ends_epoch(state):
            self.commit(state)

    def ends_epoch(self, state: TrainState) -> bool:
        """Return whether the last step ended its epoch, which is committed after the validation."""
        return state.epoch_step >= self.stages.epoch(state.epoch).num_steps

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        due = self.schedule.every_steps and state.step % self.schedule.every_steps == 0
        if due or state.epoch % self.schedule.every_epochs == 0 or state.epoch == state.epochs:
            self.commit(state)

    def on_best(self, state: TrainState) -> None:
        """Copy the best weights, and start to write best.safetensors."""
        self.wait()  # also for the last commit, which holds the best weights before these
        weights = best_weights(state, self.accelerator, self.best_copy)
        if weights:
            self.best_job = self.writer.submit(self._keep_best, weights, self.source.metadata(state))

    def wait(self) -> None:
        """Wait until everything is written. Raises the errors of jobs; an `OSError` of writing is only logged."""
        for job in (self.best_job, self.commit_job):
            if job is not None:
                job.result()

    def on_exit(self, state: TrainState, error: BaseException | None) -> None:
        """Make sure that the last state is committed.

        Raises: RunAbortedError, on all ranks, if it cannot be written.
        """
        if error is not None and not isinstance(error, PreemptedError):
            with suppress(Exception):  # the first error counts
                self.wait()
            return
        self.wait()
        if self._failed() is not None:
            self.saved = None  # try again
        self.commit(state)
        self.wait()
        if (failure := self._failed()) is not None:
            raise RunAbortedError(
                f"{self.folder}: the last checkpoint cannot be written ({failure}); free some space, and continue from "
                "the previous checkpoint"
            )

    def _keep_best(self, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write best.safetensors; runs as a job."""
        self.best_copy.wait()
        self.best, self.best_is_written = best_file(weights, metadata), False
        try:
            self._write_best()
        except OSError as error:
            self._report(f"{self.folder / WEIGHTS}", error)

    def _write_best(self) -> None:
        self.folder_check.require()
        is_there = self.best_is_written and (self.folder / WEIGHTS).exists()
        if self.best is not None and not is_there:
            replace_file(self.folder / WEIGHTS, self.best)
            self.best_is_written = True

    def commit(self, state: TrainState) -> None:
        """Copy the state and start to write it, unless this state was already saved. Every rank calls it.

        Raises: DivergedError if weights are NaN or inf; RunAbortedError if the ranks' weights differ, or the folder is
            no longer this run's; CallbackError if a user's callback has a state that cannot be saved.
        """
        if self.saved == (state.epoch, state.step):
            return
        self.saved = (state.epoch, state.step)
        if self.commit_job is not None:
            self.commit_job.result()
        self.folder_check.check()
        self.replica_check.check(state)
        snapshot = collect(state, self.logger.window_sums, self.accelerator, self.source.counters(), self.state_copy)
        if snapshot is not None:
            is_good = not state.skipped_in_row
            self.commit_job = self.writer.submit(self._write, state.step, state.epoch, snapshot, is_good)

    def _write(self, step: int, epoch: int, snapshot: Snapshot, is_good: bool) -> None:
        """Write a commit; runs as a job. Unless `is_good`, the run may have diverged, so older commits are kept."""
        if self.best_job is not None:
            self.best_job.result()  # the job has ended; after an error, `best` is not the content that it should be
        self.state_copy.wait()
        folder, files, self.failure, last = self.folder / "checkpoints", snapshot.files(), None, "none"
        if self.best is not None:
            files[WEIGHTS] = self.best
        try:
            last = next((commit.name for commit in reversed(find_commits(folder))), last)
            self._write_best()
            self.logger.log.sync()  # a commit is never newer than the lines before it
            former, is_gone = self.written, self.written is not None and not self.written.exists()
            self.written = write_commit(folder, step, epoch, files)
            if is_gone:
                self.log(f"{former}: was removed by someone else; the commit of step {step} replaces it")
        except OSError as error:
            self.failure = error
            self._report(f"checkpoint of step {step} (the last one is {last})", error)
            return
        if is_good:
            try:
                prune(folder, self.schedule.keep)
            except OSError as error:
                self.log(f"{folder}: older checkpoints cannot be removed ({error.strerror}); trying again later")

    def _report(self, what: str, error: OSError) -> None:
        place = f" {error.filename}" if error.filename else ""
        self.log(f"{what}: cannot be written ({error.strerror}{place}); training continues and tries again later")

    def _failed(self) -> str | None:
        """Why the main process could not write the last commit; all ranks learn it."""
        failure = self.failure and f"{self.failure.strerror}: {self.failure.filename or self.folder}"
        return gather_object([failure])[0]
