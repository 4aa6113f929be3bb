"""One process decodes the images into a file that all processes map; a changed image gives a new file."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from image_files import REASONS, make_unusable, photo, save, save_deep_png

from accel_restore.data import cache as cache_module
from accel_restore.data import store as store_module
from accel_restore.data.cache import open_stores
from accel_restore.data.cache_folder import delete_store, list_stores
from accel_restore.data.decode import Cell
from accel_restore.data.store_file import STRIP
from accel_restore.errors import UserError

LINUX = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")


def open_one(files, channels: int = 3, cache: Path | None = None, **options):
    return open_stores([files], channels, cache or files[0].parent / "cache", **options)[0]


@pytest.fixture
def images(tmp_path) -> dict[Path, np.ndarray]:
    sizes = [(20, 30), (7, 5), (300, 2 * STRIP + 10), (64, STRIP), (40, STRIP + 1)]
    pixels = [photo(*size, seed) for seed, size in enumerate(sizes)]
    return {save(tmp_path / f"{number}.png", image): image for number, image in enumerate(pixels)}


@pytest.mark.parametrize("codec", ["raw", "compact"])
@pytest.mark.parametrize("read_ahead", [False, True])
def test_stored_images_and_crops_equal_the_files(images, read_ahead, codec):
    opened = open_one([*images], codec=codec)
    store, random = opened.store, np.random.default_rng(0)
    store.read_ahead = read_ahead
    assert opened.sizes == [image.shape[:2] for image in images.values()] and not opened.problems
    assert len(store) == 5 and store.dtype == np.uint8
    assert (store.nbytes == sum(image.nbytes for image in images.values())) is (codec == "raw")
    for number, image in enumerate(images.values()):
        np.testing.assert_array_equal(store[number], image)
        for _ in range(40):
            height, width = (random.integers(1, side, endpoint=True) for side in image.shape[:2])
            top, left = random.integers(image.shape[0] - height + 1), random.integers(image.shape[1] - width + 1)
            crop = np.empty((height, width, 3), np.uint8)
            store.crop(crop, number, int(top), int(left))
            np.testing.assert_array_equal(crop, image[top : top + height, left : left + width])


def test_crop_reads_few_bytes(images):
    """The reason for strips: the rows of a crop are one strip apart, not the width of the image."""
    store = open_one([*images]).store
    touched = []
    store_module_advise, store_module._advise = store_module._advise, lambda rows: touched.append(rows.nbytes)
    try:
        store.read_ahead = True
        store.crop(np.empty((100, 100, 3), np.uint8), 2, 150, 10)
        store.crop(np.empty((100, 100, 3), np.uint8), 2, 150, STRIP - 50)
    finally:
        store_module._advise = store_module_advise
    assert touched == [100 * STRIP * 3] * 3  # of rows of 522 pixels


def test_one_image_of_16_bits_makes_a_store_of_16_bits(tmp_path):
    deep, shallow = photo(dtype="uint16"), photo(9, 9)
    files = [save_deep_png(tmp_path / "a.png", deep), save(tmp_path / "b.png", shallow)]
    store = open_one(files).store
    assert store.dtype == np.uint16
    np.testing.assert_array_equal(store[0], deep)
    np.testing.assert_array_equal(store[1], shallow.astype(np.uint16) * 257)


def test_image_listed_twice_is_stored_once(images):
    files = [*images]
    store = open_one([files[2], files[0], files[2]]).store
    assert len(store) == 3 and store.nbytes == images[files[2]].nbytes + images[files[0]].nbytes
    np.testing.assert_array_equal(store[2], images[files[2]])


def test_cells_of_data_sets_are_stored_by_their_identity(tmp_path):
    pixels = photo()

    def cell(identity: str, fetch=lambda: pixels) -> Cell:
        return Cell("row 0", identity, fetch)

    for _ in range(2):  # the second time nothing is fetched
        np.testing.assert_array_equal(open_one([cell("a")], cache=tmp_path).store[0], pixels)
        pixels = photo(seed=1) if _ else pixels
    changed = open_one([cell("b")], cache=tmp_path).store[0]
    np.testing.assert_array_equal(changed, photo(seed=1))


def test_store_is_built_once_and_again_if_an_image_changes(images, monkeypatch):
    files, built = [*images], []

    def track(items, total, what):
        built.append(total)
        return items

    open_one(files, track=track)
    monkeypatch.setattr(cache_module, "read_image", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(open_one(files, track=track).store[1], images[files[1]])
    monkeypatch.undo()
    assert built == [5]
    save(files[1], photo(9, 9, 4))
    changed = open_one(files, track=track)
    assert changed.sizes[1] == (9, 9) and built == [5, 5]
    assert open_one(files, 1, track=track).store[2].shape == (300, 522, 1) and built == [5, 5, 5]


@pytest.mark.parametrize("kind", REASONS)
def test_unusable_images_are_named_and_leave_no_store(kind, tmp_path):
    path, good = make_unusable(kind, tmp_path / "bad.png"), save(tmp_path / "good.png")
    opened = open_one([good, path, good], cache=tmp_path / "cache")
    assert opened.store is None and opened.sizes[0] == opened.sizes[2] == (20, 30)
    (problem,) = opened.problems
    assert problem.startswith(f"{path}: ") and re.search(REASONS[kind], problem)
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".lock", ".problems"}
    assert not list_stores(tmp_path / "cache")


def test_too_small_disk_is_reported_before_decoding(images, monkeypatch):
    files = [*images]
    usage = shutil.disk_usage(files[0].parent)
    need = sum(image.nbytes for image in images.values())
    for free in (need, need - 1):  # for both lists together
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        if free == need:
            open_stores([files[:2], files[2:]], 3, files[0].parent / "enough")
            continue
        monkeypatch.setattr(cache_module, "read_image", lambda *_: pytest.fail("decoded"))
        with pytest.raises(UserError, match=r"need 0\.0 GB.*data\.cache_dir"):
            open_stores([files[:2], files[2:]], 3, files[0].parent / "cache")


def test_unwritable_cache_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache: cannot store decoded images there .*data\.cache_dir"):
        open_one([save(tmp_path / "a.png")], cache=tmp_path / "file" / "cache")


def test_truncated_store_is_built_again(images):
    files = [*images]
    path = open_one(files).store.path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(open_one(files).store[2], images[files[2]])
    path.write_bytes(bytes(len(whole)))  # as long as it was: only reading it tells
    with pytest.raises(UserError, match=rf"cannot be read .*accel-restore cache delete \w+ --dir {path.parent}`"):
        open_one(files)
    path.with_suffix(".json").write_text("{")
    np.testing.assert_array_equal(open_one(files).store[2], images[files[2]])


def test_stores_are_listed_and_deleted_and_may_be_moved(images, tmp_path):
    files, cache = [*images], tmp_path / "cache"
    first, second = open_one(files[:2], cache=cache).store, open_one(files[2:], 1, cache=cache).store
    os.utime(first.path, (1, 1))
    newer, older = list_stores(cache)
    assert (newer.name, older.name) == (second.path.stem, first.path.stem) and older.last_used == 1
    assert older.nbytes == first.path.stat().st_size
    assert older.description == {
        "images": 2, "first": str(files[0]), "channels": 3, "bits": 8, "codec": "raw", "bytes": older.nbytes,
    }  # fmt: skip
    open_one(files[:2], cache=cache)
    assert list_stores(cache)[0].name == older.name  # used last
    with FileLock(cache / f"{older.name}.lock"):
        assert not delete_store(cache, older.name) and first.path.exists()  # a process is making it
    del first
    assert delete_store(cache, older.name)
    assert [store.name for store in list_stores(cache)] == [newer.name]
    del second
    shutil.move(cache, tmp_path / "elsewhere")
    assert open_one(files[2:], 1, cache=tmp_path / "elsewhere", track=lambda *_: pytest.fail("decoded")).store
    assert not list_stores(tmp_path / "nothing")


def test_a_store_in_use_is_not_deleted(images, tmp_path):
    files, cache = [*images], tmp_path / "cache"
    for _ in range(2):  # built, then found
        used = open_one(files[:2], cache=cache).store
        assert not delete_store(cache, used.path.stem) and used.path.exists()
        np.testing.assert_array_equal(open_one(files[:2], cache=cache).store[1], images[files[1]])
    name = used.path.stem
    del used
    assert delete_store(cache, name) and not list_stores(cache)


def replace_at_same_time(folder: Path, how: str) -> None:
    """Give a.bmp the content of another image of equal size and modification time."""
    path, stat = folder / "a.bmp", (folder / "a.bmp").stat()
    other = save(folder / "new" / "a.bmp", photo(seed=1))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if how == "written over":
        path.write_bytes(other.read_bytes())
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif how == "renamed over":
        other.replace(path)
    elif how == "link":
        path.unlink()
        path.symlink_to(other)
    else:
        folder.rename(folder.with_name("old"))
        (folder.with_name("old") / "new").rename(folder)
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns


@pytest.mark.parametrize("how", ["written over", "renamed over", "link", "folder renamed"])
def test_another_image_of_equal_size_and_time_is_decoded_again(how, tmp_path):
    path = save(tmp_path / "images" / "a.bmp", photo(seed=0))
    cache = tmp_path / "cache"
    before = open_one([path], cache=cache).store.digests
    replace_at_same_time(path.parent, how)
    store = open_one([path], cache=cache).store
    np.testing.assert_array_equal(store[0], photo(seed=1))
    assert store.digests != before


def test_a_digest_follows_the_pixels_and_not_the_file(tmp_path):
    pixels = photo()
    files = [
        save(tmp_path / "a.png", pixels),
        save(tmp_path / "b.bmp", pixels),
        save(tmp_path / "c.png", photo(seed=1)),
    ]
    png, bmp, other = open_one(files).store.digests
    assert png == bmp != other
    assert open_one(files, 1, cache=tmp_path / "gray").store.digests[0] != png
    files.append(save_deep_png(tmp_path / "d.png", photo(dtype="uint16")))  # the others are stored in 16 bits with it
    assert open_one(files, cache=tmp_path / "deep").store.digests[:3] == [png, bmp, other]


def test_stores_that_vanish_during_a_listing_are_left_out(images, tmp_path, monkeypatch):
    opened = open_one([*images], cache=tmp_path).store
    (tmp_path / "gone.123.tmp").symlink_to("nowhere")  # as if it had vanished between the listing and its stat
    (tmp_path / "gone.arrow").symlink_to("nowhere")
    assert [store.name for store in list_stores(tmp_path)] == [opened.path.stem]


def test_progress_is_reported(images):
    reported = []

    def track(items, total, what):
        reported.append((total, what))
        yield from items

    open_one([*images], track=track)
    assert reported == [(5, "decoding 5 images, once")]
