"""The plan shows how much memory the largest validation image needs."""

import re
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import safetensors.torch
import torch
from accelerate import Accelerator
from runs import make_photos, small_config
from torch import nn

from accel_restore import fit
from accel_restore.config.load import config_from
from accel_restore.data.val_dataset import ValidationDataset, ValidationSets
from accel_restore.losses import build_loss, map_mean
from accel_restore.metrics.validation_sets import SetProtocols
from accel_restore.models import build_model
from accel_restore.trainer import validation_memory
from accel_restore.utils.memory import LiveBytes

MODEL = {"name": "unet", "width": 8}


def rows(*sizes, loss=None, **validation):
    config = config_from({"data": {"train": {"gt": "x"}}, "model": MODEL, "validation": validation})
    gt = SimpleNamespace(sizes=sizes)  # the only attribute that is used
    cpu = torch.device("cpu")
    one = ValidationDataset(["x"] * len(sizes), gt, None, list(range(len(sizes))), None, cpu)
    build = partial(build_model, "unet", {"width": 8}, 3)
    loss_fn = build_loss(loss or {"l1": 1.0})
    return validation_memory.validation_memory_rows(
        config, Accelerator(cpu=True), build, ValidationSets({"": one}), SetProtocols.of(config), loss_fn
    )


def gigabytes(found) -> float:
    number, unit = re.match(r"about ([\d.]+) (GB|MB) for", found[0][1]).groups()
    return float(number) * {"GB": 1.0, "MB": 1e-3}[unit]


def test_the_largest_image_is_named_and_a_tile_needs_less():
    whole, tiled = rows((4000, 6000), (20, 20)), rows((4000, 6000), (20, 20), tile=512)
    assert "6000x4000" in whole[0][1]
    tensors = 3 * 3 * 4 * 24e6 / 1e9
    assert 1.5 * tensors < gigabytes(tiled) < 3 * tensors < gigabytes(whole)
    assert gigabytes(rows((4000, 6000), tile=512)) < gigabytes(tiled), "no other image is read meanwhile"
    assert "2 images of 6000x4000" in rows((4000, 6000), (4000, 6000), batch_size=2)[0][1]
    assert rows((1000, 1000)) == [], "small images are no news"


def test_the_estimate_is_near_the_tensors_of_a_validation(monkeypatch):
    monkeypatch.setattr(validation_memory, "_LEAST", 0)
    estimate = gigabytes(rows((512, 384))) * 1e9
    model, loss_fn = build_model("unet", {"width": 8}, 3).eval(), build_loss({"l1": 1.0})
    input, gt = torch.rand(2, 1, 3, 512, 384)
    with torch.no_grad(), LiveBytes() as live:
        loss_fn.terms(model(input), gt)
    assert 0.7 < estimate / live.most < 1.4


def test_a_loss_of_whole_images_counts():
    assert gigabytes(rows((4000, 6000), tile=128, loss={"fft": 1.0})) > 1.2 * gigabytes(rows((4000, 6000), tile=128))


def test_the_estimate_does_not_grow_with_the_blocks_that_are_scored(monkeypatch):
    small = gigabytes(rows((4000, 6000), tile=128, loss={"ssim": 1.0}))
    monkeypatch.setattr(map_mean, "_MOST_ON_CPU", map_mean._MOST_ON_GPU)
    assert gigabytes(rows((4000, 6000), tile=128, loss={"ssim": 1.0})) == small
    assert map_mean._MOST_ON_CPU == map_mean._MOST_ON_GPU, "restored"
    monkeypatch.setattr(validation_memory, "small_blocks", nullcontext)
    assert gigabytes(rows((4000, 6000), tile=128, loss={"ssim": 1.0})) > 2 * small, "the control"


def test_too_little_memory_is_a_note_with_a_remedy(monkeypatch):
    monkeypatch.setattr(validation_memory, "memory_bytes", lambda: 10**9)
    (_, row), (kind, note) = rows((4000, 6000))
    assert kind == "note" and "1.0 GB that are free" in note and "validation.tile" in note and row
    assert len(rows((1100, 1000), tile=128)) == 1, "the control"


def test_a_model_that_takes_no_small_images_has_no_estimate(monkeypatch):
    monkeypatch.setattr(validation_memory, "probe_image", lambda *given: torch.zeros(1, 3, 1, 1).expand(-1, -1, 0, 0))
    assert rows((4000, 6000)) == []


class Fitted(nn.Module):
    """A model that fits a weight to the first image that it sees, as ActNorm does."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(channels, channels, 3, padding=1), nn.Parameter(torch.ones(1))
        self.register_buffer("is_fitted", torch.tensor(False))

    def forward(self, x):
        y = self.conv(x)
        if not self.is_fitted:
            self.scale.data.fill_(1 / y.std().item())
            self.is_fitted.fill_(True)
        return x + self.scale * y


def test_the_model_that_is_trained_is_not_measured(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos", 3), make_photos(tmp_path / "val", 1)
    weights = []
    for least in (2**30, 0):
        monkeypatch.setattr(validation_memory, "_LEAST", least)
        run, model = {"name": str(least)}, {"name": "test_validation_memory:Fitted"}
        folder = fit(small_config(*photos, tmp_path, run=run, model=model, train={"epochs": 1}), cpu=True)
        assert ("validation memory" in (folder / "plan.json").read_text()) == (least == 0)
        weights.append(safetensors.torch.load_file(folder / "best.safetensors"))
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    image, model = torch.rand(1, 3, 8, 8), Fitted(3, 4)
    model(image)
    assert model.scale != 1, "the control"
