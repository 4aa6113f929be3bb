"""Runs that start with a part of a file: ×4 from ×2 in two phases, on several ranks, continued without the file."""

import json

import pytest
import safetensors.torch
import torch
from forked import launch
from runs import last_weights, run_folder, small_config, succeed
from watched import same

from accel_restore import fit, load
from accel_restore.errors import UserError

PHOTOS = 13, 2  # training, validation
TINY = {"name": "nafnet", "width": 8, "encoder_blocks": [1], "middle_blocks": 2, "decoder_blocks": [1]}
STOP_STEP = 5  # in the second epoch; an epoch has four steps


def configuration(photos, out, name, model, scale, **train):
    config = small_config(*photos, out, run={"name": name}, data={"batch_size": 4, "scale": scale}, train=train)
    config["data"].pop("degradation")
    return {**config, "model": model, "scheduler": {"name": "constant"}, "checkpoint": {"every_steps": 1, "keep": 20}}


@pytest.fixture(scope="module")
def x2(photos, tmp_path_factory):
    """The best weights of a run for scale 2."""
    return fit(configuration(photos, tmp_path_factory.mktemp("x2"), "x2", TINY, 2), cpu=True) / "best.safetensors"


def test_the_tail_is_trained_first_and_then_the_whole(photos, x2, tmp_path):
    model = {"checkpoint": str(x2), "partial": True}
    first = configuration(photos, tmp_path, "tail", model, 4, freeze=["all_but_new"], ema_decay=0.5)
    folder = fit(first, cpu=True)
    before, after = (safetensors.torch.load_file(file) for file in (x2, folder / "best.safetensors"))
    assert [name for name in after if not torch.equal(before[name], after[name])] == ["ending.bias", "ending.weight"]
    record = json.loads((folder / "plan.json").read_text())
    assert record["partial"]["other_shape"] == {"ending": 2} and record["partial"]["checkpoint"] == str(x2)
    (row,) = (value for what, value in record["plan"] if what == "weights")
    tensors = len(before)
    assert f"{tensors - 2} of {tensors} tensors, " in row and row.endswith("; new: ending (2 of another shape)")

    second = configuration(photos, tmp_path, "whole", {"checkpoint": str(folder / "best.safetensors")}, 4)
    whole = safetensors.torch.load_file(fit(second, cpu=True) / "best.safetensors")
    assert not any(torch.equal(after[name], whole[name]) for name in after if name.endswith("weight"))
    assert load(run_folder(second) / "best.safetensors").scale == 4


@pytest.mark.parametrize("named", [{}, TINY])
def test_a_run_on_two_ranks_continues_bit_identically_without_the_file(photos, x2, tmp_path, named):
    file = tmp_path / "x2.safetensors"
    file.write_bytes(x2.read_bytes())
    model = {**named, "checkpoint": str(file), "partial": True}
    whole, killed = (
        configuration(photos, tmp_path, name, model, 4, freeze=["all_but_new"], ema_decay=0.9)
        for name in ("whole", "killed")
    )
    for config in (whole, killed):
        config["data"]["batch_size"] = 2
    succeed(launch(whole, ranks=2))
    assert launch(killed, ranks=2, mode=f"kill:{STOP_STEP}").returncode != 0
    file.unlink()
    succeed(launch(killed, ranks=2))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert same(last_weights(killed, name), last_weights(whole, name)), name
    records = [json.loads((run_folder(config) / "plan.json").read_text()) for config in (whole, killed)]
    assert records[0]["partial"] == records[1]["partial"]
    best = [load(run_folder(config) / "best.safetensors").metadata["model"] for config in (whole, killed)]
    assert best[0] == best[1] and best[0]["name"] == "nafnet"


def test_too_little_that_fits_is_refused_before_anything_is_written(photos, x2, tmp_path):
    config = configuration(
        photos, tmp_path, "refused", {**TINY, "width": 12, "checkpoint": str(x2), "partial": True}, 4
    )
    with pytest.raises(UserError, match=r"fits only \d+\.\d % of the parameters of the model 'nafnet' \([\d,]+ of"):
        fit(config, cpu=True)
    assert not run_folder(config).exists()
