"""A compact store holds lossless tiles: fewer bytes, the same pixels, and a crop decodes only what it touches."""

from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from image_files import photo, save, save_deep_png
from imagecodecs import RcompError

from accel_restore.data import cache as cache_module
from accel_restore.data import store as store_module
from accel_restore.data import tiles
from accel_restore.data.cache import open_stores
from accel_restore.data.store import Store
from accel_restore.data.store_file import Format, encode, facts_of, write_store
from accel_restore.errors import UserError

DTYPES = ("uint8", "uint16", "float16", "float32")


def values(kind: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        made = {
            "noise": random.normal(size=shape),
            "flat": np.full(shape, -0.0),
            "smooth": np.ones(shape).cumsum(1) / 7,
        }
        return made[kind].astype(dtype)
    top = np.iinfo(dtype).max
    made = {"noise": random.integers(0, top, shape, endpoint=True), "flat": np.full(shape, top)}
    return made.get(kind, (np.ones(shape, np.int64).cumsum(0) * 3 + np.arange(shape[2]) * 5) % (top + 1)).astype(dtype)


def stored(path, images: list[np.ndarray], codec: str = "compact") -> Store:
    format = Format(codec, images[0].shape[2], images[0].dtype)
    rows = [encode(image, facts_of(image, image.dtype, bytes(16)), format) for image in images]
    write_store(path, rows, format, lambda nbytes: None)
    return Store(path, images[0].shape[2])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 31])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["noise", "flat", "smooth"])
def test_crops_are_those_of_the_image_for_any_pixels(kind, dtype, channels, tmp_path):
    side, random = tiles.tile_side(channels, np.dtype(dtype)), np.random.default_rng(1)
    sizes = [(1, 1), (5, 3 * side), (2 * side + 9, side + 1)]
    images = [values(kind, (*size, channels), dtype) for size in sizes]
    store = stored(tmp_path / "a.arrow", images)
    assert store.dtype == dtype and store.format.codec == "compact"
    for index, image in enumerate(images):
        assert store[index].tobytes() == image.tobytes()
        for _ in range(5):
            height, width = (random.integers(1, length, endpoint=True) for length in image.shape[:2])
            top, left = random.integers(image.shape[0] - height + 1), random.integers(image.shape[1] - width + 1)
            crop = np.empty((height, width, channels), dtype)
            store.crop(crop, index, int(top), int(left))
            assert crop.tobytes() == image[top : top + height, left : left + width].tobytes()


@pytest.mark.parametrize("bits", [0x3C3C, 0x3838, 0xBCBC])
@pytest.mark.parametrize("dtype", ["uint16", "float16"])
def test_values_of_two_equal_bytes_are_restored(dtype, bits):
    image = np.full((64, 64, 3), bits, np.uint16).view(dtype)
    code, _ = tiles.encode_tiles(image, 64)
    assert len(code) < 300  # the second bytes are left out
    out = np.empty((9, 5, 3), dtype)
    tiles.decode_tile(out, np.frombuffer(code, np.uint8), (64, 64), 7, 50)
    assert (out.view(np.uint16) == bits).all()


def test_bits_that_say_nothing_take_no_bytes():
    random = np.random.default_rng(0)
    for factor, bits in ((257, 8), (16, 12), (1, 16)):
        image = (random.integers(0, 2**bits, (64, 64, 3)) * factor).astype(np.uint16)
        code, _ = tiles.encode_tiles(image, 64)
        assert bits / 16 <= len(code) / image.nbytes < bits / 16 + 0.1


def test_noise_takes_hardly_more_bytes_than_raw():
    for dtype in DTYPES:
        image = np.random.default_rng(0).integers(0, 256, (256, 256, 3 * np.dtype(dtype).itemsize), np.uint8)
        code, _ = tiles.encode_tiles(image.view(dtype), 64)
        assert len(code) < 1.02 * image.nbytes


