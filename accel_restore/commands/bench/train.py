"""`accel-restore bench train`: measure where the time of training steps goes, and compare with a bare loop."""

import argparse
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.callbacks.preemption import PreemptionCallback
from accel_restore.checkpoint.run_lock import RunLock, run_folder
from accel_restore.commands._arguments import ConfigurationParser
from accel_restore.commands._outputs import check_writable, write_report
from accel_restore.commands.bench.phases import PhaseTimer
from accel_restore.commands.bench.report import reported, show
from accel_restore.commands.bench.rounds import Trainer, compared, timed
from accel_restore.commands.bench.scaling import show_scaling
from accel_restore.config.load import load_config
from accel_restore.config.schema import Config
from accel_restore.data.loader import WaitTime
from accel_restore.distributed.accelerator import create_accelerator, tune_cpu
from accel_restore.distributed.heartbeat import RankMonitor
from accel_restore.errors import DivergedError, PreemptedError, UserError
from accel_restore.state import Callback
from accel_restore.tracking.console import Console
from accel_restore.trainer.bare_loop import BareLoop
from accel_restore.trainer.run_callbacks import make_callbacks
from accel_restore.trainer.run_context import RunContext
from accel_restore.trainer.setup import prepare
from accel_restore.utils.signals import EXIT_CODE, StopRequest, listening

_FIRST_STEPS = 4  # not measured: allocation, compilation
_QUEUED = 4  # steps from batches that were read ahead while the bare loop ran: not measured where reading is slow
_WAITING = 0.02  # share of a step spent waiting for data from which reading counts as slow
_PAIRS = (8, 32)  # least and most pairs of rounds, one of the trainer and one of the bare loop
_PROFILED_STEPS = 5
# Both networks are stepped in every step, without R1, as in the bare loop.
_BOTH = {"starts_at_epoch": 0, "generator_every": 1, "discriminator_every": 1, "skip_above": None, "r1": 0.0}


