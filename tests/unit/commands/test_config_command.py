"""`accel-restore config`: the resolved configuration, and what its epochs are in optimizer steps."""

import yaml

from accel_restore.cli import main
from accel_restore.config.load import config_from

BASICSR = {  # total_iter 300000, 4 images on each of 8 GPUs, val_freq 5000
    "data": {"train": {"gt": "photos"}, "batch_size": 4, "stages": [{"until_epoch": 30, "patch_size": 128}]},
    "train": {"global_batch_size": 32, "max_steps": 300000, "steps_per_epoch": 5000},
    "scheduler": {"name": "multistep", "milestones": [50, 55], "warmup_epochs": 2},
    "validation": {"every_epochs": 2},
    "adversarial": {"starts_at_epoch": 3, "scheduler": {"name": "multistep", "milestones": [40]}},
}


def test_keys_that_count_epochs_are_printed_in_steps(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(BASICSR))
    assert main(["config", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    comments = [line.removeprefix("# ").strip() for line in out.splitlines() if line.startswith("#")]
    assert comments[0] == "300000 steps in 60 epochs of 5000; in steps:"
    assert set(comments[1:]) == {
        "scheduler.milestones: 250000, 275000", "scheduler.warmup_epochs: 10000", "validation.every_epochs: 10000",
        "checkpoint.every_epochs: 5000", "data.stages.0.until_epoch: 150000",
        "adversarial.starts_at_epoch: 15000", "adversarial.scheduler.milestones: 200000",
    }  # fmt: skip
    printed = yaml.safe_load(out)
    del printed["train"]["gradient_accumulation_steps"]  # follows from the global batch
    assert config_from(printed) == config_from(BASICSR)


def test_the_number_of_epochs_is_rounded_up_or_given(tmp_path, capsys):
    given = ["data.train.gt=photos", "train.steps_per_epoch=400"]
    for more, first in (
        ("train.max_steps=1000", "1000 steps in 3 epochs of 400; in steps:"),
        ("train.epochs=3", "1200 steps in 3 epochs of 400; in steps:"),
        ("train.max_steps=50", "50 steps in 1 epoch of 400; in steps:"),
    ):
        assert main(["config", *given, more]) == 0
        assert capsys.readouterr().out.splitlines()[0] == f"# {first}"


def test_without_steps_per_epoch_nothing_is_added(capsys):
    assert main(["config", "data.train.gt=photos", "train.max_steps=1000"]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
