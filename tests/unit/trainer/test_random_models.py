"""Models that draw in their forward (dropout, stochastic depth) continue bit-identically without a stored state."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from runs import json_lines, last_weights, run_folder, small_config
from torch import nn

from accel_restore import fit
from accel_restore.data import loader
from accel_restore.trainer import run as session
from accel_restore.trainer.plan import _notes_on

PHOTOS = 20, 1  # training, validation


class DropPath(nn.Module):
    """Stochastic depth, as many architectures define it for themselves."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, True

    def forward(self, x):
        return x * (torch.rand(len(x), 1, 1, 1) >= self.drop_prob) if self.training else x


class Drawing(nn.Module):
    """Draws from every generator that a model could use."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, channels, 3, padding=1)
        self.dropout, self.path, self.norm = nn.Dropout2d(0.2), DropPath(0.5), nn.BatchNorm2d(8)

    def forward(self, x):
        branch = self.last(self.dropout(self.norm(self.first(x)).relu()))
        if self.training:
            branch = branch * random.uniform(0.5, 1.5) * np.random.uniform(0.5, 1.5)  # noqa: NPY002  models do
        return x + self.path(branch)


def config_of(photos, out, name: str) -> dict:
    """Return a run of 2 epochs of 5 steps with two micro-batches, except for the last step of an epoch."""
    config = small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 2, "train": {"gt": str(photos[0])}, "max_images": 18},
        train={"gradient_accumulation_steps": 2, "ema_decay": 0.9},
    )
    return {**config, "model": {"name": "test_random_models:Drawing"}}


def stopped_and_continued(config: dict, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(session, "run_training", partial(session.run_training, stop_after=after))
        fit(config, cpu=True)
    fit(config, cpu=True)


def differ(one: dict, other: dict) -> bool:
    losses = [[line.get("train_loss", line.get("loss")) for line in lines] for lines in map(lines_of, (one, other))]
    files = ("model.safetensors", "ema.safetensors")
    pairs = [(last_weights(one, file), last_weights(other, file)) for file in files]
    return losses[0] != losses[1] or any(not b[key].equal(tensor) for a, b in pairs for key, tensor in a.items())


def lines_of(config: dict) -> list[dict]:
    return json_lines(run_folder(config) / "metrics.jsonl")


@pytest.mark.parametrize("after", [3, 5, 8])
def test_a_stopped_and_continued_run_with_dropout_is_bit_identical(photos, tmp_path, monkeypatch, after):
    whole, parts = config_of(photos, tmp_path, "whole"), config_of(photos, tmp_path, "parts")
    fit(whole, cpu=True)
    stopped_and_continued(parts, after, monkeypatch)
    assert not differ(whole, parts)


def test_control_without_seeds_the_continued_run_is_another(photos, tmp_path, monkeypatch):
    whole, parts = config_of(photos, tmp_path, "whole"), config_of(photos, tmp_path, "parts")
    monkeypatch.setattr(loader, "seed_forward", lambda *_: None)
    fit(whole, cpu=True)
    stopped_and_continued(parts, 3, monkeypatch)
    assert differ(whole, parts)


def test_another_seed_draws_other_masks(photos, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(loader, "seed_forward", lambda seed, device: given.append(seed))
    for seed in (0, 1):
        config = config_of(photos, tmp_path, f"seed{seed}")
        config["run"]["seed"], config["train"]["epochs"] = seed, 2
        fit(config, cpu=True)
    assert len(given) == len(set(given)) == 2 * 2 * 9  # each micro-batch has its own


def test_plan_says_what_depends_on_the_number_of_ranks(photos, tmp_path, capsys):
    fit({**config_of(photos, tmp_path, "noted"), "train": {"max_steps": 1}}, cpu=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert "dropout or stochastic depth: continues bit-identically on the same number of ranks" in printed
    assert "batch statistics are those of a rank's own micro-batch" in printed


class StochasticDepth(nn.Module):
    """Named and built as torchvision's."""

    def __init__(self, p: float):
        super().__init__()
        self.p, self.mode = p, "row"


@pytest.mark.parametrize(
    ("layer", "drops"),
    [
        (nn.Dropout(0.1), True),
        (nn.AlphaDropout(0.1), True),
        (DropPath(0.1), True),
        (StochasticDepth(0.2), True),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.Dropout(0.0), False),
        (DropPath(0.0), False),
        (StochasticDepth(0.0), False),
        (nn.MultiheadAttention(4, 2), False),
        (nn.Conv2d(3, 3, 3), False),
    ],
    ids=lambda value: value if isinstance(value, bool) else str(value)[:30],
)
def test_layers_that_drop_are_found_if_their_rate_is_above_0(layer, drops):
    model = nn.Sequential(nn.Sequential(layer)).eval()
    assert any("dropout" in note for note in _notes_on(model)) == drops
