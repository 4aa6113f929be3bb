"""W&B: one run, which the main process writes from metrics.jsonl. W&B can neither stop nor delay training.

A separate thread reads metrics.jsonl while it grows and calls W&B. It starts after the first step, which the import of
W&B would slow down. If the server, W&B's background process or its disk hangs, training waits no longer than this:

| event | training waits at most |
|---|---|
| start of the run: after `SERVER_SECONDS` without an answer, the thread starts it offline | never |
| a row is logged | never |
| end of training, the run has not started yet | `INIT_SECONDS` after the first step |
| end of training: after `UPLOAD_SECONDS`, the rest is left to `wandb sync` | `FINISH_SECONDS` |

metrics.jsonl is the reference. Every W&B run starts with its first line, so the newest folder in `wandb/` is complete,
also after a resumption or the loss of W&B's background process. Older folders move to `wandb/former/`: the server
keeps the rows that arrive last, so `wandb sync` of an older folder would overwrite newer rows.
"""

import os
import secrets
import shlex
import string
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_restore.config.schema import Tracking
from accel_restore.tracking.rows import RankRows, Rows, read_summary
from accel_restore.tracking.wandb_client import (
    auto_mode,
    drop_service,
    finish_run,
    has_key,
    kill_service,
    open_image,
    restored_output,
    start_run,
    sweep_trial,
)
from accel_restore.utils.redaction import redacted

SERVER_SECONDS = 8.0
INIT_SECONDS = 15.0
UPLOAD_SECONDS = 5.0
FINISH_SECONDS = 10.0  # a launcher allows about 30 s between SIGTERM and SIGKILL
_REWRITE_SECONDS = 4.0  # part of FINISH_SECONDS: to rewrite the run offline after a hung background process was killed
_MAX_STARTS = 4  # of the run
_LETTERS = string.ascii_lowercase + string.digits  # of an id


class WandbLogger:
    """Logs a run to W&B. If W&B is disabled or has failed, its methods do nothing."""

    def __init__(
        self,
        tracking: Tracking,
        name: str,
        folder: Path,
        config: dict[str, Any],
        ranks: int,
        id: str | None,
        log: Callable[[str], None],
        rank: int = 0,
    ):
        """Choose the mode. `id` is the W&B id of the run that is resumed; None for a new run.

        The main process logs the run of all ranks and, with `wandb_per_rank`, a run of its own rank. Any other `rank`
        logs only its own run and must pass the `id`.
        """
        self.id = id
        self.sender: _Sender | None = None
        self.notice: str | None = None  # for users who have not chosen W&B
        mode = tracking.wandb if tracking.wandb != "auto" else auto_mode()
        if mode == "disabled":
            return
        if mode == "online" and not has_key():  # W&B would prompt for one
            log("W&B: no API key (run wandb login, or set WANDB_API_KEY); this run is logged offline; sync it later")
            mode = "offline"
        entity, project = tracking.entity_and_project
        trial = sweep_trial()
        if tracking.wandb == "auto":
            place = f"online, project {trial.get('project', tracking.project)}" if mode == "online" else "offline"
            self.notice = f"W&B      {place}; files in {folder / 'wandb'}; tracking.wandb=false turns W&B off"
        self.id = trial.get("id") or id or "".join(secrets.choice(_LETTERS) for _ in range(8))
        ignored = None if trial else os.environ.get("WANDB_PROJECT")
        if ignored and ignored != tracking.project and not rank:
            log(f"W&B: WANDB_PROJECT is ignored; the run goes to tracking.project, {tracking.project}")
        owner = {"entity": entity} if entity else {}
        settings = {**owner, "project": project, "name": name, "dir": folder, "config": redacted(config), "id": self.id}
        settings |= trial
        if trial and tracking.wandb_per_rank:  # W&B would write the runs of all ranks into that of the trial
            if rank:
                return
            log("W&B: a trial of a sweep is one run, so tracking.wandb_per_rank is ignored")
        own = {"name": f"{name}-rank{rank}", "id": f"{self.id}-rank{rank}", "group": name, "job_type": "rank"}
        rank_run = _Run({**settings, **own}, lambda: RankRows(folder, rank))
        main_run = _Run(settings, lambda: Rows(folder, ranks))
        if rank:
            self.sender = _Sender(rank_run, None, mode, folder, log)
        else:
            per_rank = tracking.wandb_per_rank and not trial
            self.sender = _Sender(main_run, rank_run if per_rank else None, mode, folder, log)

    @property
    def unsynced(self) -> Path | None:
        """After `finish`: the folder of a run that is not completely on the server, else None."""
        return self.sender.unsynced if self.sender else None

    def update(self) -> None:
        """Send the new lines of metrics.jsonl; the first call starts the run."""
        if self.sender:
            self.sender.start()
            self.sender.wake.set()

    def finish(self, failed: bool) -> None:
        """Finish the run, and log the command that uploads what the server has not received."""
        if self.sender:
            self.sender.start()
            self.sender.finish(failed)


