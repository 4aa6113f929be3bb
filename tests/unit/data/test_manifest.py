"""A search for images is not made again while no folder has changed; a file that was rewritten is always noticed."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from image_files import photo, save

from accel_restore.config.load import config_from
from accel_restore.data import manifest
from accel_restore.data.build import build_sets, degradations_of
from accel_restore.data.handover import read_found, write_found
from accel_restore.data.manifest import Place, Scan, scan_files
from accel_restore.data.scan import ScannedData, find_data
from accel_restore.errors import UserError

SETTLED = 0.05  # seconds


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Pairs in two scenes, which no search has seen yet."""
    monkeypatch.setattr(manifest, "_SETTLED", SETTLED)
    for scene in ("a", "b"):
        for number in range(3):
            for kind in ("gt", "noisy"):
                save(tmp_path / "data" / kind / scene / f"{number}.png", photo(seed=number))
    return tmp_path / "data"


@pytest.fixture
def searches(monkeypatch) -> list[str]:
    """The places that are searched."""
    searched: list[str] = []
    find_pairs = manifest.find_pairs
    monkeypatch.setattr(
        manifest, "find_pairs", lambda gt, *more, **named: searched.append(gt) or find_pairs(gt, *more, **named)
    )
    return searched


def scan(place: Place, cache: Path, trust_folders: bool = False) -> Scan:
    """Search as the start of a run does."""
    time.sleep(2 * SETTLED)
    found = scan_files(place, cache, trust_folders)
    for column in (found.pairs.table.gt, found.pairs.table.input):
        if column is not None:
            column.images.digest(["store"], [])
    found.save()
    return found


def in_folders(folder: Path) -> Place:
    return Place(f"{folder}/gt", f"{folder}/noisy", "data.train", recursive=True)


PLACES = {
    "folders": in_folders,
    "patterns": lambda folder: Place(f"{folder}/gt/{{}}/{{}}.png", f"{folder}/noisy/{{}}/{{}}.png", "data.train"),
    "lists": lambda folder: Place(
        [f"{folder}/gt/a/{n}.png" for n in range(3)], [f"{folder}/noisy/a/{n}.png" for n in range(3)], "data.train"
    ),
    "gt alone": lambda folder: Place(f"{folder}/gt", None, "data.val", recursive=True),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_unchanged_folders_are_not_searched_again(place, folder, searches, tmp_path):
    first, again = (scan(place(folder), tmp_path / "cache") for _ in range(2))
    assert len(searches) == 1 and again.pairs == first.pairs and again.notes == first.notes
    assert again.pairs.table.gt.images.digests == first.pairs.table.gt.images.digests


@pytest.mark.parametrize("rule", ["EXTENSIONS", "RAW_EXTENSIONS"])
def test_a_manifest_does_not_outlive_the_suffixes_that_are_searched(rule, folder, searches, tmp_path, monkeypatch):
    scan(in_folders(folder), tmp_path / "cache")
    monkeypatch.setattr(manifest, rule, {*getattr(manifest, rule), ".new"})
    scan(in_folders(folder), tmp_path / "cache")
    assert len(searches) == 2


def with_former_time(folder: Path) -> None:
    """Add a file as rsync does: the folder then has the modification time that it had before."""
    before = folder.stat()
    save(folder / "8.png", photo())
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "added": lambda gt: save(gt / "a" / "9.png", photo()),
    "removed": lambda gt: (gt / "b" / "1.png").unlink(),
    "renamed": lambda gt: (gt / "a" / "1.png").rename(gt / "a" / "7.png"),
    "new folder": lambda gt: save(gt / "c" / "0.png", photo()),
    "with the former time of the folder": lambda gt: with_former_time(gt / "a"),
}


@pytest.mark.parametrize("place", [PLACES["folders"], PLACES["patterns"]], ids=["folders", "patterns"])
@pytest.mark.parametrize("trust_folders", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_folder_is_searched_again(change, place, trust_folders, folder, searches, tmp_path):
    first = scan(place(folder), tmp_path / "cache", trust_folders)
    for side in ("gt", "noisy"):
        change(folder / side)
    again = scan(place(folder), tmp_path / "cache", trust_folders)
    assert len(searches) == 2 and again.pairs.names != first.pairs.names


def test_a_file_rewritten_in_place_is_noticed_unless_folders_are_trusted(folder, searches, tmp_path):
    place, cache = in_folders(folder), tmp_path / "cache"
    first = scan(place, cache).pairs.table
    path = folder / "noisy" / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # of equal size, in the same folder
    trusting = scan(place, cache, trust_folders=True).pairs.table
    assert trusting.input.images.digests == first.input.images.digests  # the control: folders have not changed
    again = scan(place, cache).pairs.table
    assert len(searches) == 1 and again.gt.images.digests == first.gt.images.digests
    assert again.input.images.digests != first.input.images.digests
    assert scan(place, cache, trust_folders=True).pairs.table.input.images.digests == again.input.images.digests


def test_a_file_that_a_link_leads_to_is_noticed(folder, searches, tmp_path):
    """The link is in a folder that never changes."""
    target, cache = save(tmp_path / "elsewhere" / "x.png", photo()), tmp_path / "cache"
    for kind in ("gt", "noisy"):
        (folder / kind / "x.png").symlink_to(target)
    first = scan(in_folders(folder), cache).pairs.table.gt.images.digests
    save(target, photo(seed=9))
    assert scan(in_folders(folder), cache).pairs.table.gt.images.digests != first
    target.unlink()
    scan(in_folders(folder), cache)
    assert len(searches) == 2  # the file is gone, so the manifest cannot be used


def test_a_folder_that_has_just_changed_is_searched_again(folder, searches, tmp_path, monkeypatch):
    """A second change within the resolution of its times would not be noticed."""
    monkeypatch.setattr(manifest, "_SETTLED", 60.0)
    for _ in range(2):
        scan(in_folders(folder), tmp_path / "cache")
    assert len(searches) == 2


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"{}" + data])
def test_a_damaged_manifest_is_made_again(damage, folder, searches, tmp_path):
    first = scan(in_folders(folder), tmp_path / "cache")
    first.path.write_bytes(damage(first.path.read_bytes()))
    assert scan(in_folders(folder), tmp_path / "cache").pairs == first.pairs and len(searches) == 2
    scan(in_folders(folder), tmp_path / "cache")
    assert len(searches) == 2


