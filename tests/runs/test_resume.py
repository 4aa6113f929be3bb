"""A killed run continues exactly from its last commit. A changed configuration is refused with a diff."""

import json
import shutil
from pathlib import Path

import pytest
import runs
import safetensors.torch
import torch
from forked import launch
from runs import audit_events, json_lines, run_folder, samples_per_step, small_config, succeed
from torch import nn

from accel_restore import fit
from accel_restore.checkpoint import resume
from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.trainer import setup as preparation

PHOTOS = 29, 3  # training, validation
TIMES = ("seconds", "step_s", "wait_s")
RESTARTED = {  # the environment that torchrun gives to a rank that it has restarted
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


def configuration(photos, out, name="whole", **train):
    """Return a configuration with 8 steps per epoch, the last one partial. Commits at steps 3, 6, 8, 9, 12, 15, 16."""
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 4},
        checkpoint={"every_steps": 3, "keep": 100},
        train={"epochs": 2, "ema_decay": 0.9, **train},
    )


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def newest(config):
    return max((run_folder(config) / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("ranks", "optimizer", "scheduler", "precision", "killed_after", "commit"),
    [
        (1, "sgd", "plateau", "bf16", 4, 3),
        pytest.param(2, "adamw", "cosine", "no", 13, 12, marks=pytest.mark.sweep),
        (3, "adam", "step", "no", 7, 6),
    ],
    ids=["1 rank, in the first epoch", "2 ranks", "3 ranks"],
)
def test_a_run_killed_in_mid_epoch_ends_bit_identically(
    photos, tmp_path, ranks, optimizer, scheduler, precision, killed_after, commit
):
    whole, killed = (configuration(photos, tmp_path, name, mixed_precision=precision) for name in ("whole", "killed"))
    for config in (whole, killed):
        config["data"]["batch_size"] = {1: 4, 2: 2, 3: 2}[ranks]
        config["optimizer"], config["scheduler"] = {"name": optimizer}, {"name": scheduler}
        config["validation"]["monitor"] = "psnr"
        config["tracking"]["log_every_steps"] = 5  # one logged line covers steps before and after the commit
    succeed(launch(whole, "--audit", ranks=ranks))
    first = launch(killed, "--audit", ranks=ranks, mode=f"kill:{killed_after}")
    assert first.returncode != 0
    assert newest(killed).name == f"step-{commit:08d}"
    assert json.loads((newest(killed) / "state.json").read_text())["epoch_step"] > 0  # in the middle of an epoch
    assert json.loads((run_folder(killed) / "status.json").read_text())["state"] == "running"
    (run_folder(killed) / ".best.safetensors.1234.tmp").write_bytes(b"half")  # a kill during a write leaves such a file
    second = succeed(launch(killed, "--audit", ranks=ranks))
    assert not list(run_folder(killed).rglob(".*"))
    assert "continues" in second.stdout and f"{commit} steps done" in second.stdout

    assert newest(killed).name == newest(whole).name
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (newest(killed) / file).read_bytes() == (newest(whole) / file).read_bytes(), file
    best = "best.safetensors"
    assert (run_folder(killed) / best).read_bytes() == (run_folder(whole) / best).read_bytes()
    metrics = (without_times(json_lines(run_folder(c) / "metrics.jsonl")) for c in (killed, whole))
    assert next(metrics) == next(metrics)
    assert samples_per_step(killed) == samples_per_step(whole)
    assert audit_events(killed) == audit_events(whole)


def test_a_run_may_start_from_a_commit_of_another(photos, tmp_path):
    first = configuration(photos, tmp_path, "first")
    succeed(launch(first, "train.epochs=1"))
    second = configuration(photos, tmp_path, "second")
    origin = f"run.resume={newest(first)}"
    process = succeed(launch(second, origin, "train.epochs=2"))
    assert "continues" in process.stdout
    assert [line["epoch"] for line in json_lines(run_folder(second) / "metrics.jsonl") if "val_loss" in line] == [1]
    assert (run_folder(second) / "best.safetensors").exists()
    assert "is finished" in succeed(launch(second, origin, "train.epochs=2")).stdout
    slower = launch(second, origin, "run.name=third", "optimizer.lr=1e-4")
    assert slower.returncode == 2 and "optimizer.lr: 0.001 in the commit, 0.0001 now" in slower.stderr
    assert f"give model.checkpoint={newest(first) / 'best.safetensors'}" in slower.stderr
    assert (
        str(run_folder(second).with_name("third")) not in slower.stderr and "another configuration" not in slower.stderr
    )
    assert not run_folder(second).with_name("third").exists()
    missing = launch(second, "run.resume=nowhere", "run.name=third")
    assert missing.returncode == 2 and "nowhere: does not exist" in missing.stderr


def test_a_run_goes_back_to_its_own_earlier_commit_only_once(photos, tmp_path):
    config = configuration(photos, tmp_path)
    succeed(launch(config))
    back = f"run.resume={run_folder(config) / 'checkpoints' / 'step-00000009'}"
    stopped = launch(config, back, "checkpoint.keep=1", "--stop-after", "13")
    assert stopped.returncode == 143 and newest(config).name == "step-00000013", "later commits are removed"
    shutil.copytree(newest(config), newest(config).with_name("step-00000014"))
    (newest(config) / "model.safetensors").write_bytes(b"damaged")
    again = succeed(launch(config, back, "checkpoint.keep=1"))  # as a scheduler repeats it; step 9 is gone
    assert "13 steps done" in again.stdout and newest(config).name == "step-00000016"


def test_the_resume_hint_never_recommends_overwriting_progress(photos, tmp_path):
    config = configuration(photos, tmp_path)
    for given, step, hint in ((["--overwrite"], "4", " without --overwrite"), ([], "9", "")):
        stopped = launch(config, *given, "--stop-after", step)
        assert stopped.returncode == 143 and f"; the same command{hint} continues from there" in stopped.stdout
    assert newest(config).name == "step-00000009"


def test_models_with_unused_or_shared_parameters_continue_bit_identically(photos, tmp_path):
    whole, stopped = (configuration(photos, tmp_path, name) for name in ("whole", "stopped"))
    for config in (whole, stopped):
        config["model"] = {"name": "test_resume:Odd"}
    succeed(launch(whole))
    assert launch(stopped, "--stop-after", "5").returncode == 143
    succeed(launch(stopped))
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (newest(stopped) / file).read_bytes() == (newest(whole) / file).read_bytes(), file
    assert not any("unused" in name for name in safetensors.torch.load_file(newest(whole) / "optimizer.safetensors"))


class Odd(nn.Module):
    """A model with a layer that `forward` does not use and a layer with two names."""

    def __init__(self, *, channels: int = 3, scale: int = 1):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.again, self.unused = self.first, nn.Conv2d(channels, channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.again(self.first(images))


def test_a_run_finished_by_another_process_meanwhile_is_left_unchanged(photos, tmp_path, monkeypatch):
    config = configuration(photos, tmp_path)
    prepare_folder = preparation._prepare_folder

    def late(run, *arguments):
        succeed(launch(config))
        prepare_folder(run, *arguments)

    monkeypatch.setattr(preparation, "_prepare_folder", late)
    with pytest.raises(UserError, match="another process has just started this run"):
        fit(config, cpu=True)
    assert newest(config).name == "step-00000016"


def test_a_finished_run_is_reported_and_overwrite_starts_again(photos, tmp_path):
    config = configuration(photos, tmp_path)
    succeed(launch(config))
    best = run_folder(config) / "best.safetensors"
    content, written = best.read_bytes(), best.stat().st_mtime_ns
    again = succeed(launch(config))
    assert "finished" in again.stdout and best.stat().st_mtime_ns == written

    # torchrun and Slurm repeat the whole command to continue
    repeated = succeed(runs.launch(config, "--overwrite", env=RESTARTED))
    assert "finished" in repeated.stdout and best.stat().st_mtime_ns == written

    own = run_folder(config) / "notes.txt"
    own.write_text("mine")
    succeed(launch(config, "--overwrite"))
    assert best.stat().st_mtime_ns != written and best.read_bytes() == content
    assert own.read_text() == "mine"


def test_settings_that_change_the_result_are_fixed_and_others_may_change(photos, tmp_path):
    config = configuration(photos, tmp_path)
    succeed(launch(config, "train.epochs=1"))
    refused = launch(config, "optimizer.lr=0.01", "model.width=16", "train.epochs=1")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "optimizer.lr: 0.001 in the commit, 0.01 now" in refused.stderr
    assert "model.width: 8 in the commit, 16 now" in refused.stderr

    never = launch(config, "run.resume=never")
    assert never.returncode == 2 and "holds a run" in never.stderr

    longer = launch(config)  # the file sets 2 epochs, and the cosine schedule depends on them
    assert longer.returncode == 2 and "train.epochs: 1 in the commit, 2 now" in longer.stderr
    assert "to train longer, give train.epochs=2 on the command line" in longer.stderr

    # An explicit override is allowed, and so is another batch size with the same global batch.
    overrides = ["train.epochs=2", "data.batch_size=2", "tracking.log_every_steps=4", "checkpoint.keep=1"]
    extended = succeed(launch(config, *overrides))
    assert "4 = 2 per device × 2 accumulated" in extended.stdout
    epochs = [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [0, 1]
    assert len(list((run_folder(config) / "checkpoints").iterdir())) == 1

    other = launch(config, "train.epochs=3", "train.global_batch_size=12", "train.gradient_accumulation_steps=null")
    assert other.returncode == 2 and "global batch: 4 in the commit, 12 now" in other.stderr


def test_a_run_started_before_a_key_existed_continues_with_its_default(photos, tmp_path, monkeypatch):
    config = configuration(photos, tmp_path)
    succeed(launch(config, "train.epochs=1"))
    counters = resume.read_counters(newest(config))
    del counters["config"]["train"]["max_grad_norm"]
    counters["config"]["train"]["gone"] = None
    monkeypatch.setattr(resume, "read_counters", lambda commit: counters)

    def start(*overrides):
        return resume.find_resume_point(run_folder(config), config_from(config, overrides), False, [*overrides], "no")

    assert start("train.epochs=1").finished
    with pytest.raises(UserError, match=r"train\.max_grad_norm: None in the commit, 1\.0 now"):
        start("train.epochs=1", "train.max_grad_norm=1")
    with pytest.raises(UserError, match=r"model\.blocks: unset in the commit, None now"):  # its default is not null
        start("train.epochs=1", "model.blocks=null")


def test_a_damaged_commit_is_skipped_in_favour_of_the_previous_one(photos, tmp_path):
    config = configuration(photos, tmp_path)
    succeed(launch(config))
    expected = (newest(config) / "model.safetensors").read_bytes()
    for _ in range(2):  # the commits at steps 16 and 15
        shutil.rmtree(newest(config))
    damaged = newest(config) / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    process = succeed(launch(config))
    assert "sha256 differs" in process.stdout and "going back to step-00000009" in process.stdout
    assert (newest(config) / "model.safetensors").read_bytes() == expected


def test_a_folder_that_is_not_a_run_is_left_unchanged(photos, tmp_path):
    config = configuration(photos, tmp_path)
    mine = run_folder(config) / "samples" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    for flags in ([], ["--overwrite"]):
        process = launch(config, *flags)
        assert process.returncode == 2 and "holds samples, but no run" in process.stderr
    assert mine.read_bytes() == b"mine"


def test_changed_data_are_rejected(photos, tmp_path):
    train = tmp_path / "train"
    shutil.copytree(photos[0], train)
    config = configuration((train, photos[1]), tmp_path)
    succeed(launch(config, "train.epochs=1"))
    (train / "photo000.png").unlink()
    refused = launch(config, "train.epochs=2")
    assert refused.returncode == 2
    assert "29 train, 3 val images then, 28 train, 3 val now" in refused.stderr


def test_a_run_continues_on_the_same_images_in_another_place_only(photos, tmp_path):
    config = configuration(photos, tmp_path)
    assert launch(config, "--stop-after", "3").returncode == 143
    moved = Path(shutil.copytree(photos[0], tmp_path / "moved"))
    there = f"data.train.gt={moved}"
    assert launch(config, there, "--stop-after", "6").returncode == 143
    changed = min(moved.iterdir())
    shutil.copyfile(max(moved.iterdir()), changed)
    refused = launch(config, there)
    assert refused.returncode == 2 and f"other pixels in the gt of '{changed.stem}'" in refused.stderr
    assert newest(config).name == "step-00000006", "the control: the refused run has not trained"
    succeed(launch(config))
    refused = launch(config, there)  # the run is finished, and not on these images
    assert refused.returncode == 2 and f"other pixels in the gt of '{changed.stem}'" in refused.stderr
    assert "is finished" in succeed(launch(config, f"data.train.gt={photos[0]}/.")).stdout
