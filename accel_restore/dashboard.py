"""W&B: one run, written by the main process from values gathered of all ranks; it cannot stop training."""

import os
from collections.abc import Callable
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from accel_restore.config import Tracking

_INIT_SECONDS = 15
_FINISH_SECONDS = 20


class Dashboard:
    """The W&B run, or nothing where it is disabled or has failed: then one line says so, and training goes on."""

    def __init__(
        self,
        tracking: Tracking,
        name: str,
        folder: Path,
        config: dict[str, Any],
        ranks: int,
        id: str | None,
        notice: Callable[[str], None],
    ):
        self.run, self.id, self.notice = None, id, notice
        if tracking.wandb == "disabled":
            return
        self.mode = tracking.wandb if tracking.wandb != "auto" else chosen_mode()
        if self.mode == "disabled":
            return
        if self.mode == "online" and not has_key():  # W&B would ask for one, and the other ranks would wait
            notice("W&B has no key (wandb login, or WANDB_API_KEY); this run is kept offline, to be synced later")
            self.mode = "offline"
        arguments = (tracking.project, name, folder, config)
        if self.mode == "online":
            try:
                self._init(*arguments)
            except Exception as error:  # whatever W&B raises: training matters more
                self.notice(
                    f"W&B cannot be reached ({_first_line(error)}); this run is kept offline, to be synced later"
                )
                self.mode = "offline"
        if self.run is None:
            self._guard(lambda: self._init(*arguments))
        self._send(lambda run: self._define(run, ranks))

    def _init(self, project: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        settings = wandb.Settings(
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            silent=True,
            console="off",
            x_disable_stats=False,
        )
        self.run = wandb.init(
            project=project,
            name=name,
            dir=folder,
            config=config,
            mode=self.mode,
            id=self.id,
            settings=settings,
            resume="allow" if self.id and self.mode == "online" else None,
        )
        self.id = self.run.id

    @staticmethod
    def _define(run: Any, ranks: int) -> None:
        per_rank = [f"train/{key}/rank_{rank}" for key in ("loss", "lr") for rank in range(ranks)]
        for key in ["train/loss", "train/lr", *per_rank]:
            run.define_metric(key, step_metric="train/step")
        for key in ("val/loss", "val/psnr", "val/ssim", "val/images"):
            run.define_metric(key, step_metric="epoch")

    def log(self, values: dict[str, Any]) -> None:
        """Send one row of values."""
        self._send(lambda run: run.log(values))

    def log_picture(self, path: Path, epoch: int) -> None:
        """Send the validation picture of an epoch."""

        def send(run: Any) -> None:
            import wandb

            run.log({"val/images": wandb.Image(str(path)), "epoch": epoch})

        self._send(send)

    def finish(self, failed: bool) -> None:
        """End the run; waits for the server for a bounded time."""
        self._send(lambda run: run.finish(exit_code=int(failed)))
        self.run = None

    def _send(self, action: Callable[[Any], None]) -> None:
        if self.run is not None:
            self._guard(lambda: action(self.run))

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.notice(f"W&B stopped ({_first_line(error)}); training and metrics.jsonl go on")
            self.run = None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def chosen_mode() -> str:
    """What `wandb: auto` means here: WANDB_MODE where it is set, online with a key, else offline."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether there is an API key, in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc(os.environ.get("NETRC")).hosts)
    except (OSError, NetrcParseError):
        return False
