"""The callback that ends a run whose folder is no longer its own."""

import errno

from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.checkpoint.run_lock import RunLock
from accel_restore.errors import FolderLostError, PreemptedError
from accel_restore.state import Callback, EpochRecord, TrainState


class FolderCheck(Callback):
    """Checks the folder after each validation and epoch, at the end, and before each commit.

    Comes before the callbacks that write.

    What the run writes into a folder that was moved, removed or replaced would be lost, or would harm another run. The
    lines of metrics.jsonl between two checks are safe: they go to the open file, wherever it is.
    """

    def __init__(self, accelerator: Accelerator, lock: RunLock):
        self.accelerator, self.lock = accelerator, lock

    def on_validation(self, state: TrainState) -> None:
        self.check()

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        self.check()

    def on_exit(self, state: TrainState, error: BaseException | None) -> None:
        """Check, and raise, so that the callbacks after this one are not called."""
        if error is None or isinstance(error, PreemptedError):  # of all ranks
            self.check()
        elif isinstance(error, FolderLostError):
            raise error

    def require(self) -> None:
        """Raise `OSError` if the folder is no longer this run's; for a thread of the main process."""
        if self.lock.find_loss() is not None:
            raise OSError(errno.ESTALE, "it was moved, removed or replaced", str(self.lock.folder))

    def check(self) -> None:
        """Check now; every rank calls it.

        Raises: FolderLostError, on all ranks, if the folder is no longer this run's.
        """
        loss = self.lock.find_loss() if self.accelerator.is_main_process else None
        if (loss := gather_object([loss])[0]) is not None:
            raise FolderLostError(loss)