def test_problems_are_searched_for_again(folder, searches, tmp_path):
    (folder / "gt" / "a" / "0.png").unlink()
    for _ in range(2):
        assert len(scan(in_folders(folder), tmp_path / "cache").problems) == 1
    assert len(searches) == 2


def test_a_cache_that_cannot_be_written_is_no_error(folder, searches, tmp_path):
    (tmp_path / "cache").write_text("a file in place of the folder")
    assert len(scan(in_folders(folder), tmp_path / "cache").pairs) == 6


def test_a_manifest_that_was_not_used_for_long_is_removed(folder, tmp_path):
    old = scan(Place(f"{folder}/gt/a", None, "data.train"), tmp_path / "cache").path
    kept = scan(Place(f"{folder}/gt/b", None, "data.train"), tmp_path / "cache").path
    os.utime(old, (0, 0))
    scan(in_folders(folder), tmp_path / "cache")
    assert kept.exists() and not old.exists()


def find(folder: Path, cache: Path, **data) -> ScannedData:
    train = {"gt": f"{folder}/gt", "input": f"{folder}/noisy", "recursive": True}
    config = config_from({"data": {"patch_size": 16, "cache_dir": str(cache), "train": train, **data}})
    return find_data(config.data, 11)


@contextmanager
def calls(monkeypatch) -> Iterator[list[tuple[str, str]]]:
    """The calls of os.stat and os.scandir: name and path."""
    made: list[tuple[str, str]] = []

    def recorded(name: str) -> Callable:
        original = getattr(os, name)

        def call(path=".", *more, **named):
            made.append((name, str(path)))
            return original(path, *more, **named)

        return call

    with monkeypatch.context() as patched:
        for name in ("stat", "scandir"):
            patched.setattr(os, name, recorded(name))
        yield made


def test_the_next_start_asks_each_folder_and_each_file_once(folder, tmp_path, monkeypatch):
    time.sleep(2 * SETTLED)
    with calls(monkeypatch) as asked:
        first = find(folder, tmp_path / "cache")
    assert any(name == "scandir" for name, _ in asked)  # the control
    with calls(monkeypatch) as asked:
        again = find(folder, tmp_path / "cache")
    files = sorted(("stat", str(path)) for path in folder.rglob("*.png"))
    assert sorted(call for call in asked if call[1].endswith(".png")) == files
    assert not [call for call in asked if call[0] == "scandir"]
    assert again.identity() == first.identity() and again.facts == first.facts


def test_what_was_found_is_handed_to_other_ranks_without_a_look_at_the_images(folder, tmp_path, monkeypatch):
    found = find(folder, tmp_path / "cache")
    write_found(found, tmp_path / "found")
    with calls(monkeypatch) as asked:
        received = read_found(tmp_path / "found")
    assert not [path for _, path in asked if path.endswith(".png")]
    assert received.facts == found.facts and received.identity() == found.identity()
    assert list(received.sources()) == list(found.sources()) and received.notes == found.notes
    config = config_from({"data": {"patch_size": 16, "train": {"gt": "x", "input": "y"}}})
    first, second = (
        build_sets(each, config.data, 0, degradations_of(config.data), torch.device("cpu"))
        for each in (found, received)
    )
    assert first.val.names == second.val.names
    for index in range(len(first.val)):
        assert torch.equal(first.val[index]["input"], second.val[index]["input"])
    assert (first.train.sets[0].crops.images == second.train.sets[0].crops.images).all()


def test_a_handed_over_store_that_was_deleted_is_reported(folder, tmp_path):
    found = find(folder, tmp_path / "cache")
    write_found(found, tmp_path / "found")
    for store in (tmp_path / "cache").glob("*.arrow"):
        store.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_found(tmp_path / "found")
