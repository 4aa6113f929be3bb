"""A run that is ready to train, with all its parts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from accel_restore.callbacks.guarded import GuardedCallbacks
from accel_restore.callbacks.metrics_logger import RunLog, Trackers
from accel_restore.checkpoint.resume import Start
from accel_restore.checkpoint.run_lock import RunLock
from accel_restore.data.build import DataSets
from accel_restore.data.previews import Previews
from accel_restore.engine import TrainingRun
from accel_restore.tracking.console import Console
from accel_restore.tracking.drawings import Drawings
from accel_restore.tracking.run_files import write_status
from accel_restore.trainer.summary import progress


@dataclass
class RunContext(TrainingRun):
    """A run that is ready to train: its folder is locked and prepared."""

    console: Console
    lock: RunLock
    start: Start
    data: DataSets
    plan: list[tuple[str, str]]  # the rows of the printed plan
    window_sums: Tensor  # of this rank, since the last logged line: see MetricsLogger
    description: dict[str, Any]  # of the model, for best.safetensors
    own: GuardedCallbacks
    taken: dict[str, Any] | None = None  # what model.partial took from the checkpoint
    previews: Previews | None = None
    best: bytes | None = None  # content of best.safetensors at the commit to continue from
    log: RunLog | None = None  # open while the run trains
    trackers: Trackers = field(default_factory=Trackers)
    drawings: Drawings | None = None  # on the main process
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "accel-restore-writer"))

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.lock.folder

    def write_status(self, state: str, **more: Any) -> None:
        """Write status.json, if the folder is still this run's."""
        if self.lock.find_loss() is None:
            write_status(self.folder, state, **progress(self.state, self.accelerator.num_processes), **more)

    def close(self, failed: bool) -> None:
        """Draw the end of the run and close the files. W&B is last, because its uploads may take time."""
        self.writer.shutdown()  # after an error, a commit may not be written yet
        if self.drawings is not None:
            self.drawings.close(self.lock.find_loss() is None)  # the report says how the run has ended
        self.console.stop()
        if self.log is not None:
            self.log.close()
        self.trackers.close(failed)
