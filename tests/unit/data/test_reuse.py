"""A store takes the images that have not changed from existing stores; only the others are decoded."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import photo, save, save_deep_png

from accel_restore.data import cache as cache_module
from accel_restore.data.cache import open_stores
from accel_restore.data.cache_folder import delete_store, list_stores
from accel_restore.data.store import Store

CODECS = ("raw", "compact")


@pytest.fixture
def files(tmp_path) -> list[Path]:
    return [save(tmp_path / f"{number}.png", photo(40 + number, 70, number)) for number in range(6)]


@pytest.fixture
def opened(tmp_path, monkeypatch) -> Callable:
    """Opens a store, and returns it with the names of the files that were decoded and the progress lines."""
    decoded: list[str] = []
    read = cache_module.read_image
    monkeypatch.setattr(cache_module, "read_image", lambda *given: (decoded.append(given[0].name), read(*given))[1])

    def open_one(files: list[Path], codec: str = "raw", channels: int = 3) -> tuple[Store, list[str], list[str]]:
        decoded.clear()
        lines: list[str] = []

        def track(items, total, what):
            lines.append(what)
            return items

        result = open_stores([files], channels, tmp_path / "cache", track, codec=codec)[0]
        assert not result.problems and result.store is not None
        return result.store, sorted(decoded), lines

    return open_one


def check(store: Store, files: list[Path], tmp_path: Path) -> None:
    """Compare a store with one that was decoded without any other."""
    fresh = open_stores([files], store.channels, tmp_path / "fresh", codec="raw")[0].store
    assert store.digests == fresh.digests and store.sizes.tolist() == fresh.sizes.tolist()
    assert all((store[index] == fresh[index]).all() for index in range(len(files)))


@pytest.mark.parametrize("codec", CODECS)
def test_one_changed_image_is_decoded_alone(codec, files, opened, tmp_path):
    _, decoded, lines = opened(files, codec)
    assert decoded == [file.name for file in files] and lines == ["decoding 6 images, once"]
    save(files[2], photo(41, 71, 9))
    store, decoded, lines = opened(files, codec)
    assert decoded == ["2.png"] and lines == ["decoding 1 image, once; 5 from other stores"]
    check(store, files, tmp_path)


def test_file_with_former_size_and_modification_time_is_decoded_again(opened, tmp_path):
    files = [save(tmp_path / f"{name}.bmp", photo(seed=seed)) for seed, name in enumerate("ab")]
    opened(files)
    before = files[0].stat()
    files[0].write_bytes(save(tmp_path / "other.bmp", photo(seed=5)).read_bytes())
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files[0].stat().st_size == before.st_size
    store, decoded, _ = opened(files)
    assert decoded == ["a.bmp"]
    np.testing.assert_array_equal(store[0], photo(seed=5))


@pytest.mark.parametrize("codec", CODECS)
def test_added_removed_and_reordered_images_are_taken_from_the_best_stores(codec, files, opened, tmp_path):
    opened(files[:4], codec)
    _, decoded, _ = opened(files[3:], codec)
    assert decoded == ["4.png", "5.png"]
    store, decoded, lines = opened([files[5], files[0], files[3]], codec)
    assert not decoded and lines == ["taking 3 images from other stores"]
    check(store, [files[5], files[0], files[3]], tmp_path)


@pytest.mark.parametrize("former", CODECS)
def test_the_other_codec_encodes_again_without_decoding_files(former, files, opened, tmp_path):
    opened(files, former)
    store, decoded, _ = opened(files, "compact" if former == "raw" else "raw")
    assert not decoded and store.format.codec != former
    check(store, files, tmp_path)


def test_other_channels_and_depths_are_decoded(files, opened, tmp_path):
    opened(files)
    assert opened(files, channels=1)[1] == [file.name for file in files]
    deep = save_deep_png(tmp_path / "deep.png", photo(dtype="uint16"))
    assert len(opened([*files, deep])[1]) == 7  # all are stored in 16 bits with it
    store, decoded, _ = opened(files[:5])
    assert not decoded and store.dtype == np.uint8  # and again in 8 bits without it
    assert opened([files[0], deep])[1] == []


def test_images_above_the_limit_are_refused_although_they_are_stored(files, opened, tmp_path):
    opened(files)
    result = open_stores([files[:5]], 3, tmp_path / "cache", max_pixels=100)[0]
    assert len(result.problems) == 5


@pytest.mark.parametrize("damage", [bytes, lambda content: content[: len(content) // 2]])
def test_damaged_stores_are_not_used(damage, files, opened, tmp_path):
    path = opened(files)[0].path
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)) if damage is bytes else damage(content))
    store, decoded, _ = opened(files[:5])
    assert len(decoded) == 5
    check(store, files[:5], tmp_path)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("other", CODECS)
def test_an_image_with_a_flipped_bit_is_decoded_again(codec, other, files, opened, tmp_path):
    first = opened(files, codec)[0]
    content, pixels = bytearray(first.path.read_bytes()), first.table.pixels[3].tobytes()
    content[content.index(pixels) + len(pixels) // 2] ^= 4
    first.path.write_bytes(content)
    store, decoded, _ = opened(files[:5], other)
    assert decoded == ["3.png"]
    check(store, files[:5], tmp_path)


def test_floats_are_taken_with_their_range(opened, tmp_path):
    files = [tmp_path / f"{number}.npy" for number in range(3)]
    for number, file in enumerate(files):
        np.save(file, photo(seed=number).astype(np.float16) / (number + 1) - 0.5)
    opened(files)
    store, decoded, _ = opened(files[1:], "compact")
    assert not decoded and store.dtype == np.float16
    assert store.values == (min(map(np.min, store)), max(map(np.max, store)))
    check(store, files[1:], tmp_path)


def test_stores_may_be_deleted_after_their_images_were_taken(files, opened, tmp_path):
    first = opened(files)[0].path.stem
    store, decoded, _ = opened(files[:5])
    assert not decoded and delete_store(tmp_path / "cache", first)
    check(store, files[:5], tmp_path)
    assert len(list_stores(tmp_path / "cache")) == 1


def test_cells_of_data_sets_are_taken_by_their_identity(opened, tmp_path, monkeypatch):
    from accel_restore.data.decode import Cell

    fetched = []

    def cell(identity: str, seed: int) -> Cell:
        return Cell(f"row {identity}", identity, lambda: (fetched.append(identity), photo(seed=seed))[1])

    monkeypatch.undo()
    open_stores([[cell("a", 0), cell("b", 1)]], 3, tmp_path / "cache")
    fetched.clear()
    store = open_stores([[cell("c", 2), cell("b", 7)]], 3, tmp_path / "cache")[0].store
    assert set(fetched) == {"c"}
    np.testing.assert_array_equal(store[1], photo(seed=1))
