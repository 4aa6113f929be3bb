"""Calls into W&B's client: select the mode, start and finish runs, and end its background process."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
from pydantic import ValidationError

from accel_restore.config.schema import Tracking
from accel_restore.errors import UserError
from accel_restore.utils.places import can_write, home, user_cache

_MODES = {"online": "online", "offline": "offline", "disabled": "disabled", "dryrun": "offline", "run": "online"}
_OWN = {"WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_DIR", "WANDB_ERROR_REPORTING"}  # not checked by W&B
_OFFLINE_SECONDS = 60.0  # to start a run without a server, on a busy machine


def start_run(
    mode: str,
    arguments: dict[str, Any],
    server_seconds: float,
    upload_seconds: float,
    on_warning: Callable[[str], None],
) -> Any:
    """Start a W&B run and return it.

    `arguments` go to `wandb.init` and include `dir` and `id`. The server has `server_seconds` to answer now, and
    `upload_seconds` to receive the remaining data at the end. `on_warning` receives the warnings that W&B would print.

    Raises: the exceptions of `wandb.init`; the run's folder is then removed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry can delay the end by 20 seconds
    import wandb

    with _usable_environment():
        wandb.setup(settings=wandb.Settings(silent=True))
    settings = wandb.Settings(
        init_timeout=server_seconds if mode == "online" else _OFFLINE_SECONDS,
        finish_timeout=upload_seconds,
        finish_timeout_raises=True,
        silent=True,
        console="off",
        disable_git=True,  # a remote URL may contain a token, uncommitted changes anything
        disable_code=True,
    )
    folder = Path(arguments["dir"]) / "wandb"
    former = set(folder.glob("*run-*"))
    try:
        with _without_command_line(), _usable_environment():
            # create_new leaves a run of the caller untouched
            run = wandb.init(mode=cast(Any, mode), settings=settings, reinit="create_new", **arguments)
        run.define_metric("train/step")
        run.define_metric("train/*", step_metric="train/step")
        run.define_metric("val/*", step_metric="epoch")
    except Exception:
        for path in set(folder.glob(f"*run-*-{arguments['id']}")) - former:
            shutil.rmtree(path, ignore_errors=True)  # empty, but `wandb sync` could take it for the run
        raise
    wandb.termsetup(
        wandb.Settings(silent=True), SimpleNamespace(info=lambda _: None, warning=on_warning, error=on_warning)
    )
    return run


@contextmanager
def restored_output() -> Iterator[None]:
    """Restore at the end whether W&B prints its messages, for runs that the caller of `fit` starts afterwards."""
    silent = None
    with suppress(Exception):  # not installed, or another version; `start_run` raises what matters
        silent = _settings().silent
    try:
        yield
    finally:
        with suppress(Exception):
            import wandb

            settings = _settings()
            settings.silent = silent
            wandb.termsetup(settings, None)


def _settings() -> Any:
    """W&B's settings for all runs of this process; its background process is not started."""
    from wandb.sdk import wandb_setup

    return wandb_setup.singleton().settings


@contextmanager
def _without_command_line() -> Iterator[None]:
    """Hide the command line, which W&B stores: an override may contain a secret. The run's configuration has it all."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        yield
    finally:
        sys.argv = arguments


def finish_run(run: Any, exit_code: int) -> bool:
    """Finish a run and return whether the server received it in time.

    If not, W&B's background process is ended after it has written everything to disk.

    Raises: the exceptions of `run.finish` if the background process was lost.
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
    """Return a picture as a W&B image.

    Raises: OSError if it cannot be read.
    """
    import wandb

    return wandb.Image(str(path))


def kill_service() -> None:
    """Kill W&B's background process, so that calls waiting for it return."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if process.name().startswith("wandb-core"):
                process.kill()
    with suppress(Exception):  # there is none, or another version of W&B keeps it elsewhere and then warns at exit
        from wandb.sdk import wandb_setup

        setup: Any = wandb_setup._singleton
        setup._connection._cleanup()  # else this process would wait for it at exit


def drop_service() -> None:
    """Make the next run start a new background process."""
    kill_service()
    with suppress(Exception, SystemExit):  # W&B may end this thread with the exit code of the killed process
        import wandb

        wandb.teardown()


@contextmanager
def _usable_environment() -> Iterator[None]:
    """Hide what W&B stumbles over: empty variables, a missing home, and a cache that cannot be written.

    Without its cache, W&B's background process would print its log.
    """
    changes: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith("WANDB_") and not os.environ[name]
    }
    own = home()
    if own is None:
        changes["HOME"] = str(user_cache())
    named = os.environ.get("WANDB_CACHE_DIR")
    cache = (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or (own or user_cache()) / ".cache", "wandb")
    )
    if not can_write(cache / "logs"):
        changes["WANDB_CACHE_DIR"] = str(user_cache() / "wandb")
    before = {name: os.environ.get(name) for name in changes}
    _change_environment(changes)
    try:
        yield
    finally:
        _change_environment(before)


def _change_environment(changes: dict[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def auto_mode() -> str:
    """Return the mode for `wandb: auto`: disabled if WANDB_DISABLED is true, else WANDB_MODE if it is set.

    Otherwise it is online with an API key and offline without.
    """
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    if mode := os.environ.get("WANDB_MODE"):
        return _MODES.get(mode, mode)
    return "online" if has_key() else "offline"


def sweep_trial() -> dict[str, str]:
    """Return the id, project and entity of the W&B run that `wandb agent` has set for this process; none elsewhere.

    In a sweep, W&B ignores those that `wandb.init` is given.
    """
    if not (os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID")):
        return {}
    names = {"id": "WANDB_RUN_ID", "project": "WANDB_PROJECT", "entity": "WANDB_ENTITY"}
    return {key: value for key, name in names.items() if (value := os.environ.get(name))}


def check_settings(tracking: Tracking) -> None:
    """Check the environment variables that W&B reads, before anything is written.

    Raises: UserError that names the variable.
    """
    if "disabled" in (tracking.wandb, tracking.wandb == "auto" and auto_mode()):
        return
    if (mode := os.environ.get("WANDB_MODE")) and mode not in _MODES:
        raise UserError(f"WANDB_MODE={mode}: is none of {', '.join(_MODES)}; correct it or unset it")
    names = {name for name, value in os.environ.items() if name.startswith("WANDB_") and value} - _OWN
    if not names:
        return
    import wandb

    for name in sorted(names):
        try:
            wandb.Settings().update_from_env_vars({name: os.environ[name]})
        except Exception as error:  # pydantic's or W&B's
            text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UserError(f"{name}: W&B does not accept its value ({text}); correct it or unset it") from None


def has_key() -> bool:
    """Return whether there is an API key in the environment or the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc(os.environ.get("NETRC")).hosts)
    except (OSError, NetrcParseError):
        return False
