"""Runs killed repeatedly at random moments: the newest commit is readable, none is lost, and its lines are there."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import forked
import pytest
from runs import run_folder, small_config

from accel_restore.checkpoint.commits import find_commits, is_commit, read_commit, step_of
from accel_restore.commands.verify_resume import compare
from accel_restore.errors import UserError
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.tracking.run_files import read_lines
from accel_restore.utils.files import short_name

PHOTOS = 15, 2  # training, validation
GENEROUS = 90.0  # seconds; a guard against hanging
LEFTOVERS = {
    ".staging-": "saving", ".removing-": "pruning", ".replaced-": "replacing",
    f".{short_name(Path(WEIGHTS))}.": "writing best",
}  # fmt: skip


def configuration(photos, out, name, ranks, epochs, networks=1):
    """Return a configuration with 4 steps per epoch and a commit after each step."""
    second = {"adversarial": {"discriminator": {"name": "unet_sn", "width": 4}}} if networks == 2 else {}
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 4 // ranks},
        checkpoint={"every_steps": 1, "keep": 2},
        train={"epochs": epochs, "ema_decay": 0.9},
        validation={"metrics": ["psnr"], "num_samples": 0},
        **second,
    )


@dataclass
class Sweep:
    """Kills of successive runs, and their results."""

    photos: tuple
    out: object
    ranks: int
    epochs: int
    networks: int = 1
    hits: Counter = field(default_factory=Counter)  # kind of kill and interrupted work → number of kills
    found: list[str] = field(default_factory=list)  # lost or unreadable commits, or lines that are older
    runs: int = 0

    def start(self):
        self.runs += 1
        self.config = configuration(self.photos, self.out, f"run{self.runs}", self.ranks, self.epochs, self.networks)
        self.told = self.out / f"told{self.runs}"

    def acknowledged(self):
        return [int(step) for step in self.told.read_text().split()] if self.told.exists() else []

    def kill(self, draw):
        """Start or continue the run and kill it at a random moment; return False if it ended first."""
        before = len(self.acknowledged())
        processes = forked.start(self.config, ranks=self.ranks, mode=f"acknowledge={self.told}")
        in_training = draw.random() < 0.75
        deadline = time.monotonic() + GENEROUS
        while in_training and len(self.acknowledged()) == before and any(p.is_alive() for p in processes):
            assert time.monotonic() < deadline, forked.printed(self.config)
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.2 if in_training else 1.5))
        if asked := draw.random() < 0.25:  # a host shutdown: SIGTERM, then a kill during the save
            for process in processes:
                signal_if_alive(process, signal.SIGTERM)
            time.sleep(draw.uniform(0, 0.1))
        for process in draw.sample(processes, len(processes)):
            signal_if_alive(process, signal.SIGKILL)
        for process in processes:
            process.join(GENEROUS)
        if not any(process.exitcode == -signal.SIGKILL for process in processes):
            assert all(process.exitcode in (0, 143, -signal.SIGTERM) for process in processes), forked.printed(
                self.config
            )
            return False
        self.hits["after SIGTERM" if asked else "in training" if in_training else "at any time from the start"] += 1
        self.look()
        return True

    def look(self):
        """Record the files left by the kill, and any lost or unreadable commit."""
        folder = run_folder(self.config) / "checkpoints"
        steps = {step_of(commit): commit for commit in find_commits(folder)}
        for path in [*folder.glob(".*"), *folder.parent.glob(".*")]:
            self.hits.update(what for prefix, what in LEFTOVERS.items() if path.name.startswith(prefix))
            if path.name.startswith(".replaced-"):  # put back when the run continues
                steps.setdefault(int(path.name.rpartition("-")[2]), path)
        last = max(self.acknowledged(), default=0)
        if max(steps, default=0) < last:
            self.found.append(f"lost: step {last} was told, the newest is {max(steps, default=None)}")
        if steps:
            try:
                counters = json.loads(read_commit(steps[max(steps)])["state.json"])
            except UserError as error:
                self.found.append(f"unreadable: {error}")
            else:
                self.found += self.missing_lines(counters)

    def missing_lines(self, counters):
        """Yield what metrics.jsonl lacks of the time before a commit."""
        lines = read_lines(run_folder(self.config) / "metrics.jsonl")
        trained = [(line["step"], line["rank"]) for line in lines if line["event"] == "train"]
        epochs = [line["epoch"] for line in lines if line["event"] == "epoch"]
        expected = [(step, rank) for step in range(1, counters["step"] + 1) for rank in range(self.ranks)]
        if trained[: len(expected)] != expected or epochs[: counters["epoch"]] != [*range(counters["epoch"])]:
            yield f"older lines: {trained[-1:]} and epoch {epochs[-1:]} at the commit of {counters['step']}"

    def finish(self, whole):
        """Let the run finish, and compare it with one that was never killed."""
        assert forked.run(self.config, ranks=self.ranks) == [0] * self.ranks, forked.printed(self.config)
        differences = [row for row in compare(run_folder(whole), run_folder(self.config)) if row[1]]
        assert differences == []
        left = list(run_folder(self.config).rglob(".*"))
        assert left == [], left
        shutil.rmtree(run_folder(self.config))


def signal_if_alive(process, number):
    if process.is_alive():
        os.kill(process.pid, number)


def killed_so_often(photos, out, ranks, kills, epochs, seed, networks=1):
    whole = configuration(photos, out, "whole", ranks, epochs, networks)
    assert forked.run(whole, ranks=ranks) == [0] * ranks
    sweep, draw = Sweep(photos, out, ranks, epochs, networks), random.Random(seed)
    sweep.start()
    done = 0
    while done < kills:
        if sweep.kill(draw):
            done += 1
        elif max(sweep.acknowledged(), default=0) == 4 * epochs:
            sweep.finish(whole)
            sweep.start()
    sweep.finish(whole)
    print(
        f"{networks} networks, {ranks} ranks, {done} kills, {sweep.runs} runs: {dict(sweep.hits)}, "
        f"lost, unreadable or older: {sweep.found}"
    )
    assert sweep.found == []


@pytest.mark.parametrize(
    ("ranks", "kills", "networks"), [(1, 3, 1), (1, 3, 2), pytest.param(2, 3, 1, marks=pytest.mark.sweep)]
)
def test_a_run_killed_a_few_times_loses_no_commit(photos, tmp_path, ranks, kills, networks):
    killed_so_often(photos, tmp_path, ranks, kills, 10, ranks, networks)


@pytest.mark.sweep
@pytest.mark.parametrize(("ranks", "kills", "networks"), [(1, 80, 1), (2, 40, 1), (1, 80, 2)])
def test_a_run_killed_many_times_loses_no_commit(photos, tmp_path, ranks, kills, networks):
    killed_so_often(photos, tmp_path, ranks, kills, 40, 10 + ranks, networks)


def test_control_a_kill_while_writing_a_commit_in_place_makes_it_unreadable(photos, tmp_path):
    sweep = Sweep(photos, tmp_path, 1, 40)
    sweep.start()
    (process,) = forked.start(sweep.config, ranks=1, mode="without=staging")
    deadline = time.monotonic() + GENEROUS
    while not (commits := find_commits(run_folder(sweep.config) / "checkpoints")) or is_commit(commits[-1]):
        assert time.monotonic() < deadline and process.is_alive(), forked.printed(sweep.config)
        time.sleep(0.01)
    process.kill()
    process.join(GENEROUS)
    sweep.look()
    assert ["COMMIT.json: is missing" in what for what in sweep.found] == [True]
