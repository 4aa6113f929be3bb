"""W&B's client: whether it is online, how a run is begun and ended in its background process, what it has to say."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

_OFFLINE_SECONDS = 60.0  # to begin a run without a server, on a machine that is busy


def begin_run(
    mode: str, arguments: dict[str, Any], server_seconds: float, upload_seconds: float, hear: Callable[[str], None]
) -> Any:
    """A new W&B run. Its server has so many seconds to answer, and at the end to take what is left.

    `arguments` are of `wandb.init`, `dir` and `id` among them; `hear` gets the warnings that W&B would print.

    Raises: what W&B raises; no folder is left then.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry alone can hold up the end by 20 seconds
    import wandb

    settings = wandb.Settings(
        init_timeout=server_seconds if mode == "online" else _OFFLINE_SECONDS,
        finish_timeout=upload_seconds,
        finish_timeout_raises=True,
        silent=True,
        console="off",
        disable_git=True,  # an address may hold a token, uncommitted changes anything
        disable_code=True,
    )
    wandb.setup(settings=wandb.Settings(silent=True))
    folder = Path(arguments["dir"]) / "wandb"
    former = set(folder.glob("*run-*"))
    try:
        with _without_command_line():  # create_new leaves a run of the caller's own alone
            run = wandb.init(mode=mode, settings=settings, reinit="create_new", **arguments)
        run.define_metric("train/step")
        run.define_metric("train/*", step_metric="train/step")
        run.define_metric("val/*", step_metric="epoch")
    except Exception:
        for path in set(folder.glob(f"*run-*-{arguments['id']}")) - former:
            shutil.rmtree(path, ignore_errors=True)  # it has no rows, and could be taken for the run
        raise
    wandb.termsetup(wandb.Settings(silent=True), SimpleNamespace(info=lambda _: None, warning=hear, error=hear))
    return run


@contextmanager
def _without_command_line() -> Iterator[None]:
    """Hide the command line from W&B, which stores it: an override may hold a secret. The configuration says it all."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        yield
    finally:
        sys.argv = arguments


def end_run(run: Any, exit_code: int) -> bool:
    """End a run; whether the server has taken it in time. If not, W&B's process ends too, and has written everything.

    Raises: what W&B raises where its process is lost.
    """
    import wandb

    try:
        run.finish(exit_code=exit_code)
        return True
    except TimeoutError:
        with suppress(SystemExit):
            wandb.teardown()
        return False


def open_image(path: Path) -> Any:
    """A picture as W&B takes it.

    Raises: OSError where it cannot be read.
    """
    import wandb

    return wandb.Image(str(path))


def kill_service() -> None:
    """Kill W&B's background process, so that calls that wait for it return."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if process.name().startswith("wandb-core"):
                process.kill()
    with suppress(Exception):  # there is none, or a later W&B keeps it elsewhere: it then complains at exit
        from wandb.sdk import wandb_setup

        wandb_setup._singleton._connection._cleanup()  # the end of this process would wait for it


def drop_service() -> None:
    """Have the next run begin a new background process."""
    kill_service()
    with suppress(Exception, SystemExit):  # W&B may end this thread with the exit code of the killed process
        import wandb

        wandb.teardown()


def chosen_mode() -> str:
    """What `wandb: auto` means here: WANDB_MODE where it is set, online with a key, else offline."""
    if mode := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(mode, mode)
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether there is an API key, in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc(os.environ.get("NETRC")).hosts)
    except (OSError, NetrcParseError):
        return False
