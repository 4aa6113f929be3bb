"""One run, recorded as training does it with the real W&B client, to which something happens: a process of its own.

`python wandb_scenarios.py SCENARIO FOLDER`. Imports no torch: a score of these run side by side.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
from stub_wandb import Stub, free_port

from accel_restore.config.schema import Tracking
from accel_restore.tracking import wandb_logger as dashboard

AT_START = ["nothing_listens", "silent", "wrong_key", "error", "short_key", "no_key"]
SERVER_LOST = ["server_dies", "server_silent", "key_revoked"]
SERVICE_LOST = ["service_killed", "service_hangs"]
OTHERS = ["healthy", "resumed", "trainer_killed"]
CONTROLS = ["start_unguarded", "log_unguarded", "finish_unguarded"]

STEPS, RANKS, STEPS_PER_EPOCH = 30, 2, 10
FAULT_STEP = 15
TOKEN = "hf_S3cretS3cretS3cretS3cret"
_WIDE = {f"val_{i}": 1.5 for i in range(10_000)}  # fill the socket of a process that reads no more

FAR = {"SERVER_SECONDS": 90.0, "INIT_SECONDS": 90.0, "UPLOAD_SECONDS": 90.0}
FAR |= {"FINISH_SECONDS": 180.0, "_AGAIN_SECONDS": 90.0}  # far off even where many processes share few cores
SHORT = {name: {"SERVER_SECONDS": 2.0} for name in [*AT_START, "resumed"]}  # the bounds that a scenario runs into
SHORT |= {name: {"UPLOAD_SECONDS": 2.0} for name in SERVER_LOST} | {"service_hangs": {"FINISH_SECONDS": 92.0}}


def play(scenario: str, folder: Path) -> None:
    """Record a run while something happens; prints, last, what came of it as JSON."""
    server = _serve(scenario, folder / "server")
    if scenario in CONTROLS:
        _play_unguarded(scenario, folder, server)
        return
    set_bounds(SHORT.get(scenario, {}))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    notices: list[str] = []
    board = dashboard.WandbLogger(
        Tracking(wandb="online" if scenario == "no_key" else "auto"),
        "name",
        folder,
        {"lr": 0.1, "token": TOKEN},
        RANKS,
        _former(folder) if scenario == "resumed" else None,
        notices.append,
    )
    board.sender.ready.wait()  # what happens, happens to a run that has begun
    for step in range(FAULT_STEP + 1 if scenario == "resumed" else 1, STEPS + 1):
        if step == FAULT_STEP:
            _happen(scenario, server)
        write_step(folder, step, _WIDE if scenario == "service_hangs" else {})
        board.update()
        time.sleep(0.005)
    board.finish(failed=False)
    result = {
        "id": board.id,
        "unsynced": str(board.unsynced) if board.unsynced else None,
        "notices": notices,
        "same_handlers": handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    }
    if server:
        server.kill()
    print(json.dumps(result), flush=True)


def set_bounds(short: dict[str, float]) -> None:
    """Shorten the bounds that a test runs into, and put off all others."""
    for name, seconds in (FAR | short).items():
        setattr(dashboard, name, seconds)


def _serve(scenario: str, folder: Path) -> Stub | None:
    if scenario in ("nothing_listens", "resumed"):
        os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{free_port()}"
        return None
    behaviour = "silent" if scenario == "start_unguarded" else scenario
    server = Stub(folder, behaviour if behaviour in ("silent", "wrong_key", "error") else "good")
    os.environ["WANDB_BASE_URL"] = server.url
    if scenario == "short_key":
        os.environ["WANDB_API_KEY"] = "abc"
    elif scenario == "no_key":
        del os.environ["WANDB_API_KEY"]
    return server


def _former(folder: Path) -> str:
    """The id of a run that was interrupted; its lines stand in metrics.jsonl."""
    board = dashboard.WandbLogger(Tracking(wandb="offline"), "name", folder, {}, RANKS, None, print)
    for step in range(1, FAULT_STEP + 1):
        write_step(folder, step)
        board.update()
    board.finish(failed=True)
    return board.id


def write_step(folder: Path, step: int, scores: dict[str, float] | None = None) -> None:
    """Append what training writes into metrics.jsonl at a step."""
    epoch = (step - 1) // STEPS_PER_EPOCH
    place = {"epoch": epoch, "step": step}
    lines = [
        {"event": "train", **place, "rank": rank, "loss": (rank + 1) / step, "lr": 0.1 / step, "samples": 8}
        for rank in range(RANKS)
    ]
    if step % STEPS_PER_EPOCH == 0:
        lines.append({"event": "epoch", **place, "val_loss": 3 / step, "val_psnr": 20 + epoch, **(scores or {})})
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _happen(scenario: str, server: Stub | None) -> None:
    if scenario in (*SERVER_LOST, "finish_unguarded"):
        while not server.rows():
            time.sleep(0.05)
    if scenario in ("server_dies", "finish_unguarded"):
        server.kill()
    elif scenario == "server_silent":
        server.freeze()
    elif scenario == "key_revoked":
        server.kill()
        server.start("wrong_key")
    elif scenario == "service_killed":  # what `scancel` does, which signals all processes of a job
        service().kill()
    elif scenario in ("service_hangs", "log_unguarded"):
        service().suspend()
    elif scenario == "healthy":  # Ctrl-C in a terminal reaches the whole group; training saves and ends by itself
        former = signal.signal(signal.SIGINT, lambda *_: None)
        os.killpg(0, signal.SIGINT)
        signal.signal(signal.SIGINT, former)
    elif scenario == "trainer_killed":
        while len(server.rows()) < FAULT_STEP:  # an epoch's too
            time.sleep(0.05)
        server.kill()
        print(service().pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def service() -> psutil.Process:
    """W&B's background process."""
    return next(child for child in psutil.Process().children() if child.name().startswith("wandb-core"))


def _play_unguarded(scenario: str, folder: Path, server: Stub) -> None:
    """The same faults with the client as it comes; prints its service's process id before it is blocked."""
    import wandb

    if scenario == "start_unguarded":
        print("blocked None", flush=True)
    run = wandb.init(project="p", dir=folder, mode="online", settings=wandb.Settings(console="off"))
    pid = service().pid
    for step in range(1, STEPS + 1):
        if step == FAULT_STEP:
            _happen(scenario, server)
            if scenario == "log_unguarded":
                print(f"blocked {pid}", flush=True)
        run.log({"step": step, **(_WIDE if scenario == "log_unguarded" else {})})
    print(f"blocked {pid}", flush=True)
    run.finish()


if __name__ == "__main__":
    play(sys.argv[1], Path(sys.argv[2]))
