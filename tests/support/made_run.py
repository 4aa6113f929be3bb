"""Writes the files of a finished run without training, optionally with hostile names in them."""

import json
from pathlib import Path

import numpy as np

from accel_restore.tracking.pictures import draw_samples

EVIL = "</script><img src=x onerror=window.owned=1><!--"
EVIL_FOLDER = "<img src=x onerror=window.owned=1>"
STEPS, EPOCHS = 60, 3
COLOURS = {"input": (220, 30, 30), "output": (30, 200, 30), "gt": (30, 30, 220)}
SPIKE = 9.0


def made_run(folder: Path, ranks: int = 2, steps: int = STEPS, evil: str = "") -> Path:
    """Write a finished, audited run of 3 epochs, with a line per step and rank, a skipped step and pictures."""
    folder.mkdir(parents=True)
    per_epoch = steps // EPOCHS
    lines = []
    for step in range(1, steps + 1):
        epoch = (step - 1) // per_epoch
        lines += [_train_line(epoch, step, rank, steps) for rank in range(ranks)]
        if step == steps // 2:
            found = [{"rank": 1, "files": [f"{evil}bad.png"], "terms": ["l1"]}]
            lines.append({"event": "skip", "epoch": epoch, "step": step, "in_row": 1, "of": found})
        if step % per_epoch == 0:
            lines.append(_epoch_line(epoch, step))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = {"epoch": 1, "step": 2 * per_epoch, "loss": 0.02, "psnr": 29.5, "input_psnr": 20.2}
    status = {"state": "finished", "epoch": EPOCHS, "step": steps, "world_size": ranks, "best": best, "error": evil}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "config.yaml").write_text(f"run: {{name: made}}\nloss: {{l1: 0.7, ssim: 0.3}}\nnotes: '{evil}'\n")
    plan = {"plan": [["devices", f"{ranks} × cpu"], ["model", f"{evil}unet"]], "epochs": EPOCHS, "steps": steps}
    plan |= {"protocol": {"psnr": "dB, peak 1"}, "versions": {"torch": "2.14.1"}}
    (folder / "plan.json").write_text(json.dumps(plan))
    row = {"operation": "optimizer.step", "calls": 60, "calls_per_epoch": 20.0, "weights_changed": 60, "lr_changed": 0}
    audit = {"ok": True, "ranks": ranks, "epochs": EPOCHS, "table": [row], "violations": []}
    (folder / "audit.json").write_text(json.dumps(audit))
    for epoch in range(EPOCHS):
        tiles = [(f"{evil}{name}", np.full((48, 64, 3), colour, np.uint8)) for name, colour in COLOURS.items()]
        draw_samples(folder / "samples" / f"epoch-{epoch:04d}.png", [tiles, tiles])
    return folder


def _train_line(epoch: int, step: int, rank: int, steps: int) -> dict:
    loss = SPIKE if (step, rank) == (steps // 3, 1) else 0.1 / step + 0.001 * rank
    return {
        "event": "train",
        "epoch": epoch,
        "step": step,
        "rank": rank,
        "loss": loss,
        "terms": {"l1": 0.7 * loss, "ssim": 0.3 * loss},
        "lr": 0.001 / (1 + epoch),
        "grad_norm": 0.1 + 0.01 * (step % 5),
        "samples": 8,
        "step_s": 0.2,
        "wait_s": 0.001 * (rank + 1),
    }


def _epoch_line(epoch: int, step: int) -> dict:
    scores = {"val_loss": 0.03 / (1 + epoch), "val_psnr": 28.0 + epoch, "val_input_psnr": 20.2, "val_ssim": 0.8}
    line = {"event": "epoch", "epoch": epoch, "step": step, "train_loss": 0.05, "lr": 0.001, **scores}
    return {**line, "val_terms": {"l1": 0.02, "ssim": 0.01}, "is_best": epoch == 1, "seconds": 12.0}
