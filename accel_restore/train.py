"""The entry of training: `accelerate launch accel_restore/train.py [--config FILE] [--cpu] [key=value ...]`."""

import os
import sys

if not __package__:
    # Python puts the folder of a script first on the path. Its modules would then shadow others (config, data, …), and
    # `accel_restore` itself would not be found in a checkout that is not installed.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse

from accel_restore.checkpoint.run_lock import record_preempted, run_folder
from accel_restore.commands._arguments import ConfigurationParser
from accel_restore.config.load import load_config
from accel_restore.errors import (
    AuditError,
    CallbackError,
    DivergedError,
    PreemptedError,
    RunAbortedError,
    UserError,
    permission_denied,
    resume_hint,
)
from accel_restore.utils.launch import hide_warnings_of_torch, is_main, is_reporter
from accel_restore.utils.places import use_writable_caches
from accel_restore.utils.redaction import redacted
from accel_restore.utils.signals import EXIT_CODE, StopRequest, listening
from accel_restore.utils.streams import safe_streams
from accel_restore.utils.threads import spin_briefly
from accel_restore.utils.utf8 import use_utf8


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of training. Raises: UserError for unknown options."""
    parser = ConfigurationParser(
        prog="accel-restore train",
        description="Train an image restoration model. Without --config, it trains the demo and downloads nothing.",
    )
    parser.add_argument("--cpu", action="store_true", help="train on the CPU; each launched process is a rank")
    parser.add_argument(
        "--audit",
        action="store_true",
        help="record every operation; fail if weights or rate change elsewhere than in their step",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove the files of the run and start it again")
    parser.add_argument(
        "--stop-after", type=_step, metavar="STEP", help="save and stop after this optimizer step (exit code 143)"
    )
    return parser.parse_configuration(arguments)


def _step(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--stop-after: must be a step above 0, not {text}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Train; return the exit code: 0 done, 2 wrong input, 3 diverged, 143 stopped, 1 otherwise (audit, lost rank)."""
    if arguments is None:
        use_utf8()
        hide_warnings_of_torch()
        spin_briefly()
    with safe_streams():
        try:
            options = parse_arguments(arguments)
            use_writable_caches()
        except UserError as error:
            return _report(error, 2)
        with listening() as stop:  # first: what follows imports torch, which takes seconds
            code = _train(options, stop)
            if code != 1:  # leaving a group that has lost a rank may hang
                _leave_group()
    return code


def _train(options: argparse.Namespace, stop: StopRequest) -> int:
    config = None
    try:
        config = load_config(options.config, options.overrides)  # reports mistakes before torch is imported
        with stop.deferred():
            from accel_restore.distributed.accelerator import tune_cpu
            from accel_restore.trainer.run import run_training

        tune_cpu(options.cpu)
        run_training(
            config,
            cpu=options.cpu,
            audit=options.audit,
            overwrite=options.overwrite,
            overrides=options.overrides,
            stop=stop,
            stop_after=options.stop_after,
        )
    except (UserError, MemoryError) as error:
        return _report(error, 2, getattr(error, "is_reporter", None))
    except PermissionError as error:
        return _report(permission_denied(error), 2)
    except PreemptedError as error:
        if config is not None and not error.recorded and is_main():
            record_preempted(run_folder(config))
        return _report(f"{error}; {resume_hint(options.overwrite and error.recorded)} from there", EXIT_CODE)
    except (AuditError, CallbackError, RunAbortedError) as error:
        is_reporter = getattr(error, "is_reporter", None)
        if is_reporter is None:  # all ranks raise it
            _leave_group()
        return _report(error, 1, is_reporter)
    except DivergedError as error:
        return _report(error, 3)
    return 0


def _report(error: Exception | str, code: int, reports: bool | None = None) -> int:
    """Print a message from one rank, the main process unless `reports` is given; return `code`."""
    if is_reporter() if reports is None else reports:
        print(f"accel-restore: {redacted(str(error))}", file=sys.stderr, flush=True)
    return code


def _leave_group() -> None:
    """Leave the process group, if one was joined: torch warns about processes that do not."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
