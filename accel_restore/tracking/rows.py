"""The rows that W&B and TensorBoard receive, built from the lines of metrics.jsonl and memory.jsonl in file order."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from accel_restore.tracking.report.pictures import PREVIEWS, sheet_path
from accel_restore.tracking.run_files import JsonlTail, read_audit, read_status, set_scores, validation_scores

_OF_DISCRIMINATOR = ("d_loss", "d_real", "d_fake", "d_accuracy", "d_lr", "d_grad_norm", "g_share")
# Logged as train/NAME/rank_R, if a line has it.
PER_RANK = ("loss", "lr", "grad_norm", *_OF_DISCRIMINATOR, "step_s", "wait_s", "memory")


class Rows:
    """Rows of all ranks, read from a run's files while they grow. A picture of an epoch is a row with its path."""

    def __init__(self, folder: Path, ranks: int):
        self.folder, self.ranks = folder, ranks
        self.metrics, self.memory = JsonlTail(folder / "metrics.jsonl"), JsonlTail(folder / "memory.jsonl")
        self.ahead: list[dict[str, Any]] = []  # a line of memory.jsonl whose step has no row yet
        self.pending: list[dict[str, Any]] = []  # lines of one step or epoch that are not a row yet

    def read(self, flush: bool) -> Iterator[dict[str, Any]]:
        """Yield the rows of new lines. A step that lacks the lines of some ranks is held back, unless `flush`."""
        for line in self.metrics:
            if line["event"] not in ("train", "epoch"):
                continue
            if self.pending and _place(line) != _place(self.pending[0]):
                yield from self._release()
            self.pending.append(line)
        if self.pending and (flush or self.pending[0]["event"] == "epoch" or len(self.pending) >= self.ranks):
            yield from self._release()

    def _release(self) -> Iterator[dict[str, Any]]:
        lines, self.pending = self.pending, []
        if lines[0]["event"] == "train":
            memory = self._memory_at(lines[0]["step"])
            yield _train_row([{**line, "memory": memory.get(line["rank"])} for line in lines])
            return
        epoch = lines[0]["epoch"]
        for kind, key in (("", "val/images"), (PREVIEWS, "val/previews")):
            picture = sheet_path(self.folder, epoch, kind=kind)
            if picture.exists():
                yield {"epoch": epoch, key: picture}
        row = _score_row("val", validation_scores(lines[0]))
        for name, scores in set_scores(lines[0]).items():
            row |= _score_row(f"val/{word(name)}", scores)
        yield {"epoch": epoch, **row}

    def _memory_at(self, step: int) -> dict[int, int]:
        """Return the bytes of each rank at a step. memory.jsonl is written before metrics.jsonl."""
        found = {}
        for line in chain(self.ahead, self.memory):
            self.ahead = [line] if line["step"] > step else []
            if self.ahead:
                break
            if line["step"] == step:
                found[line["rank"]] = line["memory"]
        return found


class RankRows:
    """Rows of one rank alone, from the same files, as train/NAME."""

    def __init__(self, folder: Path, rank: int):
        self.rank = rank
        self.metrics, self.memory = JsonlTail(folder / "metrics.jsonl"), JsonlTail(folder / "memory.jsonl")
        self.bytes: dict[int, int] = {}  # step → memory, for steps that have no row yet

    def read(self, flush: bool) -> Iterator[dict[str, Any]]:
        """Yield the rows of new lines; `flush` changes nothing, as every line is a row."""
        for line in self.metrics:
            if line["event"] == "train" and line["rank"] == self.rank:
                line["memory"] = self._memory_at(line["step"])
                values = {f"train/{name}": line.get(name) for name in ("step", *PER_RANK)}
                values |= {f"train/{word(name)}/loss": loss for name, loss in line.get("set_loss", {}).items()}
                yield {key: value for key, value in values.items() if value is not None}

    def _memory_at(self, step: int) -> int | None:
        """Return the bytes at a step. memory.jsonl is written before metrics.jsonl."""
        self.bytes |= {line["step"]: line["memory"] for line in self.memory if line["rank"] == self.rank}
        return self.bytes.pop(step, None)


def word(name: str) -> str:
    """Return a name with _ in place of what W&B cannot sort by or takes for a section: `.` and `:` of import paths."""
    return re.sub(r"[^\w/]", "_", name)


def _score_row(section: str, scores: dict[str, Any]) -> dict[str, Any]:
    flat = scores | {f"terms/{name}": value for name, value in (scores.get("terms") or {}).items()}
    return {f"{section}/{word(name)}": value for name, value in flat.items() if value is not None and name != "terms"}


def _place(line: dict[str, Any]) -> tuple[str, int, int]:
    return line["event"], line["epoch"], line["step"]


def _train_row(lines: list[dict[str, Any]]) -> dict[str, Any]:
    first = lines[0]
    row = {"train/step": first["step"], "train/lr": first["lr"], "train/grad_norm": first.get("grad_norm")}
    for line in lines:
        row |= {f"train/{name}/rank_{line['rank']}": line.get(name) for name in PER_RANK}
    known = [line for line in lines if line["loss"] is not None]
    if samples := sum(line["samples"] for line in known):
        row["train/loss"] = sum(line["loss"] * line["samples"] for line in known) / samples
        for name in known[0].get("terms", ()):
            row[f"train/terms/{name}"] = sum(line["terms"][name] * line["samples"] for line in known) / samples
    for name in lines[0].get("set_loss", ()):
        found = [(line["set_loss"][name], count) for line in lines if (count := line["set_samples"][name])]
        if samples := sum(count for _, count in found):
            row[f"train/{word(name)}/loss"] = sum(loss * count for loss, count in found) / samples
    return {key: value for key, value in row.items() if value is not None}


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what W&B shows for a finished run: the best scores, and the audit's table if there is one."""
    summary: dict[str, Any] = {}
    if isinstance(best := read_status(folder).get("best"), dict):
        sets = best.pop("sets", {})
        best |= {f"{name}/{score}": value for name, scores in sets.items() for score, value in scores.items()}
        summary["best"] = {word(name): value for name, value in best.items() if value is not None}
    if audit := read_audit(folder):
        table = {row.pop("operation"): row for row in audit["table"]}
        summary["audit"] = {"ok": audit["ok"], "violations": len(audit["violations"]), "table": table}
    return summary
