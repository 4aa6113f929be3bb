"""The rows that W&B gets of a run: those of metrics.jsonl, in the order of its lines, with those of memory.jsonl."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from accel_restore.tracking.run_files import JsonlTail, read_audit, read_status

PER_RANK = ("loss", "lr", "grad_norm", "step_s", "wait_s", "memory")  # of a line, logged as train/NAME/rank_R


class Rows:
    """Reads a run's files from their first lines on, as they grow; and names the pictures of its epochs."""

    def __init__(self, folder: Path, ranks: int):
        self.folder, self.ranks = folder, ranks
        self.metrics, self.memory = JsonlTail(folder / "metrics.jsonl"), JsonlTail(folder / "memory.jsonl")
        self.ahead: list[dict[str, Any]] = []  # the line of memory.jsonl that was read before its step was a row
        self.held: list[dict[str, Any]] = []  # the lines of one step, or one epoch, that are not a row yet

    def read(self, rest: bool) -> Iterator[dict[str, Any]]:
        """The rows that have come since. A step that lacks lines of some rank is held, but for the `rest`."""
        for line in self.metrics:
            if line["event"] not in ("train", "epoch"):
                continue
            if self.held and _place(line) != _place(self.held[0]):
                yield from self._release()
            self.held.append(line)
        if self.held and (rest or self.held[0]["event"] == "epoch" or len(self.held) >= self.ranks):
            yield from self._release()

    def _release(self) -> Iterator[dict[str, Any]]:
        lines, self.held = self.held, []
        if lines[0]["event"] == "train":
            memory = self._memory_at(lines[0]["step"])
            yield _train_row([{**line, "memory": memory.get(line["rank"])} for line in lines])
            return
        epoch = lines[0]["epoch"]
        picture = self.folder / "samples" / f"epoch-{epoch:04d}.png"
        if picture.exists():
            yield {"epoch": epoch, "val/images": picture}
        scores = {f"val/{key[4:]}": value for key, value in lines[0].items() if key.startswith("val_")}
        scores |= {f"val/terms/{name}": value for name, value in scores.pop("val/terms", {}).items()}
        yield {"epoch": epoch, **{key: value for key, value in scores.items() if value is not None}}

    def _memory_at(self, step: int) -> dict[int, int]:
        """The bytes of each rank at a step; its lines were written before those of metrics.jsonl."""
        found = {}
        for line in chain(self.ahead, self.memory):
            self.ahead = [line] if line["step"] > step else []
            if self.ahead:
                break
            if line["step"] == step:
                found[line["rank"]] = line["memory"]
        return found


class RankRows:
    """The rows of a run of one rank alone: its lines of the same files, as train/NAME."""

    def __init__(self, folder: Path, rank: int):
        self.rank = rank
        self.metrics, self.memory = JsonlTail(folder / "metrics.jsonl"), JsonlTail(folder / "memory.jsonl")
        self.bytes: dict[int, int] = {}  # by step, of lines that are not a row yet

    def read(self, rest: bool) -> Iterator[dict[str, Any]]:
        """The rows that have come since."""
        for line in self.metrics:
            if line["event"] == "train" and line["rank"] == self.rank:
                line["memory"] = self._memory_at(line["step"])
                figures = {f"train/{name}": line.get(name) for name in ("step", *PER_RANK)}
                yield {key: value for key, value in figures.items() if value is not None}

    def _memory_at(self, step: int) -> int | None:
        """The bytes at a step; its line was written before that of metrics.jsonl."""
        self.bytes |= {line["step"]: line["memory"] for line in self.memory if line["rank"] == self.rank}
        return self.bytes.pop(step, None)


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
    return {key: value for key, value in row.items() if value is not None}


def read_summary(folder: Path) -> dict[str, Any]:
    """What W&B shows of a run that has ended: the best scores, and the table of its audit, where it had one."""
    summary: dict[str, Any] = {}
    if isinstance(best := read_status(folder).get("best"), dict):
        summary["best"] = {name: value for name, value in best.items() if value is not None}
    if audit := read_audit(folder):
        table = {row.pop("operation"): row for row in audit["table"]}
        summary["audit"] = {"ok": audit["ok"], "violations": len(audit["violations"]), "table": table}
    return summary
