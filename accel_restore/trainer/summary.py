"""What is reported and recorded when a run ends."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from accel_restore.checkpoint.resume import Start
from accel_restore.errors import AuditError, DivergedError, PreemptedError, UserError
from accel_restore.metrics.format import format_score, metrics_of
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.state import TrainState
from accel_restore.tracking.console import Console
from accel_restore.tracking.run_files import read_audit, read_status, write_status
from accel_restore.utils.words import counted

_FEW_STEPS = 300  # the demo gains 11 dB in 320


def state_of(error: BaseException) -> str:
    """The state in status.json of a run that ended by `error`."""
    return {PreemptedError: "preempted", DivergedError: "diverged"}.get(type(error), "failed")


def progress(state: TrainState, world_size: int) -> dict[str, Any]:
    """How far a run has come, as status.json records it."""
    return {"epoch": state.epoch, "step": state.step, "world_size": world_size, "best": state.best}


def stopped_by(reason: str | None) -> dict[str, str]:
    """Why a finished run ended early, if it did, as status.json records it."""
    return {} if reason is None else {"stopped": reason}


def report_finished(folder: Path, start: Start, accelerator: Accelerator, console: Console, audit: bool) -> None:
    """Report that there is nothing to do.

    Raises: AuditError, UserError, if the run's audit failed, or is asked for and was never made.
    """
    audited, counters = read_audit(folder), start.counters
    assert counters is not None  # of the last commit
    done, stopped = counted(counters["epoch"], "epoch"), counters.get("stopped")
    if audited and not audited["ok"]:
        raise AuditError(f"{folder}: the run is finished, but its audit failed: see {folder / 'audit.json'}")
    if audit and not audited:
        raise UserError(f"{folder}: the run is finished and was not audited; --overwrite --audit starts it again")
    if accelerator.is_main_process and read_status(folder).get("state") != "finished":
        kept = {key: counters[key] for key in ("epoch", "step", "best")}
        write_status(folder, "finished", **kept, world_size=accelerator.num_processes, **stopped_by(stopped))
    how = "" if stopped is None else f"; {stopped}; changing train.early_stopping or callbacks continues it"
    console.log(f"{folder}: the run is finished ({done}{how}); --overwrite starts it again")


def report_result(console: Console, folder: Path, state: TrainState) -> None:
    """Report the best scores and where the files are."""
    best = state.best
    if best is None:
        console.log(f"finished: every validation gave NaN or inf, so there is no {folder / WEIGHTS}")
        return
    scores = ", ".join(_gain(best, name) for name in metrics_of(best)) or f"loss {format_score('loss', best['loss'])}"
    console.log(f"finished: best epoch {best['epoch'] + 1}: {scores}")
    if best.get("input_psnr") is not None and best["psnr"] < best["input_psnr"]:
        if state.step < _FEW_STEPS:
            why = "networks need a few hundred steps to improve on their input; train longer to judge"
            console.log(f"not yet better than the input, as expected of {counted(state.step, 'step')}: {why}")
        else:
            console.log("that is worse than the input: train longer, lower optimizer.lr, or run accel-restore check")
    console.log(f"weights  {folder / WEIGHTS}")
    if (folder / "samples").is_dir():
        console.log(f"look at  {folder / 'report.html'}, {folder / 'samples'}, {folder / 'curves.png'}")


def _gain(best: dict[str, Any], name: str) -> str:
    """A score and the input's score; an input with other channels than gt has none."""
    before = best.get(f"input_{name}")
    score = f"{name} {format_score(name, best[name])}"
    return score if before is None else f"{score} (input {format_score(name, before)})"