def main(arguments: list[str]) -> int:
    """Measure, print where the time goes and return the exit code. Under a launcher, every process calls it.

    Raises: UserError if the configuration or data cannot be used.
    """
    parser = ConfigurationParser(prog="accel-restore bench train", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="seconds for the trainer, the bare loop and the phases each (default: %(default)s)",
    )
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="write a trace of a few steps by torch.profiler to DIR"
    )
    parser.add_argument("--scaling", type=int, metavar="N", help="measure 1, 2, 4 ... N processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_configuration(arguments)
    if not options.seconds > 0:
        raise UserError("bench train: --seconds must be above 0")
    check_writable(options.json)
    config = load_config(options.config, options.overrides)
    _make_folder(options.profile)
    with listening() as stop:
        try:
            record = show_scaling(options) if options.scaling is not None else _shown(config, options)
        except PreemptedError:
            print(f"accel-restore: {stop}", file=sys.stderr)
            return EXIT_CODE
    if options.json is not None and record is not None:
        write_report(options.json, record)
    return 0


def _shown(config: Config, options: argparse.Namespace) -> dict[str, Any] | None:
    """Measure, print and return the record of all ranks; None except on the main process.

    Raises: UserError; PreemptedError when stopped by a signal.
    """
    tune_cpu(options.cpu)
    accelerator = create_accelerator(config, options.cpu)
    try:
        if accelerator.is_fsdp2:
            raise UserError("bench train: the bare loop needs full weights; start it without FSDP2")
        record = reported(measure(config, accelerator, options.seconds, options.profile))
    except (UserError, DivergedError) as error:  # of all ranks
        accelerator.state.destroy_process_group()
        raise UserError(str(error)) from error
    console = Console(accelerator.is_main_process)
    show(record, console)
    if options.profile is not None:
        console.log(f"trace of {_PROFILED_STEPS} steps: {options.profile}/rank0.json, for https://ui.perfetto.dev")
    accelerator.state.destroy_process_group()
    return record if accelerator.is_main_process else None


def _make_folder(folder: Path | None) -> None:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profile: cannot create {folder} ({error.strerror}); choose another folder") from error


def measure(config: Config, accelerator: Accelerator, seconds: float, profile: Path | None) -> list[dict[str, Any]]:
    """Return what each rank measured, with `seconds` each for the trainer, the bare loop and the phases.

    The run is a real one in a temporary folder, without W&B, TensorBoard and the progress bar, which have their own
    threads or processes, and without validation and other work that is done once per epoch. Every rank calls it.

    Raises: UserError if training would refuse the configuration.
    """
    if not accelerator.is_main_process:
        warnings.simplefilter("ignore")
    with _started(config, accelerator) as (run, callbacks):
        trainer = Trainer(run, callbacks)
        trainer(_FIRST_STEPS)
        wait = WaitTime()
        run.loader.observers.append(wait)
        took, _ = timed(trainer, _FIRST_STEPS, accelerator)
        waits = wait.seconds > _WAITING * took
        run.loader.observers.remove(wait)
        peak = _peak_memory(accelerator)
        bare = BareLoop(run.config, accelerator, run.loss_fn, next(run.loader.again(0, 0)), trainer.plan.accumulation)
        bare(1)
        # All ranks make the same number of steps, which the main process decides.
        steps = gather_object([max(1, round(seconds * _FIRST_STEPS / took))])[0]
        skipped = _QUEUED if any(gather_object([waits])) else 1
        pairs = min(max(_PAIRS[0], steps), _PAIRS[1])
        count = max(1, round(steps / pairs))
        rounds = [compared(trainer, bare, count, skipped, accelerator, n % 2 == 0) for n in range(pairs)]
        del bare
        timer = PhaseTimer(run.state, run.loader, accelerator)
        with timer.observing():
            trainer(count * pairs, timer)
        if profile is not None:
            _profile(trainer, profile / f"rank{accelerator.process_index}.json", accelerator)
        trainer.close()
        mine = {
            "rank": accelerator.process_index,
            "plan": run.plan,
            "config": run.config.model_dump(mode="json"),
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
            "fits_in_memory": run.data.fits_in_memory,
            "steps_per_epoch": run.loader.stages.epoch(0).num_steps,
            "accumulation": trainer.plan.accumulation,
            "batch_size": trainer.plan.batch_size,
            "phases": timer.per_step(),
            "observed_steps": timer.steps,
            "hooks": timer.callbacks_per_step(),
            "rounds": rounds,
            "peak_memory": peak,
        }
        return gather_object([mine])


def _peak_memory(accelerator: Accelerator) -> int:
    """Return the peak in bytes: of this rank's tensors on CUDA, otherwise of the process."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _profile(trainer: Trainer, file: Path, accelerator: Accelerator) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if accelerator.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    trainer(1)
    with torch.profiler.profile(activities=activities) as profiler:
        trainer(_PROFILED_STEPS)
    try:
        profiler.export_chrome_trace(str(file))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file}: cannot be written ({error}); choose another folder") from error


@contextmanager
def _started(config: Config, accelerator: Accelerator) -> Iterator[tuple[RunContext, list[Callback]]]:
    """Yield a run in a temporary folder, ready to train, and its callbacks."""
    made = tempfile.mkdtemp(prefix="accel-restore-bench-") if accelerator.is_main_process else None
    folder = gather_object([made])[0]
    config = _without_traces(config, folder)
    lock = RunLock(run_folder(config))
    watch = RankMonitor(accelerator, config.train.rank_timeout, lambda verdict: print(f"accel-restore: {verdict.text}"))
    run: RunContext | None = None
    try:
        watch.start()
        run = prepare(config, accelerator, Console(False), lock, False, False, [])
        assert run is not None  # it has just been created, so it is not finished
        callbacks = make_callbacks(run, watch, StopRequest())
        yield run, callbacks
        for callback in callbacks:
            if isinstance(callback, PreemptionCallback):
                callback.on_exit(run.state, None)
    finally:
        watch.close()
        if run is not None:
            run.close(failed=False)
        lock.release()
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _without_traces(config: Config, folder: str) -> Config:
    """Return the configuration of a run that writes only to `folder`, with the last stage alone."""
    run = {"name": "bench", "dir": folder, "resume": "auto"}
    tracking = {"wandb": "disabled", "tensorboard": False}
    second = config.adversarial
    return config.model_copy(
        update={
            "run": config.run.model_copy(update=run),
            "tracking": config.tracking.model_copy(update=tracking),
            "data": config.data.model_copy(update={"stages": []}),
            "adversarial": None if second is None else second.model_copy(update=_BOTH),
            "callbacks": [],
        }
    )
