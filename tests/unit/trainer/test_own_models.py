"""A user's own model may hold what cannot be copied: averages, commits and exports build it again instead."""

import threading

import pytest
import safetensors.torch
import torch
from runs import last_weights, small_config
from torch import nn

from accel_restore import fit, load
from accel_restore.cli import main

PHOTOS = 8, 1  # training, validation


class Own(nn.Module):
    """A convolution, added to its input; classes below change it."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + 0.1 * self.conv(x)


class WeightNormed(Own):
    def __init__(self, channels: int = 3):
        super().__init__(channels)
        self.conv = nn.utils.weight_norm(self.conv)  # the old hook, whose weight has a gradient function


class SpectralNormed(Own):
    def __init__(self, channels: int = 3):
        super().__init__(channels)
        self.conv = nn.utils.spectral_norm(self.conv)


class Uncopyable(Own):
    def __init__(self, channels: int = 3):
        super().__init__(channels)
        self.lock, self.numbers, self.start = threading.Lock(), (i for i in range(3)), self.conv.weight.sum()
        self.draws = torch.Generator()


class Tied(Own):
    def __init__(self, channels: int = 3):
        super().__init__(channels)
        self.again = self.conv


class Caching(Own):
    """Makes a buffer, for the size of the image, in its forward."""

    def forward(self, x):
        if getattr(self, "grid", x[0]).shape[-2:] != x.shape[-2:] or not hasattr(self, "grid"):
            self.register_buffer("grid", torch.zeros(x.shape[-2:]), persistent=False)
        return super().forward(x) + self.grid


pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


def config_of(photos, out, model: type[Own], **train) -> dict:
    config = small_config(*photos, out, train={"ema_decay": 0.5, "ema_warmup": False, **train})
    return {**config, "model": {"name": f"test_own_models:{model.__name__}"}}


@pytest.mark.parametrize("model", [WeightNormed, SpectralNormed, Uncopyable, Tied, Caching])
def test_averages_of_any_model_are_kept_validated_and_loaded(photos, tmp_path, model):
    config = config_of(photos, tmp_path, model, max_steps=2)
    folder = fit(config, cpu=True)
    averages = last_weights(config, "ema.safetensors")
    weights = last_weights(config)
    assert averages.keys() == weights.keys()
    name = "conv.weight_orig" if model is SpectralNormed else "conv.bias"
    assert not averages[name].equal(weights[name])
    best = load(folder / "best.safetensors").model.state_dict()
    stored = safetensors.torch.load_file(folder / "best.safetensors")
    assert all(tensor.equal(stored[key]) for key, tensor in best.items())


def test_continued_averages_of_a_weight_normed_model_are_bit_identical(photos, tmp_path):
    whole = config_of(photos, tmp_path / "whole", WeightNormed, epochs=3)
    parts = config_of(photos, tmp_path / "parts", WeightNormed, epochs=2)
    parts["scheduler"] = whole["scheduler"] = {"name": "constant"}
    fit(whole, cpu=True)
    fit(parts, cpu=True)
    fit(parts, "train.epochs=3", cpu=True)
    for file in ("model.safetensors", "ema.safetensors"):
        expected, found = last_weights(whole, file), last_weights(parts, file)
        assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_weight_normed_model_is_exported_in_half_precision(photos, tmp_path):
    folder = fit(config_of(photos, tmp_path, WeightNormed, max_steps=1), cpu=True)
    out = tmp_path / "half.pt2"
    assert main(["export", str(folder / "best.safetensors"), "-o", str(out), "--half", "--check-size", "20x24"]) == 0
    assert torch.export.load(out).module()(torch.zeros(1, 3, 20, 24).half()).dtype == torch.float16
