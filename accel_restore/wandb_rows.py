"""The rows that W&B gets of a run: those of metrics.jsonl, in the order of its lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Rows:
    """Reads a run's metrics.jsonl from its first line on, as it grows; and names the pictures of its epochs."""

    def __init__(self, folder: Path, ranks: int):
        self.folder, self.ranks, self.position = folder, ranks, 0
        self.held: list[dict[str, Any]] = []  # the lines of one step, or one epoch, that are not a row yet

    def read(self, rest: bool) -> Iterator[dict[str, Any]]:
        """The rows that have come since. A step that lacks lines of some rank is held, but for the `rest`."""
        with (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(self.position)
            for text in file:
                if not text.endswith(b"\n"):  # it is being written
                    break
                self.position += len(text)
                line = json.loads(text)
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
            yield _train_row(lines)
            return
        epoch = lines[0]["epoch"]
        picture = self.folder / "samples" / f"epoch-{epoch:04d}.png"
        if picture.exists():
            yield {"epoch": epoch, "val/images": picture}
        scores = {f"val/{key[4:]}": value for key, value in lines[0].items() if key.startswith("val_")}
        scores |= {f"val/terms/{name}": value for name, value in scores.pop("val/terms", {}).items()}
        yield {"epoch": epoch, **{key: value for key, value in scores.items() if value is not None}}


def _place(line: dict[str, Any]) -> tuple[str, int, int]:
    return line["event"], line["epoch"], line["step"]


def _train_row(lines: list[dict[str, Any]]) -> dict[str, Any]:
    row = {"train/step": lines[0]["step"], "train/lr": lines[0]["lr"]}
    for line in lines:
        row[f"train/lr/rank_{line['rank']}"] = line["lr"]
        if line["loss"] is not None:
            row[f"train/loss/rank_{line['rank']}"] = line["loss"]
    known = [line for line in lines if line["loss"] is not None]
    if samples := sum(line["samples"] for line in known):
        row["train/loss"] = sum(line["loss"] * line["samples"] for line in known) / samples
        for name in known[0].get("terms", ()):
            row[f"train/terms/{name}"] = sum(line["terms"][name] * line["samples"] for line in known) / samples
    return row
