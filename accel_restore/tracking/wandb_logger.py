"""W&B: one run, written by the main process from metrics.jsonl; it can neither stop nor delay training.

A thread of its own reads metrics.jsonl as it grows and talks to W&B, so whatever hangs (the server, W&B's background
process, its disk) holds up nobody for longer than this:

| training waits | at most |
|---|---|
| to begin the run: the server has `SERVER_SECONDS` to answer, then the run is begun offline | never |
| to log a row | never |
| at its end, for a run that has not begun: since its start | `INIT_SECONDS` |
| to end the run: uploads have `UPLOAD_SECONDS`, then the rest is left to `wandb sync` | `FINISH_SECONDS` |

metrics.jsonl is the record of truth. Every W&B run begins with its first line, so its newest folder below `wandb/` has
it whole, also after a resumption, and after W&B's background process was lost. The folders before it are set aside in
`wandb/former/`: `wandb sync` of an older one would replace the rows of the newer, as the server keeps what comes last.
"""

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
    begin_run,
    chosen_mode,
    drop_service,
    end_run,
    has_key,
    kill_service,
    open_image,
)
from accel_restore.utils.redaction import redacted

SERVER_SECONDS = 8.0
INIT_SECONDS = 15.0
UPLOAD_SECONDS = 5.0
FINISH_SECONDS = 10.0  # a launcher grants about 30 between SIGTERM and SIGKILL
_AGAIN_SECONDS = 4.0  # of these, to write the run anew where W&B's process hangs and was killed
_STARTS = 4  # of W&B's background process


class WandbLogger:
    """The W&B run, or nothing where it is disabled or has failed: then one line says so, and training goes on."""

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
        """`id` is that of the run in `folder` so far, None for a new one; every step has a line of each of `ranks`.

        The main process writes the run of all ranks and, with `wandb_per_rank`, one of its own; another `rank` its own
        alone, for which it must know the `id`.
        """
        self.id, self.sender = id, None
        mode = tracking.wandb if tracking.wandb != "auto" else chosen_mode()
        if mode == "disabled":
            return
        if mode == "online" and not has_key():  # W&B would ask for one
            log("W&B has no key (wandb login, or WANDB_API_KEY); this run is kept offline, to be synced later")
            mode = "offline"
        self.id = id or "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
        settings = {"project": tracking.project, "name": name, "dir": folder, "config": redacted(config), "id": self.id}
        own = {"name": f"{name}-rank{rank}", "id": f"{self.id}-rank{rank}", "group": name, "job_type": "rank"}
        of_rank = _Part({**settings, **own}, lambda: RankRows(folder, rank))
        of_all = _Part(settings, lambda: Rows(folder, ranks))
        if rank:
            self.sender = _Sender(of_rank, None, mode, folder, log)
        else:
            self.sender = _Sender(of_all, of_rank if tracking.wandb_per_rank else None, mode, folder, log)
        self.sender.start()

    @property
    def unsynced(self) -> Path | None:
        """The folder of a run of which the server lacks something, None where it has everything; once finished."""
        return self.sender.unsynced if self.sender else None

    def update(self) -> None:
        """Have the lines sent that metrics.jsonl has now."""
        if self.sender:
            self.sender.wake.set()

    def finish(self, failed: bool) -> None:
        """End the run, and say how to complete it where the server lacks something."""
        if self.sender:
            self.sender.finish(failed)


@dataclass
class _Part:
    """A W&B run and the rows that it gets."""

    settings: dict[str, Any]  # for `wandb.init`
    make_rows: Callable[[], Rows | RankRows]  # from the first one on
    run: Any = None
    rows: Rows | RankRows | None = None


