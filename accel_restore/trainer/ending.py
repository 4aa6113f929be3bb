"""What a run reports when it ends by an error: its own, or another rank's."""

import errno
import sys
from contextlib import suppress

from accel_restore.distributed.heartbeat import RankMonitor, Verdict
from accel_restore.errors import CallbackError, RunAbortedError, resume_hint
from accel_restore.trainer.run_context import RunContext
from accel_restore.trainer.summary import state_of
from accel_restore.utils.imports import describe_error
from accel_restore.utils.memory import is_out_of_memory

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors of writing alone


class Ending:
    """Decides what a run reports when it ends, and writes it to status.json."""

    def __init__(self, rank: int, overwrite: bool):
        self.rank, self.overwrite = rank, overwrite
        self.run: RunContext | None = None  # once it is prepared

    def record(self, reason: str, reporter: int = 0, state: str = "failed") -> bool:
        """Write the reason to status.json if this rank is the reporter; return whether it is."""
        if self.rank == reporter and self.run is not None:
            with suppress(OSError):
                self.run.write_status(state, error=reason)
        return self.rank == reporter

    def give_up(self, verdict: Verdict) -> None:
        """Report a verdict from the monitor's thread, while the main thread waits for a rank that is lost."""
        if self.record(verdict.text, verdict.reporter):
            print(f"accel-restore: {self._with_hint(verdict)}", file=sys.stderr, flush=True)

    def explain(self, error: Exception | SystemExit, monitor: RankMonitor) -> Exception:
        """Return the error to raise: another rank's fault, too little memory, or `error` itself.

        It is written to status.json, and the other ranks are informed if the fault is this rank's own.
        """
        if isinstance(error, SystemExit):
            error = RuntimeError(f"a part called sys.exit ({describe_error(error)}); raise an exception instead")
        if (verdict := monitor.find_cause(error)) is not None:
            is_reporter = self.record(verdict.text, verdict.reporter)
            return RunAbortedError(self._with_hint(verdict), is_reporter)
        if isinstance(error, CallbackError):
            return self._explain_callback(error, monitor)
        final = _out_of_memory(error, monitor.is_validating) if is_out_of_memory(error) else error
        monitor.publish_error(final)
        if isinstance(final, OSError) and final.errno in _FULL:
            final = self._disk_failed(final)
        self.record(str(final) or type(final).__name__, state=state_of(final))
        return final

    def _disk_failed(self, error: OSError) -> RunAbortedError:
        """The same error in a sentence that names the remedy."""
        what = f"{error.filename}:" if error.filename else "a file of the run"
        remedy = f"{resume_hint(self.overwrite)} from the last commit" if self.run else "give the same command again"
        return RunAbortedError(f"{what} cannot be written ({error.strerror}); free some space, and {remedy}", True)

    def _explain_callback(self, error: CallbackError, monitor: RankMonitor) -> CallbackError:
        """The same error, to be reported by the first rank that has raised one."""
        monitor.publish_error(error)
        reporter = monitor.failure.reporter if monitor.failure is not None else self.rank
        final = CallbackError(f"{error}; correct it, and {resume_hint(self.overwrite)} from the last commit")
        final.is_reporter = self.record(str(error), reporter)
        return final

    def _with_hint(self, verdict: Verdict) -> str:
        return f"{verdict.text}; {resume_hint(self.overwrite and self.run is not None)} from the last commit"


def _out_of_memory(error: Exception, in_validation: bool) -> MemoryError:
    """The same error in a sentence that names the remedy."""
    if in_validation:
        what, remedy = "validation of whole images", "set validation.tile (such as 512) to validate them in parts"
    else:
        what = "training"
        remedy = (
            "lower data.patch_size or data.batch_size (the result stays the same if train.global_batch_size is set to "
            "today's global batch)"
        )
    return MemoryError(f"not enough memory for {what}: {remedy} ({' '.join(str(error).split()):.200})")
