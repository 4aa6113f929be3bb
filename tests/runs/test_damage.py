"""Damaged files are reported. The run continues from the newest sound commit and ends with the same result."""

import json
import random
import shutil

import forked
import pytest
import safetensors.torch
import torch
from runs import run_folder, small_config

from accel_restore.checkpoint import commits
from accel_restore.checkpoint.commits import find_commits, read_commit, write_commit
from accel_restore.checkpoint.resume import find_resume_point, rewind_best
from accel_restore.commands.verify_resume import compare
from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.inference import restorer
from accel_restore.models import load_weights

PHOTOS = 15, 2  # training, validation
FILES = ("COMMIT.json", "best.safetensors", "ema.safetensors", "model.safetensors", "optimizer.safetensors",
         "state.json")  # fmt: skip


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1 - len(data) // 5] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def become_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    flip: "is damaged (sha256 differs)",
    truncate: "is damaged (",
    empty: "is damaged (0 bytes in place of ",
    remove: "is missing",
    become_folder: "is not a file",
}


def configuration(photos, out, name):
    """Return a configuration with 4 steps per epoch, a commit after each step, and best weights after epoch 1."""
    return small_config(
        *photos,
        out,
        run={"name": name},
        data={"batch_size": 4},
        checkpoint={"every_steps": 1, "keep": 100},
        train={"epochs": 3, "ema_decay": 0.9},
        validation={"metrics": ["psnr"], "num_samples": 0},
    )


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """An undamaged, uninterrupted run."""
    config = configuration(photos, tmp_path_factory.mktemp("whole"), "whole")
    assert forked.run(config) == [0]
    return config


def copy_of(whole, out, last_step=12):
    """Copy the run to its own folder, without the commits after `last_step`."""
    config = json.loads(json.dumps(whole))
    config["run"] = {**config["run"], "name": "copy", "dir": str(out)}
    shutil.copytree(run_folder(whole), run_folder(config))
    for commit in find_commits(checkpoints(config))[last_step:]:
        shutil.rmtree(commit)
    return config


def checkpoints(config):
    return run_folder(config) / "checkpoints"


def start_of(config):
    """Return where the run would continue, and the messages about it."""
    said = []
    start = find_resume_point(run_folder(config), config_from(config), False, [], "no", said.append)
    return start, "\n".join(said)