class _Sender:
    """Takes rows from metrics.jsonl to W&B; a run that is lost is begun anew, offline, with the first of them.

    A second run may ride along in the same thread: nothing that it raises touches the first.
    """

    def __init__(self, part: _Part, rider: _Part | None, mode: str, folder: Path, log: Callable[[str], None]):
        self.part, self.rider, self.mode, self.folder, self.log = part, rider, mode, folder, log
        self.thread = threading.Thread(target=self._work, name="accel-restore-wandb", daemon=True)
        self.ready = threading.Event()  # begun, or given up
        self.wake = threading.Event()  # there are new lines, or the run ends
        self.unsynced: Path | None = None  # the folder of the run, as long as the server may lack something
        self.starts = 0
        self.finishing = self.failed = self.abandoned = False
        self.is_whole = False  # has every line so far
        self.written = False  # to the end

    # What the training thread calls: nothing here waits for W&B without a limit.

    def start(self) -> None:
        self.began = time.monotonic()
        self.thread.start()

    def finish(self, failed: bool) -> None:
        self.ready.wait(max(0.0, self.began + INIT_SECONDS - time.monotonic()))
        deadline = time.monotonic() + FINISH_SECONDS
        self.failed, self.finishing = failed, True
        self.wake.set()
        self.thread.join(FINISH_SECONDS - _AGAIN_SECONDS)
        if self.thread.is_alive():  # what waits for W&B's process fails with it, and the run is written anew, offline
            kill_service()
            self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self._abandon()
        if self.is_whole:
            self.log(f"W&B      see it with: wandb leet {shlex.quote(str(self.folder / 'wandb'))}")
        if self.unsynced is not None:
            self.log(self._what_is_left(self.unsynced))
        elif self.abandoned and not self.written:
            self.log("W&B does not answer and has nothing of this run; metrics.jsonl has everything")

    def _abandon(self) -> None:
        """Leave W&B as it is, so that the end of this process does not wait for it."""
        self.abandoned = True
        kill_service()

    def _what_is_left(self, path: Path) -> str:
        offline = path.name.startswith("offline-")
        # without the flag it does nothing, silently
        command = f"wandb sync {'' if offline else '--include-online '}{shlex.quote(str(path))}"
        if not self.written:
            return f"W&B's copy of the run ends early (metrics.jsonl does not); upload what there is with: {command}"
        if offline:
            return f"W&B      kept offline; upload it with: {command}"
        return f"W&B has not received everything; it is kept here, complete it with: {command}"

    # What runs in the thread.

    def _work(self) -> None:
        try:
            self._persist(lambda: None)
            self.ready.set()
            while not self.finishing:
                self.wake.wait()
                self.wake.clear()
                self._persist(self._send)
            self._persist(self._end)
        except _GaveUpError as error:
            if not self.abandoned:
                self.log(f"W&B stopped ({error}); training and metrics.jsonl go on")
        finally:
            self.ready.set()

    def _persist(self, action: Callable[[], None]) -> None:
        """Act in a run that has begun; again after every loss of W&B's process, in a run that begins anew, offline."""
        while True:
            try:
                if self.part.run is None:
                    self._begin()
                action()
                return
            except Exception as error:  # whatever W&B raises: training matters more
                self._prepare_again(error)

    def _begin(self) -> None:
        """Begin a run without rows."""
        self.starts += 1
        self.is_whole, self.is_uploading = False, self.mode == "online"
        self.unsynced = self._begin_part(self.part)
        if self.rider is not None:
            self.rider.run = None
            try:
                self._begin_part(self.rider)
            except (Exception, SystemExit) as error:
                name = self.rider.settings["name"]
                self.log(f"W&B      {name} could not be begun ({error}); the run of all ranks has what it would")

    def _begin_part(self, part: _Part) -> Path:
        """Begin a run; its folder."""
        part.rows = part.make_rows()
        part.run = begin_run(self.mode, part.settings, SERVER_SECONDS, UPLOAD_SECONDS, self._hear)
        path = Path(part.run.settings.sync_dir)
        return self.folder / path.parent.name / path.name

    def _prepare_again(self, error: Exception) -> None:
        lost, self.part.run = self.part.run is not None, None
        drop_service()
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if self.abandoned or self.starts >= _STARTS or (self.mode != "online" and not lost):
            raise _GaveUpError(reason) from error
        self.mode = "offline"
        if lost:
            self.log(f"W&B's process was lost ({reason}); the run goes on offline, from metrics.jsonl")
        else:
            self.log(f"W&B cannot be reached ({reason}); this run is kept offline, to be synced later")

    def _hear(self, text: str) -> None:
        """A warning of W&B's, by which alone one learns that it uploads no more."""
        if "wandb sync" in text:
            self.is_uploading = False
        elif "Timed out" not in text:
            self.log(f"W&B: {text.removeprefix('wandb: ')}")

    def _send(self) -> None:
        """Log the lines that have come; from then on the run is the one that has them all."""
        self._log(self.part)
        if self.rider is not None and self.rider.run is not None:
            with suppress(Exception, SystemExit):
                self._log(self.rider)
        if not self.is_whole:
            self.is_whole = True
            for part in filter(None, (self.part, self.rider)):
                self._set_former_aside(part)

    def _log(self, part: _Part) -> None:
        for row in part.rows.read(rest=self.finishing):
            if "val/images" in row:
                try:
                    row = {**row, "val/images": open_image(row["val/images"])}
                except OSError:  # a full disk may have cut it off
                    continue
            part.run.log(row)

    def _set_former_aside(self, part: _Part) -> None:
        """Move the folders of the run away that were written before it began anew."""
        if part.run is None:
            return
        for path in self.folder.glob(f"wandb/*run-*-{part.settings['id']}"):
            if path.name != Path(part.run.settings.sync_dir).name:
                (path.parent / "former").mkdir(exist_ok=True)
                path.rename(path.parent / "former" / path.name)

    def _end(self) -> None:
        self._send()
        if isinstance(self.part.rows, Rows):
            self.part.run.summary.update(redacted(read_summary(self.folder)))
        in_time = end_run(self.part.run, exit_code=int(self.failed))
        self.written = True
        if in_time and self.is_uploading:
            self.unsynced = None
        if self.rider is not None and self.rider.run is not None:
            with suppress(Exception, SystemExit):
                end_run(self.rider.run, exit_code=int(self.failed))


class _GaveUpError(Exception):
    """W&B cannot be had."""
