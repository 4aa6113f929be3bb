"""A training run from its configuration to its files: set up, print the plan, train, report the result."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from accel_restore.checkpoint.run_lock import RunLock, run_folder
from accel_restore.config.load import config_from, load_config
from accel_restore.config.schema import Config
from accel_restore.distributed.accelerator import create_accelerator, restored_states
from accel_restore.distributed.heartbeat import RankMonitor
from accel_restore.engine import train
from accel_restore.errors import PART_ERRORS, PreemptedError, UserError
from accel_restore.state import Callback
from accel_restore.tracking.console import Console
from accel_restore.tracking.wandb_client import check_settings
from accel_restore.trainer.ending import Ending
from accel_restore.trainer.objects import with_objects
from accel_restore.trainer.run_callbacks import make_callbacks
from accel_restore.trainer.run_context import RunContext
from accel_restore.trainer.setup import prepare
from accel_restore.trainer.summary import report_result, stopped_by
from accel_restore.utils.globals import restored_globals
from accel_restore.utils.launch import is_restarted
from accel_restore.utils.signals import EXIT_CODE, StopRequest, listening

_running = threading.Lock()  # held while `fit` trains


def fit(
    config: dict | str | Path,
    *overrides: str,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    callbacks: Iterable[Callback] = (),
    cpu: bool = False,
    audit: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train, as `accel-restore train` does, and return the folder of the run.

    `config` is a YAML file or a mapping like one, in which `data.train.dataset` and `data.val.dataset` may be
    `datasets.Dataset` objects. Paths, tuples, numpy scalars and arrays are taken as YAML would give them. `overrides`
    are `key=value`. One training at a time runs in a process.

    `model`, `loss` and `callbacks` take the place of names in the configuration. A copy of `model` is trained, from the
    weights that it has now; a function or class that builds it serves models that cannot be copied. `loss` maps
    (output, gt) to one value per sample, (B,). `callbacks` come after those of the configuration. With several ranks,
    every rank passes the same objects, and the main process's weights count. To continue a run, pass them again.

    At the end, also after an exception, the process is as it was before. Restored are: environment variables; the
    random numbers of Python, numpy and torch; torch's deterministic algorithms, cuDNN's `benchmark` and
    `deterministic`, the number of threads, and dynamo's `recompile_limit`; warning filters; signal handlers;
    `sys.excepthook`, `sys.unraisablehook` and `sys.exit`; the states that Accelerators share, so that your own may have
    another precision; the verbosity and progress bars of `datasets`; the verbosity of W&B. Not changed are: Pillow's
    limits; torch's default dtype and TF32; loggers; the start method of processes; matplotlib's backend; malloc, which
    only commands tune (without it a step on CPUs is 15 to 20 % slower). What stays: imported modules; W&B's background
    process; with several ranks, the process group. A process that a launcher started ends when its launcher dies.

    Raises: UserError for wrong input, MemoryError, DivergedError, CallbackError, RunAbortedError, AuditError; when
    stopped by a signal, after saving: KeyboardInterrupt for SIGINT, otherwise SystemExit.
    """
    resolved = config_from(config, overrides) if isinstance(config, dict) else load_config(config, overrides)
    resolved = with_objects(resolved, model, loss, callbacks)
    with (
        _alone(),
        warnings.catch_warnings(),
        restored_globals(bool(resolved.train.compile)),
        restored_states(),
        listening() as stop,
    ):
        try:
            run_training(resolved, cpu=cpu, audit=audit, overwrite=overwrite, overrides=list(overrides), stop=stop)
        except PreemptedError as error:
            if stop.signal == signal.SIGINT:
                raise KeyboardInterrupt(*error.args) from error
            raise SystemExit(EXIT_CODE) from error
    return run_folder(resolved)


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second training in this process, in another thread or from within the first.

    Both would share the random numbers, precision and process group, and get other results than alone.
    """
    if not _running.acquire(blocking=False):
        raise UserError(
            "fit: another training is running in this process; wait until it has returned, or start each in a process "
            "of its own"
        )
    try:
        yield
    finally:
        _running.release()


def run_training(
    config: Config,
    *,
    cpu: bool,
    audit: bool,
    overwrite: bool,
    overrides: list[str],
    stop: StopRequest,
    stop_after: int | None = None,
) -> None:
    """Train as the configuration says. Every rank calls it.

    Raises: UserError, MemoryError, DivergedError, CallbackError, RunAbortedError, AuditError; PreemptedError when asked
    to stop, or after step `stop_after`.
    """
    check_settings(config.tracking)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata; `fit` restores the filters
    accelerator = create_accelerator(config, cpu)
    console = Console(accelerator.is_main_process)
    if not console.main:  # all ranks get the same warnings from libraries
        warnings.simplefilter("ignore")
    lock = RunLock(run_folder(config), console.log)
    ending = Ending(accelerator.process_index, overwrite)
    monitor = RankMonitor(accelerator, config.train.rank_timeout, ending.give_up)
    monitor.start()
    failed = True
    try:
        ending.run = prepare(config, accelerator, console, lock, audit, overwrite and not is_restarted(), overrides)
        if ending.run is not None:
            _fit(ending.run, monitor, stop, stop_after, audit)
        failed = False
    except PreemptedError as error:
        failed = False
        error.recorded = ending.run is not None
        ending.record(str(error), state="preempted")
        raise
    except PART_ERRORS as error:
        stop.is_over = True
        final = ending.explain(error, monitor)
        if final is error:
            raise
        raise final from error
    finally:
        monitor.close()
        if ending.run is not None:
            ending.run.close(failed)
        lock.release()


def _fit(run: RunContext, monitor: RankMonitor, stop: StopRequest, stop_after: int | None, audit: bool) -> None:
    """Train, and write what a finished run leaves."""
    callbacks = make_callbacks(run, monitor, stop, stop_after, audit)
    stop.may_save = True
    ended: BaseException | None = None
    try:
        train(run, callbacks, stop.__bool__)
    except BaseException as error:
        ended = error
    try:
        for callback in callbacks:
            callback.on_exit(run.state, ended)
    except BaseException as error:
        ended = error
        raise
    finally:
        run.own.close(run.state, ended)  # last: a commit at the end holds what they have counted
    if isinstance(ended, PreemptedError):
        raise PreemptedError(f"{stop} after step {run.state.step}")
    if ended is not None:
        raise ended
    if run.accelerator.is_main_process:
        run.write_status("finished", **stopped_by(run.state.stop_reason))
    report_result(run.console, run.folder, run.state)