def snapshot(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock")
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def assert_equal(whole, config):
    assert [row for row in compare(run_folder(whole), run_folder(config)) if row[1]] == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_reported_and_the_previous_commit_used(whole, tmp_path, name, damage):
    config = copy_of(whole, tmp_path, 8)
    newest = find_commits(checkpoints(config))[-1]
    damage(newest / name)
    start, said = start_of(config)
    assert start.commit.name == "step-00000007" and "going back to step-00000007" in said
    if name == "COMMIT.json" and damage is flip:  # a flipped bit in the list may make another file mismatch
        assert str(newest) in said and "is damaged" in said
    else:
        words = "is damaged (it does not list" if "damaged" in DAMAGES[damage] and name == FILES[0] else DAMAGES[damage]
        assert f"{newest / name}: {words}" in said


def test_each_flipped_bit_of_a_commit_is_detected_or_harmless(tmp_path):
    files = {"model.safetensors": bytes(range(40)), "state.json": b'{"step": 1, "lr": 0.001}'}
    commit = write_commit(tmp_path, 1, 0, files)
    noticed = harmless = 0
    for path in sorted(commit.iterdir()):
        sound = path.read_bytes()
        for bit in range(8 * len(sound)):
            damaged = bytearray(sound)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                assert read_commit(commit) == files
                harmless += 1
                assert path.name == "COMMIT.json", f"bit {bit} of {path.name} was not noticed"
            except UserError:
                noticed += 1
        path.write_bytes(sound)
    assert 0 < harmless < 40 < noticed  # harmless: step and epoch in COMMIT.json, which nothing uses


def test_several_damaged_commits_and_best_weights_cost_only_steps(whole, tmp_path):
    config = copy_of(whole, tmp_path, 11)
    kinds = [(flip, "model.safetensors"), (truncate, "optimizer.safetensors"), (empty, "state.json"),
             (remove, "COMMIT.json"), (become_folder, "ema.safetensors")]  # fmt: skip
    damaged = find_commits(checkpoints(config))[: -len(kinds) - 1 : -1]
    for commit, (damage, name) in zip(damaged, kinds, strict=True):
        damage(commit / name)
    flip(run_folder(config) / "best.safetensors")
    assert forked.run(config) == [0], forked.printed(config)
    said = "".join(forked.printed(config).replace("│", "").split())
    for commit, (_, name) in zip(damaged, kinds, strict=True):
        assert f"{commit.name}/{name}:is" in said
    assert "goingbacktostep-00000006" in said
    assert "best.safetensors:isdamaged,ornewerthanthecommit;restoredfromstep-00000006" in said
    assert_equal(whole, config)


def test_a_run_killed_while_replacing_a_commit_continues_from_the_old_one(whole, tmp_path):
    """The kill falls between the two renames that replace a commit of the same step."""
    config = copy_of(whole, tmp_path, 8)
    newest = find_commits(checkpoints(config))[-1]
    newest.rename(newest.with_name(f".replaced-{newest.name}"))
    assert start_of(config)[0].commit.name == "step-00000007"  # control: if the old one is not put back
    assert forked.run(config) == [0]
    assert "step-00000008: 2 epochs, 8 steps done" in " ".join(forked.printed(config).split())
    assert_equal(whole, config)


def test_control_without_sha256_a_flipped_bit_changes_the_result(whole, tmp_path, monkeypatch):
    config = copy_of(whole, tmp_path, 8)
    newest = find_commits(checkpoints(config))[-1]
    flip(newest / "model.safetensors")
    assert start_of(config)[0].commit.name == "step-00000007"
    with monkeypatch.context() as patch:
        patch.setattr(commits, "_read_listed", lambda commit, name, _: (commit / name).read_bytes())
        assert start_of(config)[0].commit == newest
    assert forked.run(config, mode="without=sha256") == [0]
    differences = dict(compare(run_folder(whole), run_folder(config)))
    assert differences["model.safetensors"].startswith("differs by up to")


def test_without_a_sound_commit_all_are_listed_and_no_file_changes(whole, tmp_path):
    config = copy_of(whole, tmp_path, 3)
    damaged = [(flip, "model.safetensors"), (remove, "state.json"), (empty, "COMMIT.json")]
    for commit, (damage, name) in zip(find_commits(checkpoints(config)), damaged, strict=True):
        damage(commit / name)
    before = snapshot(run_folder(config))
    assert forked.run(config) == [2]
    assert snapshot(run_folder(config)) == before
    said = forked.printed(config)
    assert (
        "no checkpoint can be used; choose another run.name, or start again with --overwrite" in said
        and "Traceback" not in said
    )
    for commit, (_, name) in zip(find_commits(checkpoints(config)), damaged, strict=True):
        assert f"  - {commit / name}: is " in said
    with pytest.raises(UserError) as refused:
        start_of(config)
    assert str(refused.value) in said


@pytest.mark.parametrize("damage", [flip, truncate, empty, remove])
def test_damaged_best_weights_are_restored(whole, tmp_path, damage):
    config = copy_of(whole, tmp_path, 8)
    best = run_folder(config) / "best.safetensors"
    sound = (find_commits(checkpoints(config))[-1] / "best.safetensors").read_bytes()
    best.write_bytes(sound)
    damage(best)
    said = []
    assert rewind_best(run_folder(config), start_of(config)[0], said.append) == best.read_bytes() == sound
    assert said[0].startswith(f"{best}: is ") and "restored from step-00000008" in said[0]
    assert rewind_best(run_folder(config), start_of(config)[0], said.append) == sound and len(said) == 1


def test_a_folder_in_place_of_the_best_weights_is_not_removed(whole, tmp_path):
    config = copy_of(whole, tmp_path, 8)
    best = run_folder(config) / "best.safetensors"
    become_folder(best)
    with pytest.raises(UserError, match=r"best\.safetensors: is a folder; move it away"):
        rewind_best(run_folder(config), start_of(config)[0], print)


def test_best_weights_of_a_finished_run_are_restored_too(whole, tmp_path):
    config = copy_of(whole, tmp_path)
    flip(run_folder(config) / "best.safetensors")
    assert forked.run(config) == [0]
    assert "the run is finished" in " ".join(forked.printed(config).split())
    assert_equal(whole, config)


@pytest.mark.parametrize("damage", [flip, truncate, empty, remove, become_folder])
def test_damaged_best_weights_are_not_loaded(whole, tmp_path, damage):
    best = tmp_path / "best.safetensors"
    shutil.copy(run_folder(whole) / "best.safetensors", best)
    restorer.load(best)
    damage(best)
    with pytest.raises(UserError) as refused:
        restorer.load(best)
    assert str(refused.value).startswith(f"{best}: ")
    assert damage is not flip or "is damaged (sha256 of the weights differs)" in str(refused.value)


def test_each_flipped_bit_of_best_weights_is_detected_or_harmless(whole, tmp_path):
    path, image = tmp_path / "best.safetensors", torch.full((1, 3, 16, 16), 0.5)
    sound = (run_folder(whole) / "best.safetensors").read_bytes()
    path.write_bytes(sound)
    expected = restorer.load(path)(image)
    header, draw = 8 + int.from_bytes(sound[:8], "little"), random.Random(5)
    in_weights = [draw.randrange(8 * header, 8 * len(sound)) for _ in range(50)]
    in_header = [draw.randrange(8 * header) for _ in range(50)]
    for bit in in_weights + in_header:
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = restorer.load(path)(image)
        except UserError:
            continue
        assert bit < 8 * header, f"bit {bit}, of a weight, was not noticed"
        assert torch.equal(found, expected), f"bit {bit} of the header"


def test_control_without_the_digest_a_flipped_bit_changes_an_output(whole, tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    shutil.copy(run_folder(whole) / "best.safetensors", path)
    sound = safetensors.torch.load(path.read_bytes())
    flip(path)
    monkeypatch.setattr(load_weights, "digest", lambda weights: load_weights.read_header(path)[0]["sha256"])
    weights = restorer.load(path).model.state_dict()
    assert any(not torch.equal(weights[name], value) for name, value in sound.items())
