"""Logs one run with the real W&B client, as training does, while a fault occurs.

Usage: python wandb_scenarios.py SCENARIO FOLDER. Imports no torch, because about 20 of these processes run in parallel.
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
from accel_restore.tracking import wandb_logger

AT_START = ["nothing_listens", "silent", "wrong_key", "error", "short_key", "no_key"]
SERVER_LOST = ["server_dies", "server_silent", "key_revoked"]
SERVICE_LOST = ["service_killed", "service_hangs"]
OTHERS = ["healthy", "resumed", "trainer_killed"]
CONTROLS = ["start_unguarded", "log_unguarded", "finish_unguarded"]

STEPS, RANKS, STEPS_PER_EPOCH = 30, 2, 10
FAULT_STEP = 15
TOKEN = "hf_S3cretS3cretS3cretS3cret"
_WIDE = {f"val_{i}": 1.5 for i in range(10_000)}  # fills the socket of a hung process

FAR = {"SERVER_SECONDS": 90.0, "INIT_SECONDS": 90.0, "UPLOAD_SECONDS": 90.0}
FAR |= {"FINISH_SECONDS": 180.0, "_REWRITE_SECONDS": 90.0}  # never reached, even on a busy machine
SHORT = {name: {"SERVER_SECONDS": 2.0} for name in [*AT_START, "resumed"]}  # the limits that each scenario reaches
SHORT |= {name: {"UPLOAD_SECONDS": 2.0} for name in SERVER_LOST} | {"service_hangs": {"FINISH_SECONDS": 92.0}}


def play(scenario: str, folder: Path) -> None:
    """Log a run during a fault. The last line printed is the outcome as JSON."""
    server = _serve(scenario, folder / "server")
    if scenario in CONTROLS:
        _play_unguarded(scenario, folder, server)
        return
    set_bounds(SHORT.get(scenario, {}))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    messages: list[str] = []
    logger = wandb_logger.WandbLogger(
        Tracking(wandb="online" if scenario == "no_key" else "auto"),
        "name",
        folder,
        {"lr": 0.1, "token": TOKEN},
        RANKS,
        _former(folder) if scenario == "resumed" else None,
        messages.append,
    )
    logger.update()  # starts the run
    logger.sender.ready.wait()  # the fault occurs after the start
    for step in range(FAULT_STEP + 1 if scenario == "resumed" else 1, STEPS + 1):
        if step == FAULT_STEP:
            _happen(scenario, server)
        write_step(folder, step, _WIDE if scenario == "service_hangs" else {})
        logger.update()
        time.sleep(0.005)
    logger.finish(failed=False)
    result = {
        "id": logger.id,
        "unsynced": str(logger.unsynced) if logger.unsynced else None,
        "messages": messages,
        "same_handlers": handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    }
    if server:
        server.kill()
    print(json.dumps(result), flush=True)


def set_bounds(short: dict[str, float]) -> None:
    """Set the limits in `short`, and all others to values that are never reached."""
    for name, seconds in (FAR | short).items():
        setattr(wandb_logger, name, seconds)


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
    """Log an interrupted run and return its id."""
    logger = wandb_logger.WandbLogger(Tracking(wandb="offline"), "name", folder, {}, RANKS, None, print)
    for step in range(1, FAULT_STEP + 1):
        write_step(folder, step)
        logger.update()
    logger.finish(failed=True)
    return logger.id


def write_step(folder: Path, step: int, scores: dict[str, float] | None = None) -> None:
    """Append the lines of a step to metrics.jsonl, as training does."""
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
    elif scenario == "service_killed":  # as by `scancel`, which signals all processes of a job
        service().kill()
    elif scenario in ("service_hangs", "log_unguarded"):
        service().suspend()
    elif scenario == "healthy":  # as by Ctrl-C, which reaches the whole group
        former = signal.signal(signal.SIGINT, lambda *_: None)
        os.killpg(0, signal.SIGINT)
        signal.signal(signal.SIGINT, former)
    elif scenario == "trainer_killed":
        while len(server.rows()) < FAULT_STEP:  # including an epoch's row
            time.sleep(0.05)
        server.kill()
        print(service().pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def service() -> psutil.Process:
    """Return W&B's background process."""
    return next(child for child in psutil.Process().children() if child.name().startswith("wandb-core"))


def _play_unguarded(scenario: str, folder: Path, server: Stub) -> None:
    """Apply the same faults to the client alone; print its service's process id before it blocks."""
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
