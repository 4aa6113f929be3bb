"""A run's images are compared by names and pixels, wherever the files are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from image_files import photo, save

from accel_restore.checkpoint.resume import Start, check_same_data
from accel_restore.config.load import config_from
from accel_restore.data.build import open_data
from accel_restore.data.identity import RECORD, Identity, facts_of, find_shared, read_record, to_record
from accel_restore.errors import UserError


def identity_of(cache: Path, **data) -> Identity:
    config = config_from({"data": {"patch_size": 16, "cache_dir": str(cache), "val_fraction": 0.25, **data}})
    return open_data(config.data, 0, 11, torch.device("cpu")).identity


@pytest.fixture
def pairs(tmp_path) -> Path:
    for number in range(8):
        save(tmp_path / "a" / "gt" / f"{number}.png", photo(seed=number))
        save(tmp_path / "a" / "noisy" / f"{number}.png", photo(seed=100 + number))
    return tmp_path / "a"


def both(folder: Path) -> dict:
    return {"train": {"gt": f"{folder}/gt", "input": f"{folder}/noisy"}}


def start_of(folder: Path, identity: Identity, with_record: bool = True) -> Start:
    """The start from a commit that was made with these images."""
    folder.mkdir()
    if with_record:
        (folder / RECORD).write_bytes(to_record(identity))
    counters = {"data": json.loads(json.dumps(facts_of(identity))), "config": {"model": {"name": "unet"}}}
    return Start(folder / "checkpoints" / "step-1", counters)


def test_the_identity_does_not_depend_on_the_place_or_the_kind_of_source(pairs, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = identity_of(cache, **both(pairs))
    shutil.copytree(pairs, tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    rows = {s: [str(pairs / d / f"{n}.png") for n in range(8)] for s, d in (("gt", "gt"), ("input", "noisy"))}
    rows = Dataset.from_dict(rows)
    same = [
        both(tmp_path / "b"),
        {"train": {"gt": "a/gt/", "input": "./a/noisy"}},
        {"train": {"gt": "a/gt/{}.png", "input": "a/noisy/{}.png"}},
        {"train": {"gt": [f"b/gt/{n}.png" for n in range(8)], "input": [f"a/noisy/{n}.png" for n in range(8)]}},
        {"train": {"dataset": rows, "gt": "gt", "input": "input"}},
    ]
    for data in same:
        assert identity_of(cache, **data) == first, data
    assert identity_of(cache, train={"gt": "a/gt"}) != first  # the control


@pytest.mark.parametrize("side", ["gt", "noisy"])
def test_other_pixels_under_the_same_names_are_refused_by_name(pairs, tmp_path, side):
    start = start_of(tmp_path / "run", identity_of(tmp_path / "cache", **both(pairs)))
    check_same_data(start, identity_of(tmp_path / "cache", **both(pairs)))
    for number in range(5):
        save(pairs / side / f"{number}.png", photo(seed=50 + number))
    shown = {"gt": "gt", "noisy": "input"}[side]
    with pytest.raises(UserError, match=rf"images have changed since .*other pixels in the {shown} of '\d'.*put them"):
        check_same_data(start, identity_of(tmp_path / "cache", **both(pairs)))


def test_other_validation_images_and_names_are_refused_by_name(pairs, tmp_path):
    for number in range(3):
        save(tmp_path / "val" / f"v{number}.png", photo(seed=number))
    data = {"train": {"gt": f"{pairs}/gt"}, "val": {"gt": f"{tmp_path}/val"}}
    start = start_of(tmp_path / "run", identity_of(tmp_path / "cache", **data))
    save(tmp_path / "val" / "v1.png", photo(seed=9))
    (tmp_path / "val" / "v2.png").rename(tmp_path / "val" / "w2.png")
    with pytest.raises(
        UserError, match=r"val: lacks 'v2', has in addition 'w2', other pixels in the gt of 'v1'; put them back"
    ):
        check_same_data(start, identity_of(tmp_path / "cache", **data))
    made = {**data, "train": both(pairs)["train"]}
    with pytest.raises(UserError, match="train: inputs were made by the degradation"):
        check_same_data(start, identity_of(tmp_path / "cache", **made))


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"train": {"names": [1]}}'])
def test_without_a_sound_record_the_numbers_are_named(pairs, tmp_path, damage):
    start = start_of(tmp_path / "run", identity_of(tmp_path / "cache", **both(pairs)), with_record=False)
    if damage is not None:
        (tmp_path / "run" / RECORD).write_bytes(damage)
    assert read_record(tmp_path / "run") is None
    save(pairs / "gt" / "1.png", photo(seed=50))
    with pytest.raises(UserError, match="6 train, 2 val images then, 6 train, 2 val now, and their names or pixels"):
        check_same_data(start, identity_of(tmp_path / "cache", **both(pairs)))


def test_a_record_of_another_run_names_nothing(pairs, tmp_path):
    first = identity_of(tmp_path / "cache", **both(pairs))
    start = start_of(tmp_path / "run", first)
    (tmp_path / "run" / RECORD).write_bytes(to_record({"train": first["val"], "val": first["train"]}))
    save(pairs / "gt" / "1.png", photo(seed=50))
    with pytest.raises(UserError, match="names or pixels differ"):
        check_same_data(start, identity_of(tmp_path / "cache", **both(pairs)))


def test_a_commit_without_digests_is_compared_by_names(pairs, tmp_path):
    start = start_of(tmp_path / "run", identity_of(tmp_path / "cache", **both(pairs)), with_record=False)
    for facts in start.counters["data"].values():
        del facts["content"]
    save(pairs / "gt" / "1.png", photo(seed=50))
    check_same_data(start, identity_of(tmp_path / "cache", **both(pairs)))
    (pairs / "gt" / "1.png").rename(pairs / "gt" / "x.png")
    (pairs / "noisy" / "1.png").rename(pairs / "noisy" / "x.png")
    with pytest.raises(UserError, match="and their names differ"):
        check_same_data(start, identity_of(tmp_path / "cache", **both(pairs)))


def test_validation_images_that_are_training_images_are_found(pairs, tmp_path):
    save(tmp_path / "val" / "copy.bmp", photo(seed=3))
    save(tmp_path / "val" / "new.bmp", photo(seed=99))
    data = {"train": {"gt": f"{pairs}/gt"}, "val": {"gt": f"{tmp_path}/val"}}
    assert find_shared(identity_of(tmp_path / "cache", **data)) == ["copy"]
    assert find_shared(identity_of(tmp_path / "cache", **both(pairs))) == []


def test_other_images_than_those_of_another_run_are_answered_with_a_way_to_take_its_weights(pairs, tmp_path):
    start = start_of(tmp_path / "run", identity_of(tmp_path / "cache", **both(pairs)))
    assert start.commit is not None
    start.commit.mkdir(parents=True, exist_ok=True)
    manifest = {"schema": 1, "step": 1, "epoch": 0, "files": {"model.safetensors": {"size": 0, "sha256": ""}}}
    (start.commit / "COMMIT.json").write_text(json.dumps(manifest), encoding="utf-8")
    save(pairs / "gt" / "1.png", photo(seed=50))
    for of_other_run, remedy in (
        (False, ", or choose another run.name"),
        (True, "; to start at step 0 from its weights alone, give model.checkpoint="),
    ):
        with pytest.raises(UserError, match=f"put them back{remedy}"):
            check_same_data(replace(start, of_other_run=of_other_run), identity_of(tmp_path / "cache", **both(pairs)))