@dataclass
class _Run:
    """A W&B run and its rows."""

    settings: dict[str, Any]  # of `wandb.init`
    make_rows: Callable[[], Rows | RankRows]  # starts at the first row
    run: Any = None
    rows: Rows | RankRows | None = None


class _Sender:
    """Sends rows to W&B in a thread. A run that is lost is restarted offline and gets all rows again.

    The optional `side_run` is logged by the same thread. Its exceptions never affect the main run.
    """

    def __init__(self, main_run: _Run, side_run: _Run | None, mode: str, folder: Path, log: Callable[[str], None]):
        self.main_run, self.side_run, self.mode, self.folder, self.log = main_run, side_run, mode, folder, log
        self.thread = threading.Thread(target=self._work, name="accel-restore-wandb", daemon=True)
        self.ready = threading.Event()  # the run has started, or the thread gave up
        self.wake = threading.Event()  # there are new lines, or training ends
        self.unsynced: Path | None = None  # the run's folder while the server may lack data
        self.num_starts = 0
        self.started: float | None = None
        self.finishing = self.failed = self.abandoned = False
        self.is_complete = False  # the run has every line so far
        self.written = False  # the run was finished

    # Called by the training thread. Every wait has a limit.

    def start(self) -> None:
        if self.started is None:
            self.started = time.monotonic()
            self.thread.start()

    def finish(self, failed: bool) -> None:
        assert self.started is not None
        self.ready.wait(max(0.0, self.started + INIT_SECONDS - time.monotonic()))
        deadline = time.monotonic() + FINISH_SECONDS
        self.failed, self.finishing = failed, True
        self.wake.set()
        self.thread.join(FINISH_SECONDS - _REWRITE_SECONDS)
        if self.thread.is_alive():  # without W&B's process its calls fail, and the thread rewrites the run offline
            kill_service()
            self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self._abandon()
        if self.is_complete:
            self.log(f"W&B      view the run: wandb leet {shlex.quote(str(self.folder / 'wandb'))}")
        if self.unsynced is not None:
            self.log(self._sync_hint(self.unsynced))
        elif self.abandoned and not self.written:
            self.log("W&B did not respond and has no data of this run; metrics.jsonl is complete")

    def _abandon(self) -> None:
        """Stop using W&B, so that this process does not wait for it at exit."""
        self.abandoned = True
        kill_service()

    def _sync_hint(self, path: Path) -> str:
        offline = path.name.startswith("offline-")
        # without --include-online, `wandb sync` skips an online run silently
        command = f"wandb sync {'' if offline else '--include-online '}{shlex.quote(str(path))}"
        if not self.written:
            return f"W&B's copy of the run is incomplete (metrics.jsonl is complete); upload it: {command}"
        if offline:
            return f"W&B      logged offline; upload the run: {command}"
        return f"W&B has not received all data of this run; upload the rest: {command}"

    # Called in the thread.

    def _work(self) -> None:
        try:
            with restored_output():
                self._retry(lambda: None)
                self.ready.set()
                while not self.finishing:
                    self.wake.wait()
                    self.wake.clear()
                    self._retry(self._send)
                self._retry(self._finish)
        except _UnavailableError as error:
            if not self.abandoned:
                self.log(f"W&B logging stopped ({error}); training and metrics.jsonl continue")
        finally:
            self.ready.set()

    def _retry(self, action: Callable[[], None]) -> None:
        """Start the run if needed and call `action`; after an exception, restart the run offline and try again."""
        while True:
            try:
                if self.main_run.run is None:
                    self._start_runs()
                action()
                return
            except Exception as error:  # must not stop training
                self._prepare_restart(error)

    def _start_runs(self) -> None:
        self.num_starts += 1
        self.is_complete, self.is_uploading = False, self.mode == "online"
        self.unsynced = self._start_run(self.main_run)
        if self.side_run is not None:
            self.side_run.run = None
            try:
                self._start_run(self.side_run)
            except (Exception, SystemExit) as error:
                name = self.side_run.settings["name"]
                self.log(f"W&B: run {name} could not be started ({error}); the run of all ranks has the same values")

    def _start_run(self, run: _Run) -> Path:
        """Start a run at its first row; return its folder."""
        run.rows = run.make_rows()
        run.run = start_run(self.mode, run.settings, SERVER_SECONDS, UPLOAD_SECONDS, self._on_warning)
        path = Path(run.run.settings.sync_dir)
        return self.folder / path.parent.name / path.name

    def _prepare_restart(self, error: Exception) -> None:
        lost, self.main_run.run = self.main_run.run is not None, None
        drop_service()
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if self.abandoned or self.num_starts >= _MAX_STARTS or (self.mode != "online" and not lost):
            raise _UnavailableError(reason) from error
        self.mode = "offline"
        if lost:
            self.log(f"W&B's background process failed ({reason}); the run continues offline, with all its rows")
        elif type(error).__name__ == "AuthenticationError":
            self.log(f"W&B does not accept the API key ({reason}); this run is logged offline; sync it later")
        else:
            self.log(f"W&B cannot be reached ({reason}); this run is logged offline; sync it later")

    def _on_warning(self, text: str) -> None:
        """Log a warning of W&B. Such a warning is the only sign that W&B has stopped uploading."""
        if "wandb sync" in text:
            self.is_uploading = False
        elif "Timed out" not in text:
            self.log(f"W&B: {text.removeprefix('wandb: ')}")

    def _send(self) -> None:
        """Log the new rows. The run is then complete, so folders of earlier starts are moved away."""
        self._log_rows(self.main_run)
        if self.side_run is not None and self.side_run.run is not None:
            with suppress(Exception, SystemExit):
                self._log_rows(self.side_run)
        if not self.is_complete:
            self.is_complete = True
            for run in filter(None, (self.main_run, self.side_run)):
                self._move_former_folders(run)

    def _log_rows(self, run: _Run) -> None:
        assert run.rows is not None, "set by _start_run"
        for row in run.rows.read(flush=self.finishing):
            try:
                row = {key: open_image(value) if isinstance(value, Path) else value for key, value in row.items()}
            except OSError:  # truncated by a full disk
                continue
            run.run.log(row)

    def _move_former_folders(self, run: _Run) -> None:
        if run.run is None:
            return
        for path in self.folder.glob(f"wandb/*run-*-{run.settings['id']}"):
            if path.name != Path(run.run.settings.sync_dir).name:
                (path.parent / "former").mkdir(exist_ok=True)
                path.rename(path.parent / "former" / path.name)

    def _finish(self) -> None:
        self._send()
        if isinstance(self.main_run.rows, Rows):
            self.main_run.run.summary.update(redacted(read_summary(self.folder)))
        in_time = finish_run(self.main_run.run, exit_code=int(self.failed))
        self.written = True
        if in_time and self.is_uploading:
            self.unsynced = None
        if self.side_run is not None and self.side_run.run is not None:
            with suppress(Exception, SystemExit):
                finish_run(self.side_run.run, exit_code=int(self.failed))


class _UnavailableError(Exception):
    """W&B cannot be used any more."""