def test_crop_decodes_only_the_tiles_that_it_touches(tmp_path, monkeypatch):
    store, decoded, advised = stored(tmp_path / "a.arrow", [photo(300, 500)]), [], []
    decode = store_module.decode_tile
    monkeypatch.setattr(store_module, "decode_tile", lambda *given: (decoded.append(given[2]), decode(*given)))
    monkeypatch.setattr(store_module, "_advise", lambda pages: advised.append(pages.nbytes))
    store.crop(np.empty((64, 65, 3), np.uint8), 0, 64, 64)
    assert decoded == [(64, 64)] * 2 and not advised
    store.read_ahead = True
    store.crop(np.empty((10, 10, 3), np.uint8), 0, 290, 490)
    assert decoded[2:] == [(300 - 256, 500 - 448)] and 0 < sum(advised) < 1.02 * 3 * 44 * 52


def flipped(store: Store) -> Iterator[Store]:
    """Yield the store with each bit of its first image's tiles flipped, one at a time."""
    content, code = store.path.read_bytes(), store.table.pixels[0].tobytes()
    start = content.index(code)
    for bit in range(8 * len(code)):
        damaged = bytearray(content)
        damaged[start + bit // 8] ^= 1 << bit % 8
        store.path.write_bytes(damaged)
        yield Store(store.path, store.channels)


def test_each_flipped_bit_of_a_tile_is_reported_with_a_remedy(tmp_path):
    for store in flipped(stored(tmp_path / "a.arrow", [values("smooth", (9, 9, 3), "uint8")])):
        with pytest.raises(UserError, match=r"a\.arrow: cannot be read .*accel-restore cache delete"):
            store[0]


def test_control_without_checksums_flipped_bits_give_other_pixels(tmp_path, monkeypatch):
    image, wrong = values("smooth", (9, 9, 3), "uint8"), 0
    store = stored(tmp_path / "a.arrow", [image])
    monkeypatch.setattr(tiles.zlib, "crc32", lambda _: int.from_bytes(store.table.pixels[0][:4].tobytes(), "little"))
    for damaged in flipped(store):
        with suppress(RcompError):
            wrong += not np.array_equal(damaged[0], image)
    assert wrong > 10


def test_pixels_and_digests_are_equal_with_either_codec(tmp_path):
    files = [save(tmp_path / "a.png", photo(70, 200)), save_deep_png(tmp_path / "b.png", photo(dtype="uint16"))]
    raw, compact = (open_stores([files], 3, tmp_path / codec, codec=codec)[0].store for codec in ("raw", "compact"))
    assert raw.path.name != compact.path.name and raw.digests == compact.digests and raw.dtype == compact.dtype
    assert all((raw[number] == compact[number]).all() for number in range(2)) and compact.nbytes < raw.nbytes


def test_a_compact_store_needs_room_for_its_tiles_only(tmp_path, monkeypatch):
    files = [save(tmp_path / f"{number}.png", values("smooth", (200, 200, 3), "uint8")) for number in range(9)]
    free = [2**40]
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))

    def build(codec: str, room: int) -> None:
        free[0] = room
        open_stores([files], 3, tmp_path / f"{codec}{room}", codec=codec)

    raw = 9 * 200 * 200 * 3
    build("raw", raw)
    build("compact", raw // 2)
    for codec, room in (("raw", raw - 1), ("compact", 1000)):
        with pytest.raises(UserError, match=r"decoded images need .* free some space, or set data\.cache_dir"):
            build(codec, room)
        assert not list((tmp_path / f"{codec}{room}").glob("*.arrow"))


def test_a_disk_that_gets_full_while_a_compact_store_is_written_is_reported(tmp_path, monkeypatch):
    files = [save(tmp_path / "a.png", photo(50, 50))]
    free = iter([2**40, 5])
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with pytest.raises(UserError, match=r"decoded images need more than the 0\.0 GB that are left"):
        open_stores([files], 3, tmp_path / "cache", codec="compact")
    assert not list((tmp_path / "cache").glob("*.arrow")) and not list((tmp_path / "cache").glob("*.tmp"))
