"""The entry of training: `accelerate launch accel_restore/train.py [--config FILE] [--cpu] [key=value ...]`."""

import os
import sys

if not __package__:
    # Run as a script, Python puts this folder first on the path, where our modules would shadow others' (tracking,
    # audit, ...) and `accel_restore` itself would not be found in a checkout that is not installed.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse

from accel_restore.errors import AuditFailed, Diverged, UserError
from accel_restore.parsing import load_config


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of training; flags and overrides in any order."""
    parser = argparse.ArgumentParser(
        prog="accel-restore train",
        description="Train an image restoration model. Without --config: the demo, real photographs, no network.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML configuration (default: configs/demo.yaml)")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU, one process per launch slot")
    parser.add_argument("--audit", action="store_true", help="record and prove what changed weights and learning rate")
    parser.add_argument("--overwrite", action="store_true", help="start the run again, removing what it has left")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data.batch_size=4 scheduler.name=constant"
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train; the exit code: 0 done, 2 wrong input, 1 a failed audit (or a crash), 3 diverged."""
    options = parse_arguments(arguments)
    code = 0
    try:
        config = load_config(options.config, options.overrides)  # mistakes show before torch is imported
        from accel_restore.session import run_training

        run_training(
            config, cpu=options.cpu, audit=options.audit, overwrite=options.overwrite, overrides=options.overrides
        )
    except UserError as error:
        code = _say(error, 2)
    except KeyboardInterrupt:
        code = _say("interrupted; the same command continues from the last commit", 130)
    except AuditFailed as error:
        code = _say(error, 1)
    except Diverged as error:
        code = _say(error, 3)
    _leave_group()
    return code


def _say(error: Exception | str, code: int) -> int:
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"accel-restore: {error}", file=sys.stderr, flush=True)
    return code


def _leave_group() -> None:
    """Leave the process group, where one was joined: torch warns about processes that do not."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
