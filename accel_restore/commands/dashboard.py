"""`accel-restore dashboard`: save a W&B workspace view with a panel for each logged quantity and all ranks in it."""

import argparse
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from accel_restore.commands._outputs import check_writable, write_report
from accel_restore.config.load import load_run_config
from accel_restore.config.schema import Tracking
from accel_restore.errors import UserError
from accel_restore.tracking.console import Console
from accel_restore.tracking.wandb_client import has_key
from accel_restore.utils.redaction import redacted

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

ANSWER_SECONDS = 30.0  # to wait for W&B's server; its client retries for minutes
_RANKS = "train/{}/rank_[0-9]+"
# Section title → (panel title, x-axis metric, list of metrics or a regular expression that matches them).
SECTIONS: dict[str, list[tuple[str, str, str | list[str]]]] = {
    "Training, per rank": [
        ("Loss per rank", "train/step", _RANKS.format("loss")),
        ("Learning rate per rank", "train/step", _RANKS.format("lr")),
        ("Gradient norm per rank", "train/step", _RANKS.format("grad_norm")),
        ("Loss, mean over ranks", "train/step", ["train/loss"]),
        ("Discriminator per rank", "train/step", _RANKS.format("d_(loss|real|fake|accuracy)")),
        ("Loss terms", "train/step", "train/terms/.+"),
    ],
    "Validation": [
        ("Loss", "epoch", ["val/loss"]),
        ("PSNR of output and input (dB)", "epoch", ["val/psnr", "val/input_psnr"]),
        ("SSIM of output and input", "epoch", ["val/ssim", "val/input_ssim"]),
        ("LPIPS and DISTS", "epoch", "val/(input_)?(lpips|dists)"),
    ],
    "Time and memory, per rank": [
        ("Step time (s)", "train/step", _RANKS.format("step_s")),
        ("Waiting for data per step (s)", "train/step", _RANKS.format("wait_s")),
        ("Memory (bytes)", "train/step", _RANKS.format("memory")),
    ],
}
PICTURES = "val/images"


def main(arguments: list[str]) -> int:
    """Save or print the view and return the exit code.

    Raises: UserError if the run, the API key or wandb-workspaces is missing, or the server rejects the view.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="accel-restore dashboard",
        description=f"{__doc__} Saving needs a W&B account (wandb login). Without one, `wandb leet RUN_DIR/wandb` "
        "shows a run's curves in the terminal.",
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN_DIR", help="show this run alone, in its project")
    parser.add_argument("--entity", help="the project's owner (default: the account's entity)")
    parser.add_argument("--project", help="PROJECT or ENTITY/PROJECT (default: the run's tracking.project)")
    parser.add_argument("--print", action="store_true", help="print the panels; save nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the view to FILE; save nothing")
    options = parser.parse_args(arguments)
    config = load_run_config(options.run) if options.run else None
    name = config.run.name if config else None
    tracking = config.tracking if config else Tracking()
    if options.project:
        tracking = _tracking(options.project)
    entity, project = tracking.entity_and_project
    entity = options.entity or entity
    if options.print:
        rows = [(title, panel, x, _joined(y)) for title, panels in SECTIONS.items() for panel, x, y in panels]
        title = f"view '{_name(name)}' of project {project}"
        Console(True).table(title, [*rows, ("Pictures", "Validation", "step", PICTURES)])
    if options.json:
        check_writable(options.json)
        view = make_view(entity, project, name)._to_model()
        write_report(
            options.json,
            {"name": view.display_name, "spec": view.spec.model_dump(mode="json", by_alias=True, exclude_none=True)},
        )
    if not (options.print or options.json):
        if not has_key():
            raise UserError(
                "dashboard: no W&B API key; run wandb login or set WANDB_API_KEY. Without an account, --print lists "
                "the panels, and wandb leet RUN_DIR/wandb shows a run's curves in the terminal"
            )
        _require_client()
        print(f"saved: {_within(ANSWER_SECONDS, lambda: _save(entity, project, name))}", flush=True)
    return 0


def _tracking(project: str) -> Tracking:
    try:
        return Tracking(project=project)
    except ValidationError as error:
        raise UserError(f"--project: {error.errors()[0]['msg']}") from None


def _name(run: str | None) -> str:
    return f"accel-restore, {run}" if run else "accel-restore"


def _joined(y: str | list[str]) -> str:
    return y if isinstance(y, str) else ", ".join(y)


def _require_client() -> None:
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        message = f"dashboard: wandb-workspaces cannot be imported ({error}); pip install 'accel-restore[workspaces]'"
        raise UserError(message) from error


def make_view(entity: str | None, project: str, run: str | None) -> "Workspace":
    """Return the view, limited to one run if it is named. Nothing is sent.

    Raises: UserError if wandb-workspaces is not installed.
    """
    _require_client()
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2 import LinePlot, MediaBrowser

    def panel(title: str, x: str, y: str | list[str]) -> LinePlot:
        return LinePlot(title=title, x=x, **({"metric_regex": y} if isinstance(y, str) else {"y": y}))

    sections = [
        workspaces.Section(name=title, panels=[panel(*each) for each in panels], is_open=True)
        for title, panels in SECTIONS.items()
    ]
    pictures = MediaBrowser(title="Validation: input, output, gt", media_keys=[PICTURES], num_columns=1)
    sections.insert(2, workspaces.Section(name="Pictures", panels=[pictures], is_open=True))
    runs = workspaces.RunsetSettings(query=run) if run else workspaces.RunsetSettings()
    return workspaces.Workspace(entity or "", project, name=_name(run), sections=sections, runset_settings=runs)


def _save(entity: str | None, project: str, run: str | None) -> str:
    """Save the view and return its URL."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return make_view(entity or wandb.Api().default_entity, project, run).save().url


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """Return the result of `action`, which calls W&B's server.

    Raises: UserError if it fails or takes longer than `seconds`.
    """
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(action())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=work, name="accel-restore-view", daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise UserError(f"dashboard: no answer from W&B for {seconds:.0f} s; the view may not be saved")
    if isinstance(result[0], UserError):
        raise result[0]
    if isinstance(result[0], Exception):
        reason = redacted(" ".join(str(result[0]).split()))
        raise UserError(f"dashboard: W&B rejected the view ({reason:.300})") from result[0]
    return result[0]
