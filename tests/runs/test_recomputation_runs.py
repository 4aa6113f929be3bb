"""Runs with `train.checkpoint_blocks`, or with it only after they continue, are bit-identical to runs without."""

import pytest
from forked import launch
from runs import last_weights, run_folder, small_config, succeed
from torch import nn
from watched import same

from accel_restore import fit
from accel_restore.errors import UserError

PHOTOS = 13, 2  # training, validation
FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"]
STOP_STEP = 3  # in the second epoch; an epoch has two steps, the last with a part of a batch


def configuration(photos, out, name):
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 2},
        train={"gradient_accumulation_steps": 2, "ema_decay": 0.9, "max_grad_norm": 0.5},
        checkpoint={"every_steps": 1, "keep": 20},
    )


@pytest.mark.parametrize("mode", ["", pytest.param("fsdp2", marks=pytest.mark.sweep)])
def test_a_run_of_two_ranks_may_turn_it_on_and_off(photos, tmp_path, mode):
    without, turned = (configuration(photos, tmp_path, name) for name in ("without", "turned"))
    succeed(launch(without, ranks=2, mode=mode))
    killed = f"{mode},kill:{STOP_STEP}".lstrip(",")
    assert launch(turned, "train.checkpoint_blocks=true", ranks=2, mode=killed).returncode != 0
    assert "checkpoint_blocks: true" in (run_folder(turned) / "config.yaml").read_text()
    succeed(launch(turned, ranks=2, mode=mode))
    for file in FILES:
        assert same(last_weights(turned, file), last_weights(without, file)), file
    assert same(*(last_weights(config, "best.safetensors") for config in (without, turned)))


class InPlace(nn.Module):
    """A block whose input the network changes after the block has used it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


class Changing(nn.Module):
    def __init__(self, channels: int = 3):
        super().__init__()
        self.first, self.second = InPlace(), InPlace()

    def forward(self, x):
        y = self.first(x.clone())
        z = self.second(y)
        y += 1
        return y + z


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "dncnn", "width": 8, "depth": 3}, "train.checkpoint_blocks: DnCNN has no repeated blocks"),
        ({"name": f"{__name__}:Changing"}, "modified by an inplace operation"),
    ],
)
def test_a_model_whose_blocks_cannot_be_computed_again_is_refused_before_anything_is_written(
    photos, tmp_path, model, said
):
    config = configuration(photos, tmp_path, "refused")
    config["model"] = model
    with pytest.raises(UserError, match=said):
        fit(config, "train.checkpoint_blocks=true", cpu=True)
    assert not run_folder(config).exists()
